import asyncio
import subprocess
from pathlib import Path
from unittest.mock import Mock

from criw_supervisor.monitors import Monitors
from criw_supervisor.pod import Container


def container(directory: Path, conmon: int | str) -> Container:
    (directory / "conmon.pid").write_text(str(conmon))
    return Mock(spec=Container, bundle=directory)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_the_end_of_a_conmon_is_told_and_it_is_reaped(tmp_path: Path) -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    monitors, watched, before = Monitors(), container(tmp_path, process.pid), descriptors()
    monitors.watch(watched)
    await asyncio.sleep(0)
    assert monitors.ended.empty()
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(monitors.ended.get(), 5) is watched
    assert not Path(f"/proc/{process.pid}").exists()  # no zombie
    assert descriptors() == before - 1  # that of our own pipe
    process.wait()


async def test_a_conmon_that_is_gone_is_told_at_once(tmp_path: Path) -> None:
    monitors = Monitors()
    process = subprocess.Popen(["true"])
    process.wait()
    for conmon in (process.pid, "", "nonsense"):
        watched = container(tmp_path, conmon)
        monitors.watch(watched)
        assert monitors.ended.get_nowait() is watched
    (tmp_path / "conmon.pid").unlink()
    monitors.watch(watched)
    assert monitors.ended.get_nowait() is watched


async def test_closing_gives_back_all_descriptors(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "600"])
    monitors, before = Monitors(), descriptors()
    for _ in range(3):
        monitors.watch(container(tmp_path, process.pid))
    assert descriptors() == before + 3
    monitors.close()
    monitors.close()
    assert descriptors() == before
    process.kill()
    process.wait()
    await asyncio.sleep(0)
    assert monitors.ended.empty()
