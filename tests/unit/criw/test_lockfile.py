import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from criw.errors import FailedPrecondition
from criw.lockfile import hold
from support.crew import python_environment

HOLDER = """
import sys, time
from pathlib import Path
from criw.lockfile import hold
with hold(Path(sys.argv[1]), program="criw-test"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_holder_is_named_until_it_is_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=python_environment(),
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FailedPrecondition, match=rf"{tmp_path}: another criw-test \(pid {holder.pid}\)"):
            hold(lock, program="criw-test").__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with hold(lock, program="criw-test"):
            assert lock.read_text() == f"{os.getpid()}\n"


def test_a_lock_is_given_back_at_the_end_of_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with hold(tmp_path / "lock", program="x"), pytest.raises(FailedPrecondition):
            hold(tmp_path / "lock", program="x").__enter__()


def test_a_fork_that_leaves_the_block_takes_the_lock_from_nobody(tmp_path: Path) -> None:
    held = hold(tmp_path / "lock", program="x")
    with held:
        if not (child := os.fork()):
            held.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        with pytest.raises(FailedPrecondition):
            hold(tmp_path / "lock", program="x").__enter__()
