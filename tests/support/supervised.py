"""A crew whose agents a test kills, starves and has fail: real ones, with a runtime that breaks when it is told to."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from criw.config.crew import Config
from criw.config.load import load
from criw_proto.runtime import v1 as cri
from support import host, images
from support.client import Client
from support.crew import Crew, running_crew
from support.registry import running_registry

_SETTLE_LIMIT_S: Final = 10.0  # conmon and the agents end what they are at when the last pod is gone
_RUNTIME = """\
#!/bin/sh
# runc, but for the commands that have a file here: it fails, or waits for it to be gone. Probes are spared.
case "$*" in *probe-*) exec {runc} "$@" ;; esac
for word in "$@"; do
    case $word in
        create|start|exec|delete|update|state)
            while test -e {directory}/hold-$word; do sleep 0.01; done
            if test -e {directory}/fail-$word; then
                echo 'level=error msg="injected failure of '$word'"' >&2
                exit 1
            fi
            if test -e {directory}/deny-$word; then
                {runc} "$@"
                exit 1
            fi
            break ;;
    esac
done
exec {runc} "$@"
"""


class Traces:
    """Where a crew leaves its traces on the host, for `support.host`."""

    def __init__(self, config_path: Path) -> None:
        self.directory = config_path.parent
        self.config = load(Config, config_path, environ={})

    @property
    def cgroup_parent(self) -> str:
        return self.config.supervisor.cgroup_parent


class Brittle:
    """The crew's only runtime handler: runc, until it is told that one of its commands fails or waits."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self.program = directory / "brittle"
        self.program.write_text(_RUNTIME.format(directory=directory, runc=shutil.which("runc")))
        self.program.chmod(0o755)

    @contextlib.contextmanager
    def failing(self, command: str) -> Iterator[None]:
        with self._having(f"fail-{command}"):
            yield

    @contextlib.contextmanager
    def holding(self, command: str) -> Iterator[None]:
        with self._having(f"hold-{command}"):
            yield

    @contextlib.contextmanager
    def denying(self, command: str) -> Iterator[None]:
        """The command does its work and says that it failed."""
        with self._having(f"deny-{command}"):
            yield

    @contextlib.contextmanager
    def _having(self, name: str) -> Iterator[None]:
        (self._directory / name).touch()
        try:
            yield
        finally:
            (self._directory / name).unlink()


class Supervised:
    """`client` talks to the crew's door; `image` is busybox, pulled."""

    def __init__(self, crew: Crew, runtime: Brittle, client: Client, image: str) -> None:
        self.crew = crew
        self.runtime = runtime
        self.client = client
        self.image = image

    async def kill_supervisor(self) -> None:
        await self.crew.kill("supervisor")

    async def start_supervisor(self) -> None:
        await self.crew.start("supervisor")

    @property
    def run(self) -> Path:
        """The supervisor's directory in `run`."""
        return self.crew.config.run_dir("supervisor")

    async def info(self, container_id: str) -> Mapping[str, Any]:
        """The verbose part of a container's status."""
        return await info(self.client, container_id)


async def info(client: Client, container_id: str) -> Mapping[str, Any]:
    reply = await client.runtime.container_status(cri.ContainerStatusRequest(container_id=container_id, verbose=True))
    found: Mapping[str, Any] = json.loads(reply.info["info"])
    return found


def complaints(directory: Path) -> list[str]:
    """Errors the supervisor and the door have logged: what was not foreseen."""
    return [
        line
        for agent in ("supervisor", "cri")
        for line in (directory / f"{agent}.log").read_text().splitlines()
        if " ERROR " in line or line.startswith("Traceback")
    ]


@contextlib.asynccontextmanager
async def running_supervised(directory: Path, extra_toml: str = "") -> AsyncIterator[Supervised]:
    """A crew for the tests of a module, each of which gets it from `lent()`; nothing is left on the host at the end."""
    runtime = Brittle(directory / "runtime")
    async with running_registry() as registry:
        reference = await registry.push("library/busybox:latest", images.busybox())
        toml = (
            f'drain_timeout_s = 1\n[image.registries."{registry.address}"]\nplain_http = true\n'
            f'[supervisor.runtimes.brittle]\npath = "{runtime.program}"\n{extra_toml}'
        )
        async with running_crew(extra_toml=toml) as crew:
            client = Client(crew.channel("cri"), crew.directory / "logs", name="module")
            try:
                yield Supervised(crew, runtime, client, await client.pull(reference))
            finally:
                await crew.start_missing()
                await client.remove_image(reference)


@contextlib.asynccontextmanager
async def lent(supervised: Supervised) -> AsyncIterator[Supervised]:
    """The module's crew for one test, which may kill its agents: it finds all of them running, and their logs empty.

    What the test has not removed is removed at the end, through the CRI, and the host must be as it was.
    """
    crew = supervised.crew
    await crew.start_missing()
    for agent in crew.agents:
        crew.log_path(agent).write_bytes(b"")
    before = _besides_agents(crew)
    client = Client(crew.channel("cri"), crew.directory / "logs", name=f"test-{time.monotonic_ns()}")
    try:
        yield Supervised(crew, supervised.runtime, client, supervised.image)
        assert complaints(crew.directory) == []
    finally:
        await crew.start_missing()
        await client.remove_all()
        shutil.rmtree(crew.directory / "logs", ignore_errors=True)
    until = time.monotonic() + _SETTLE_LIMIT_S
    while (left := _besides_agents(crew)) != before:
        assert time.monotonic() < until, f"left: {left - before}, lost: {before - left}"
        await asyncio.sleep(0.02)


def _besides_agents(crew: Crew) -> set[str]:
    """What is on the host, but for agents, and what the network agent keeps from its first pod on."""
    agents = tuple(f"process {process.pid}:" for process in crew.processes.values())
    kept = {f"link {crew.config.network.bridge}", *host.rules(crew)}
    return {line for line in host.contents(crew) if not line.startswith(agents)} - kept
