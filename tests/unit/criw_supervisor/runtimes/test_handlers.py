"""Which handlers there are and which work."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from criw.config.supervisor import Runtime, SupervisorSection
from criw.errors import FailedPrecondition
from criw.kernel import PR_SET_CHILD_SUBREAPER, prctl
from criw.rpc.client import Channel
from criw_proto.criw.network.v1 import NetworkStub
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups.hierarchies import parse
from criw_supervisor.ledger.places import Places
from criw_supervisor.peers.network import Network
from criw_supervisor.rpc import RuntimeRpc
from criw_supervisor.runtimes.handlers import Handlers, probe_handlers
from criw_supervisor.runtimes.oci import OciHandler

CGROUPS = parse(b"")


@pytest.fixture
def subreaper() -> Iterator[None]:
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0)


def handler(tmp_path: Path, name: str = "runc") -> OciHandler:
    runtime = Runtime(path=Path("runc"))
    return OciHandler(
        name, runtime, monitor="/usr/bin/conmon", monitors="/criw/conmon", places=Places(tmp_path), cgroups=CGROUPS
    )


def test_a_request_gets_a_handler_that_works(tmp_path: Path) -> None:
    runc, crun = handler(tmp_path), handler(tmp_path, "crun")
    handlers = Handlers({"crun": crun, "runc": runc}, {"crun": "cgroups in hybrid mode"}, "runc")
    assert handlers.get("") is runc
    assert handlers.get("runc") is runc
    assert handlers.working == ["runc"]
    with pytest.raises(FailedPrecondition, match=r"crun: cgroups in hybrid mode; working handlers: runc"):
        handlers.get("crun")
    with pytest.raises(FailedPrecondition, match=r"kata: it is not configured"):
        handlers.get("kata")
    assert handlers.of_record("crun") is crun  # what it made before must still be stopped
    with pytest.raises(FailedPrecondition, match="gone: it is not configured"):
        handlers.of_record("gone")


def test_without_a_working_handler_the_default_is_refused(tmp_path: Path) -> None:
    handlers = Handlers({"runc": handler(tmp_path)}, {"runc": "it is broken"}, "")
    with pytest.raises(FailedPrecondition, match=r"\(default\): runc: it is broken; working handlers: none"):
        handlers.get("")


async def test_a_runtime_that_is_not_installed_is_broken_and_says_so(tmp_path: Path) -> None:
    section = SupervisorSection(conmon=Path("/bin/sh"), runtimes={"nope": Runtime(path=Path("/nowhere/nope"))})
    handlers = await probe_handlers(section, Places(tmp_path), CGROUPS)
    assert handlers.broken == {"nope": "/nowhere/nope is not installed"}
    assert (handlers.working, handlers.default) == ([], "")


async def test_a_runtime_that_fails_is_broken_and_says_why(tmp_path: Path) -> None:
    program = tmp_path / "fails"
    program.write_text("#!/bin/sh\necho cannot do that here >&2\nexit 1\n")
    program.chmod(0o755)
    section = SupervisorSection(conmon=Path("/bin/sh"), runtimes={"fails": Runtime(path=program)})
    handlers = await probe_handlers(section, Places(tmp_path), CGROUPS)
    assert handlers.broken == {"fails": "cannot do that here"}
    assert list((tmp_path / "runtime").glob("probe-*")) == []


OLD = """\
#!/bin/sh
test "$*" = --version && printf 'runc version 1.1.5+ds1\\ncommit: x\\n'
exit 0
"""


async def test_a_runtime_with_known_holes_works_and_they_are_told(tmp_path: Path) -> None:
    program = tmp_path / "runc"
    program.write_text(OLD)
    program.chmod(0o755)
    section = SupervisorSection(conmon=Path("/bin/sh"), runtimes={"old": Runtime(path=program)})
    handlers = await probe_handlers(section, Places(tmp_path), CGROUPS)
    assert handlers.working == ["old"]
    rpc = RuntimeRpc(section, Places(tmp_path), handlers, Network(NetworkStub(Channel(tmp_path / "none"))), [], {})
    reply = await rpc.status(cri.StatusRequest(verbose=True))
    assert reply.status is not None
    told = {one.type: (one.status, one.message) for one in reply.status.conditions}
    assert told["RuntimeReady"] == (True, "")
    assert told["NoKnownVulnerabilities"] == (False, f"old: {handlers.vulnerable['old']}")
    assert "CVE-2026-41579" in told["NoKnownVulnerabilities"][1]


HOLDS_ITS_OUTPUT = """\
#!/bin/sh
# Like a runtime that checks the program only at start: create succeeds, and its init waits with its output.
case "$*" in
    *create*) mkdir -p {state}/"$(eval echo \\${{$#}})"; sleep 600 & echo $! > {pid} ;;
    *delete*) kill "$(cat {pid})"; exit {code} ;;
esac
"""


@pytest.mark.parametrize(("code", "broken"), [(0, {}), (1, {"waits": "cannot delete container probe-"})])
async def test_a_runtime_whose_init_waits_with_its_output_works(
    tmp_path: Path, code: int, broken: dict[str, str], subreaper: None
) -> None:
    program, pid = tmp_path / "waits", tmp_path / "pid"
    program.write_text(HOLDS_ITS_OUTPUT.format(state=Places(tmp_path).runtime("waits"), pid=pid, code=code))
    program.chmod(0o755)
    section = SupervisorSection(conmon=Path("/bin/sh"), runtimes={"waits": Runtime(path=program)})
    async with asyncio.timeout(10):
        handlers = await probe_handlers(section, Places(tmp_path), CGROUPS)
    assert handlers.broken.keys() == broken.keys()
    assert all(handlers.broken[name].startswith(why) for name, why in broken.items())
    os.waitpid(int(pid.read_text()), 0)


async def test_without_conmon_there_is_no_supervisor(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="/nowhere/conmon is missing; install the package conmon"):
        await probe_handlers(SupervisorSection(conmon=Path("/nowhere/conmon")), Places(tmp_path), CGROUPS)
