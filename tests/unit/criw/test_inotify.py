import subprocess
import sys
from pathlib import Path

import pytest
from asyncinotify import Mask

from criw.errors import ResourceExhausted
from criw.inotify import watching
from support.crew import python_environment

LIMIT = Path("/proc/sys/fs/inotify/max_user_instances")
# As a user of its own, so that nobody else's instances count.
EXHAUST = """
import contextlib, os, sys
from pathlib import Path
from asyncinotify import Mask
from criw.errors import ResourceExhausted
from criw.inotify import watching
os.setuid(54321)
with contextlib.ExitStack() as stack:
    try:
        for _ in range(int(sys.argv[1]) + 1):
            stack.enter_context(watching(Path("/"), Mask.MOVED_TO))
    except ResourceExhausted as err:
        print(err)
"""


async def test_a_file_that_is_renamed_into_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "draft").touch()
    with watching(tmp_path, Mask.MOVED_TO) as events:
        (tmp_path / "draft").rename(tmp_path / "a name")
        event = await events.get()
    assert (event.mask, event.name) == (Mask.MOVED_TO, Path("a name"))


def test_what_cannot_be_watched_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"), watching(tmp_path / "nothing", Mask.MOVED_TO):
        pass


def test_an_error_of_the_block_is_not_taken_for_one_of_the_watch(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full") as caught, watching(tmp_path, Mask.MOVED_TO):
        raise OSError(28, "full")
    assert not isinstance(caught.value, ResourceExhausted)


@pytest.mark.root
def test_a_user_who_may_watch_no_more_is_told_which_limit_to_raise() -> None:
    argv = [sys.executable, "-c", EXHAUST, LIMIT.read_text().strip()]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=python_environment())
    assert done.stdout == "cannot watch /: raise fs.inotify.max_user_instances, which is reached\n", done.stderr


async def test_it_is_told_when_the_kernel_lost_events(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    here, there = tmp_path / "here", tmp_path / "there"
    here.touch()
    with watching(tmp_path, Mask.MOVED_TO) as events:
        for _ in range(limit // 2 + 1):
            here.rename(there)
            there.rename(here)
        told = [await events.get() for _ in range(limit + 1)]
    assert [event.name for event in told if Mask.Q_OVERFLOW in event.mask] == [None]
