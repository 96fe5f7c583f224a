"""A running crew has no more privileges than its work takes, and what one agent may do helps no other."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from criw.config.common import AgentName
from criw.errors import InvalidArgument, PermissionDenied
from criw.privileges import KEPT
from criw.rpc.client import Channel, ask
from criw_ctl.images import pull
from criw_ctl.status import take_status
from criw_proto.runtime import v1 as cri
from support import images
from support.client import Client
from support.crew import Crew, python_environment, running_crew
from support.registry import running_registry

TAKEN_OVER = Path(__file__).with_name("taken_over.py")
PERMISSION = "PermissionError"


def status(crew: Crew, agent: AgentName) -> Mapping[str, str]:
    """The kernel's words for whom an agent runs as: proc(5)."""
    text = Path(f"/proc/{crew.processes[agent].pid}/status").read_text()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def confinement(crew: Crew, agent: AgentName) -> tuple[int, int, list[str], int, int, bool]:
    """User, group, other groups, permitted and bounding capabilities, and whether it may regain any."""
    found = status(crew, agent)
    (uid,), (gid,) = set(found["Uid"].split()), set(found["Gid"].split())
    capabilities = {int(found[kind], 16) for kind in ("CapPrm", "CapEff")}
    assert len(capabilities) == 1
    bounding = int(found["CapBnd"], 16)
    return int(uid), int(gid), found["Groups"].split(), capabilities.pop(), bounding, found["NoNewPrivs"] == "0"


def mask(agent: AgentName) -> int:
    return sum(1 << capability for capability in KEPT[agent])


async def test_every_agent_runs_as_the_design_says() -> None:
    async with running_crew() as crew:
        config = crew.config
        for agent in ("cri", "image", "storage", "network"):
            kept = mask(agent)
            assert confinement(crew, agent) == (config.facts(agent).user, config.crew_gid, [], kept, kept, False), agent
        assert len({config.facts(agent).user for agent in ("cri", "image", "storage", "network")}) == 4
        assert (mask("cri"), mask("image")) == (0, 0)
        ours = int(status_of_ourselves()["CapPrm"], 16)
        uid, *_, permitted, _, regains = confinement(crew, "supervisor")
        assert (uid, permitted, regains) == (0, ours, True)


def status_of_ourselves() -> Mapping[str, str]:
    text = Path("/proc/self/status").read_text()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


async def test_an_image_agent_that_was_taken_over_gets_nothing_from_the_others() -> None:
    async with running_crew(("storage", "network", "supervisor", "cri")) as crew:
        secret = crew.directory / "secret"
        secret.write_text("of root")
        secret.chmod(0o600)
        outcomes = crew.directory / "outcomes"
        outcomes.touch()
        outcomes.chmod(0o666)
        with crew.log_path("image").open("ab") as log:
            crew.processes["image"] = await asyncio.create_subprocess_exec(
                *(sys.executable, os.fspath(TAKEN_OVER), "--config", os.fspath(crew.config_path)),
                stdout=log,
                stderr=log,
                env=python_environment()
                | {
                    "SECRET": os.fspath(secret),
                    "SUPERVISOR": str(crew.processes["supervisor"].pid),
                    "OUTCOMES": os.fspath(outcomes),
                },
            )
        await crew.wait_ready("image")
        user = crew.config.image.user
        assert confinement(crew, "image") == (user, crew.config.crew_gid, [], 0, 0, False)
        found = json.loads(outcomes.read_text())
        for what, service in (
            ("supervisor list", "runtime.v1.RuntimeService"),
            ("supervisor stop", "runtime.v1.RuntimeService"),
            ("network", "criw.network.v1.Network"),
            ("network status", "criw.network.v1.NetworkStatus"),
            ("rootfs", "criw.storage.v1.Rootfs"),
        ):
            assert found.pop(what).startswith(f"PermissionDenied: cannot let user {user} call {service}: "), what
        assert found.pop("door").startswith(f"PermissionDenied: cannot use {crew.config.socket('cri')}: ")
        for what in (
            "blob that is a link",
            "blob behind a link",
            "blob by its path",
            "blob above",
            "blob of storage's",
        ):
            assert found.pop(what).startswith("InvalidArgument: cannot read blob "), what
        for what in (
            *("read what is root's", "read another agent's state", "write in the crew's directory", "become root"),
            *("signal the supervisor", "mount", "open a raw socket", "hard link"),
        ):
            assert found.pop(what) == PERMISSION, what
        assert found == {"layers": "done", "health": "done"}  # it did reach them, and is served what is its own
        secret.unlink()
        outcomes.unlink()


