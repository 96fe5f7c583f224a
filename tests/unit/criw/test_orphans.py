import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from criw import orphans
from criw.kernel import PR_SET_CHILD_SUBREAPER, prctl
from criw.orphans import wait_adopted


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_for_text(path: Path, lines: int) -> list[str]:
    """What a process has written, as soon as it is so many lines."""
    until = time.monotonic() + 10
    while True:
        found = path.read_text().split("\n")[:-1] if path.exists() else []
        if len(found) >= lines:
            return found
        assert time.monotonic() < until, found
        time.sleep(0.005)


@pytest.fixture
def subreaper() -> Iterator[None]:
    orphans.become_subreaper()
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0)  # other tests' orphans are none of ours


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
async def test_an_adopted_process_tells_its_code(script: str, code: int, tmp_path: Path, subreaper: None) -> None:
    told, gate = tmp_path / "pid", tmp_path / "gate"
    gate.touch()
    child = tmp_path / "child.sh"
    child.write_text(f"while test -e {gate}; do sleep 0.01; done\n{script}\n")
    parent = subprocess.Popen(["sh", "-c", f"sh {child} & echo $! > {told}"])
    parent.wait()  # so that the child is left to us
    waiting = asyncio.create_task(wait_adopted(int(wait_for_text(told, 1)[0])))
    await asyncio.sleep(0)
    gate.unlink()
    assert await asyncio.wait_for(waiting, 10) == code


async def test_giving_up_the_wait_leaves_no_descriptor() -> None:
    child = subprocess.Popen(["sleep", "600"])
    before = descriptors()
    waiting = asyncio.create_task(wait_adopted(child.pid))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert descriptors() == before
    child.kill()
    child.wait()


async def reaped(pid: int) -> None:
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def test_strays_are_reaped_and_what_is_awaited_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_REAP_INTERVAL_S", 0.01)
    stray = os.fork()
    if stray == 0:
        os._exit(0)
    reaping = asyncio.create_task(orphans.reap_strays())
    done = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.2; exit 3")
    assert await done.wait() == 3
    await reaped(stray)
    reaping.cancel()


@pytest.mark.root
async def test_strays_of_a_pid_namespace_are_reaped_without_delay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, subreaper: None
) -> None:
    monkeypatch.setattr(orphans, "_REAP_INTERVAL_S", 0.01)
    monkeypatch.setattr(orphans, "_PATIENCE", 10**9)
    ours = os.fork()
    if ours == 0:
        os._exit(0)
    gate, told = tmp_path / "gate", tmp_path / "pid"
    gate.touch()
    script = f"while test -e {gate}; do sleep 0.01; done"
    parent = subprocess.Popen(["unshare", "--pid", "--fork", "sh", "-c", f"echo up > {told}; {script}"])
    wait_for_text(told, 1)
    (stray,) = (int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
    parent.kill()
    parent.wait()
    reaping = asyncio.create_task(orphans.reap_strays())
    gate.unlink()
    await reaped(stray)
    assert Path(f"/proc/{ours}").exists()
    os.waitpid(ours, 0)
    reaping.cancel()
