"""The commands against a real crew, started by `criwctl up`, and images from a real registry."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio

from criw.config.common import AGENTS
from support import host, images
from support.crew import Crew, python_environment
from support.own import free_port
from support.registry import running_registry
from support.up import LIMIT_S, running_up


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str


class Host:
    """A crew, and images it can pull."""

    def __init__(self, crew: Crew, registry: str) -> None:
        self.crew = crew
        self.busybox = f"{registry}/library/busybox:latest"
        self.nginx = f"{registry}/library/nginx:latest"

    async def start(self, *argv: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "criw_ctl", "--config", os.fspath(self.crew.config_path), *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=python_environment(),
        )

    async def criwctl(self, *argv: str) -> Ended:
        return await end(await self.start(*argv))

    async def ok(self, *argv: str) -> str:
        """The output of a command that must succeed without a word on stderr."""
        done = await self.criwctl(*argv)
        assert (done.code, done.err) == (0, ""), f"{argv}: {done}"
        return done.out

    @property
    def logs(self) -> list[Path]:
        return list((self.crew.config.root / "ctl" / "logs").glob("*"))


async def end(process: asyncio.subprocess.Process) -> Ended:
    try:
        out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


@pytest_asyncio.fixture(scope="module")
async def host_of_module() -> AsyncIterator[Host]:
    async with running_registry() as registry:
        await registry.push("library/busybox:latest", images.busybox())
        await registry.push("library/nginx:latest", images.nginx())
        crew = Crew(f'log_level = "info"\n[image.registries."{registry.address}"]\nplain_http = true\n')
        async with running_up(crew) as up:
            await up.complete()
            host_of_module = Host(crew, registry.address)
            yield host_of_module
            for image in json.loads(await host_of_module.ok("images", "-o", "json"))["images"]:
                await host_of_module.ok("rmi", image["id"])
        assert up.process.returncode == 0
        left = host.contents(crew)
        shutil.rmtree(crew.directory)
        assert left == []


@pytest_asyncio.fixture
async def here(host_of_module: Host) -> AsyncIterator[Host]:
    """Without a pod; what the tests before have pulled is there."""
    here = host_of_module
    yield here
    for pod in json.loads(await here.ok("pods", "-o", "json"))["items"]:
        await here.ok("rm", "-f", pod["id"])
    assert here.logs == []


async def test_a_life_from_pull_to_removal(here: Host) -> None:
    (here.crew.directory / "data").mkdir()
    (here.crew.directory / "data" / "word").write_text("from the host\n")
    port = free_port()

    pulled = await here.criwctl("pull", here.nginx)
    assert pulled.code == 0
    assert pulled.out.startswith("sha256:")
    assert "done" in pulled.err
    assert f"{here.nginx.removesuffix(':latest')} latest" in " ".join((await here.ok("images")).split())

    options = ("-e", "WORD=good day", "-v", f"{here.crew.directory}/data:/data:ro", "-p", f"127.0.0.1:{port}:80")
    started = json.loads(await here.ok("run", "-d", "-o", "json", "--name", "web", *options, here.nginx))
    pod_id, container_id = started["podSandboxId"], started["containerId"]

    (pod,) = json.loads(await here.ok("pods", "-o", "json"))["items"]
    assert (pod["id"], pod["state"], pod["metadata"]["name"]) == (pod_id, "SANDBOX_READY", "web")
    (container,) = json.loads(await here.ok("ps", "-o", "json"))["containers"]
    assert (container["id"], container["state"]) == (container_id, "CONTAINER_RUNNING")
    row = (await here.ok("ps")).splitlines()[1].split()
    assert row[:2] == [container_id[:13], here.nginx]
    assert "running" in row

    about = json.loads(await here.ok("inspect", "web"))
    address = about["status"]["network"]["ip"]
    (inside,) = about["containers"]
    assert inside["status"]["id"] == container_id
    assert Path(f"/proc/{inside['info']['pid']}/comm").read_text() == "nginx\n"
    assert address in await here.ok("pods")

    said = await here.criwctl("exec", "web", "sh", "-c", "echo $WORD; cat /data/word; hostname; echo no >&2; exit 7")
    assert said == Ended(7, "good day\nfrom the host\nweb\n", "no\n")
    assert (await here.criwctl("exec", "web", "touch", "/data/x")).code == 1
    for url in (f"http://{address}/", f"http://127.0.0.1:{port}/"):
        assert await fetch(url) == images.PAGE
    assert await here.ok("exec", container_id[:10], "wget", "-qO-", "http://127.0.0.1/") == images.PAGE

    lines = (await here.criwctl("logs", "web")).out.splitlines()
    assert len(lines) == 3
    assert all('"GET / HTTP/1.1" 200' in line for line in lines)
    assert (await here.criwctl("logs", "--tail", "1", "web")).out.splitlines() == lines[-1:]

    (stats,) = json.loads(await here.ok("stats", "-o", "json", "web"))["stats"]
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    assert (await here.ok("stats")).splitlines()[1].startswith(f"{container_id[:13]}  web")

    refused = await here.criwctl("rm", "web")
    assert refused.code == 1
    assert refused.err == (
        f"criwctl: cannot remove web ({pod_id[:13]}): it is running; stop it with criwctl stop, or use rm -f\n"
    )
    await here.ok("stop", "web")
    assert (await here.ok("ps")).splitlines()[1:] == []
    assert "exited" in (await here.ok("ps", "-a")).splitlines()[1].split()
    assert "not ready" in (await here.ok("pods")).splitlines()[1]
    assert here.logs != []
    await here.ok("rm", "web")
    assert here.logs == []
    assert json.loads(await here.ok("pods", "-o", "json"))["items"] == []
    await here.ok("rmi", here.nginx)
    assert json.loads(await here.ok("images", "-o", "json"))["images"] == []


async def fetch(url: str) -> str:
    return (await end(await asyncio.create_subprocess_exec("busybox", "wget", "-qO-", url, stdout=-1, stderr=-1))).out


async def test_in_the_foreground_output_and_exit_code_are_the_containers(here: Host) -> None:
    command = ("sh", "-c", "echo one; printf two; echo three >&2; exit 42")
    done = await here.criwctl("run", "--rm", here.busybox, *command)  # pulls it first
    assert done.code == 42
    assert done.out.removesuffix("\n") == "one\ntwo"  # what is read before the end is known has no line break yet
    assert done.err.endswith("three\n")
    assert here.logs == []
    assert json.loads(await here.ok("pods", "-o", "json"))["items"] == []

    ended = await here.criwctl("run", "--name", "stays", here.busybox, *command)
    assert (ended.code, ended.out.removesuffix("\n"), ended.err) == (42, "one\ntwo", "three\n")
    assert await here.criwctl("logs", "stays") == Ended(0, "one\ntwo\n", "three\n")
    container = json.loads(await here.ok("ps", "-a", "-o", "json"))["containers"][0]["id"]
    await here.ok("rm", container)
    assert [list(directory.iterdir()) for directory in here.logs] == [[]]
    await here.ok("rm", "stays")


async def test_ctrl_c_stops_what_runs_in_the_foreground(here: Host) -> None:
    await here.criwctl("pull", here.busybox)
    script = "trap 'echo bye; exit 3' TERM; echo ready; while true; do sleep 0.1; done"
    process = await here.start("run", "--rm", here.busybox, "sh", "-c", script)
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), LIMIT_S) == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert await end(process) == Ended(3, "bye\n", "")
    assert here.logs == []
    assert json.loads(await here.ok("pods", "-o", "json"))["items"] == []


async def test_a_failure_is_one_line_and_leaves_nothing(here: Host) -> None:
    await here.criwctl("pull", here.busybox)
    for argv, words in (
        (("run", here.busybox, "/no/such"), "/no/such"),
        (("run", "-d", here.busybox, "/no/such"), "/no/such"),
        (("exec", "nobody", "true"), "cannot find container nobody"),
        (("logs", "nobody"), "cannot find container nobody"),
        (("stop", "nobody"), "cannot find pod or container nobody"),
        (("rm", "nobody"), "cannot find pod or container nobody"),
        (("rmi", "127.0.0.1:1/no/such:1"), "cannot remove image 127.0.0.1:1/no/such:1"),
        (("inspect", "nobody"), "nobody"),
        (("pull", f"{here.busybox}-not-there"), "not-there"),
        (("run", "-d", f"{here.busybox}-not-there"), "not-there"),
    ):
        done = await here.criwctl(*argv)
        assert (done.code, done.out) == (1, ""), argv
        (line,) = done.err.splitlines()
        assert line.startswith("criwctl: ")
        assert words in line
    assert here.logs == []
    assert json.loads(await here.ok("pods", "-o", "json"))["items"] == []


async def test_a_name_is_taken_once(here: Host) -> None:
    await here.criwctl("pull", here.busybox)
    await here.ok("run", "-d", "--name", "one", here.busybox, "sleep", "100")
    again = await here.criwctl("run", "-d", "--name", "one", here.busybox, "sleep", "100")
    assert again.code == 1
    assert "criwctl rm one" in again.err
    assert len(here.logs) == 1
    mixed = await here.criwctl("rm", "-f", "nobody", "one")  # the rest is done all the same
    assert mixed.code == 1
    assert json.loads(await here.ok("pods", "-o", "json"))["items"] == []


async def test_a_log_is_followed_over_the_death_of_the_supervisor(here: Host) -> None:
    await here.criwctl("pull", here.busybox)
    script = "trap 'exit 0' TERM; i=0; while true; do echo $i; i=$((i + 1)); sleep 0.05; done"
    await here.ok("run", "-d", "--name", "counter", here.busybox, "sh", "-c", script)
    process = await here.start("logs", "-f", "counter")
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), LIMIT_S) == b"0\n"
    os.kill(int((here.crew.config.state_dir("supervisor") / "0.lock").read_text()), signal.SIGKILL)
    for number in range(1, 30):
        assert await asyncio.wait_for(process.stdout.readline(), LIMIT_S) == b"%d\n" % number
    await here.ok("stop", "counter")
    done = await end(process)
    assert (done.code, done.err) == (0, "")


async def test_the_status_of_the_crew(here: Host) -> None:
    assert (await here.ok("status")).count("serving") == len(AGENTS)
    told = json.loads(await here.ok("status", "-o", "json"))
    assert [agent["health"] for agent in told["agents"]] == ["serving"] * len(AGENTS)
    assert all(agent["version"] for agent in told["agents"])
    assert told["version"]["runtimeApiVersion"] == "v1"
    conditions = {each["type"]: each["status"] for each in told["status"]["status"]["conditions"]}
    assert conditions["RuntimeReady"] is conditions["NetworkReady"] is True

    image_agent = int((here.crew.config.state_dir("image") / "0.lock").read_text())
    os.kill(image_agent, signal.SIGSTOP)
    try:
        ill = await here.criwctl("status")
    finally:
        os.kill(image_agent, signal.SIGCONT)
    assert ill.code == 1
    assert "does not answer" in ill.out
