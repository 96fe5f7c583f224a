"""Which programs are awaited at start: runtimes, and nothing in a container, whatever it calls itself."""

import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from criw.ids import new_id
from criw_supervisor.cgroups.hierarchies import Cgroups, of_host
from criw_supervisor.recovery import leftovers
from criw_supervisor.recovery.leftovers import await_runtimes, end_commands
from criw_supervisor.runtimes.bundle import Bundle

WAITS = "import sys; sys.stdin.read()"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / new_id())
    made.directory.mkdir()
    return made


def program(*words: str) -> subprocess.Popen[bytes]:
    """A program with these words in its command line, until its standard input is closed."""
    said = "print(1, flush=True); " + WAITS
    process = subprocess.Popen([sys.executable, "-c", said, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


async def test_a_start_that_is_under_way_is_waited_for_and_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    container_id = new_id()
    starting = program("--root", "/r", "start", container_id)
    other = program("--root", "/r", "start", new_id())
    monkeypatch.setattr(leftovers, "_LIMIT_S", 0.05)
    await await_runtimes([container_id], [], known=[container_id])
    assert starting.wait(10) == -signal.SIGKILL
    assert other.poll() is None
    other.communicate()
    starting.communicate()


async def test_a_runtime_that_runs_a_command_is_waited_for_and_then_killed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in bundle.exec_files("abc"):
        path.touch()
    working = program("exec", "--process", str(bundle.exec_files("abc")[0]))
    monkeypatch.setattr(leftovers, "_LIMIT_S", 0.05)
    await await_runtimes([], [bundle], known=[bundle.directory.name])
    assert working.wait(10) == -signal.SIGKILL
    working.communicate()


@pytest_asyncio.fixture
async def container(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Cgroups, str]]:
    host = of_host()
    if not host.directories("/"):
        pytest.skip("no cgroups are mounted here")
    parent = f"/criw-unit-{secrets.token_hex(3)}"
    cgroup = f"{parent}/{new_id()}"
    host.create(cgroup)
    yield host, cgroup
    await host.kill(cgroup)
    await host.remove(parent)


@pytest.mark.root
async def test_a_process_of_a_container_is_not_waited_for_whatever_it_calls_itself(
    container: tuple[Cgroups, str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, cgroup = container
    created = new_id()
    for path in bundle.exec_files("abc"):
        path.touch()
    liars = [program("start", created), program("exec", str(bundle.exec_files("abc")[0]))]
    for directory in host.directories(cgroup):
        for liar in liars:
            (directory / "cgroup.procs").write_text(str(liar.pid))
    looks: list[float] = []

    async def look_once(limit_s: float, look: Callable[[], list[int]]) -> list[int]:
        looks.append(limit_s)
        return look()

    monkeypatch.setattr(leftovers, "until_gone", look_once)
    await await_runtimes([created], [bundle], known=[created, cgroup.rpartition("/")[2]])
    assert len(looks) == 1
    assert [liar.poll() for liar in liars] == [None, None]
    for liar in liars:
        liar.communicate()


@pytest.mark.root
async def test_commands_left_in_a_container_are_ended_and_no_stranger_that_has_such_a_pid(
    container: tuple[Cgroups, str], bundle: Bundle
) -> None:
    host, cgroup = container
    inside, outside = (subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2))
    for directory in host.directories(cgroup):
        (directory / "cgroup.procs").write_text(str(inside.pid))
    for token, text in (("a", str(inside.pid)), ("b", str(outside.pid)), ("c", "")):
        bundle.exec_files(token)[1].write_text(text)
    await end_commands(bundle, cgroup, host)
    assert inside.wait(10) == -signal.SIGKILL
    assert outside.poll() is None
    assert bundle.all_exec_files() == []
    outside.kill()
    outside.wait()