@contextlib.contextmanager
def being(uid: int, gid: int) -> Iterator[None]:
    """This whole process is somebody else for a while, but for what it has open."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


async def test_a_member_of_the_doors_group_uses_the_crew_through_the_door() -> None:
    async with running_crew(extra_toml='group = "daemon"') as crew:
        as_root = await take_status(crew.config)
        assert as_root.good
        with being(65534, 1):
            assert await take_status(crew.config) == as_root
            with pytest.raises(InvalidArgument, match="NOT-A-NAME"):  # the image agent's answer
                await pull(crew.config, "NOT-A-NAME")
            with contextlib.closing(Channel(crew.config.socket("image"))) as agent, pytest.raises(PermissionDenied):
                await ask(cri.ImageServiceStub(agent).list_images, cri.ListImagesRequest())
        refusal = re.escape(f"cannot use {crew.config.socket('cri')}: permission denied")
        with being(65534, 65534), pytest.raises(PermissionDenied, match=refusal):
            await pull(crew.config, "NOT-A-NAME")


async def test_a_container_may_do_to_its_files_what_its_own_capabilities_allow() -> None:
    """overlayfs does it with those of whoever mounted the root file system: a storage agent that is not root."""
    async with running_registry() as registry:
        reference = await registry.push("test/tools:latest", images.tools())
        toml = f'[image.registries."{registry.address}"]\nplain_http = true\n'
        async with running_crew(extra_toml=toml) as crew:
            assert confinement(crew, "storage")[0] == crew.config.storage.user != 0
            client = Client(crew.channel("cri"), crew.directory / "logs", name="files")
            image = await client.pull(reference)
            pod = await client.run_pod()
            capable = cri.LinuxContainerSecurityContext(
                capabilities=cri.Capability(add_capabilities=["LINUX_IMMUTABLE", "MKNOD", "SETFCAP"])
            )
            container = await client.create(pod, image, security=capable)
            await client.start(container)

            async def sh(script: str) -> list[str]:
                return (await client.output(container, "sh", "-ec", script)).split("\n")[:-1]

            # Files of the image, which are copied up first, and new ones.
            for path in ("/etc/group", "/new"):
                assert await sh(f"touch {path}; chown 33:1000 {path}; stat -c '%u %g' {path}") == ["33 1000"]
                assert await sh(f"chmod 6755 {path}; stat -c %a {path}") == ["6755"]
                assert await sh(f"setcap cap_net_raw+ep {path}; getcap {path}") == [f"{path} cap_net_raw=ep"]
            assert await sh("mknod /null c 1 3; echo lost > /null; stat -c '%F %t %T' /null") == [
                "character special file 1 3"
            ]
            assert await sh("mkdir -m 2775 /ours; chgrp 1000 /ours; touch /ours/f; stat -c %g /ours/f") == ["1000"]
            # What belongs to others, or that nobody may touch.
            assert await sh("mkdir /closed; echo x > /closed/f; chown -R 33 /closed; chmod 0 /closed /closed/f") == []
            assert await sh("cat /closed/f; rm -r /closed; ls / | grep -c closed || true") == ["x", "0"]
            assert await sh("rm -r /home; ls -d /home 2>&1 || true") == ["ls: /home: No such file or directory"]
            assert await sh("chattr +i /new; rm /new 2>&1 || true; chattr -i /new; rm /new; ls /new 2>&1 || true") == [
                "rm: can't remove '/new': Operation not permitted",
                "ls: /new: No such file or directory",
            ]
            # A file stays the same one when it is copied up, as programs that watch one rely on.
            before, after = await sh("stat -c %i /etc/passwd; echo >> /etc/passwd; stat -c %i /etc/passwd")
            assert before == after

            await client.remove_all()
            await client.remove_image(reference)
            shutil.rmtree(crew.directory / "logs")
