import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from criw.errors import FailedPrecondition
from criw_supervisor import processes
from criw_supervisor.processes import command_line, kill_family, send_signal, start_time

NO_PID = 2**22 + 1  # above the kernel's highest


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


def test_a_process_is_told_by_its_start_time() -> None:
    ours = start_time(os.getpid())
    assert ours > 0
    assert start_time(NO_PID) == 0
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) == 0  # a zombie
    assert command_line(child.pid) == []
    child.wait()


def test_a_command_line_with_odd_words() -> None:
    odd = ["a b", "", "ŵ", os.fsdecode(b"\xff")]
    child = subprocess.Popen(["sh", "-c", "echo; read x", *odd], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()  # it runs, so that exec is done with its arguments
    assert command_line(child.pid) == ["sh", "-c", "echo; read x", *odd]
    child.communicate()
    assert command_line(NO_PID) == []


def test_a_signal_reaches_the_process_that_is_meant() -> None:
    child = subprocess.Popen(["sleep", "600"])
    started = start_time(child.pid)
    assert not send_signal(child.pid, started + 1, signal.SIGKILL)  # another had this pid
    assert child.poll() is None
    assert send_signal(child.pid, started, signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert not send_signal(child.pid, started, signal.SIGKILL)
    assert not send_signal(NO_PID, 1, signal.SIGKILL)


def test_signalling_leaves_no_descriptor() -> None:
    before = descriptors()
    send_signal(os.getpid(), start_time(os.getpid()) + 1, signal.SIGKILL)
    send_signal(NO_PID, 1, signal.SIGKILL)
    assert descriptors() == before


FAMILY = """
import os, sys, time
def tell(what):
    with open(sys.argv[1], "a") as file: file.write(f"{os.getpid()}\\n")
tell("leader")
if os.fork() == 0:                      # a child
    tell("child")
    if os.fork() == 0:                  # a grandchild in a session of its own
        os.setsid()
        tell("grandchild")
        if os.fork() == 0:              # whose child has lost it
            os.setpgid(0, 0)
            tell("orphan to be")
            time.sleep(600)
        time.sleep(600)
    time.sleep(600)
if os.fork() == 0:                      # one whose parent is gone, in the leader's session
    if os.fork() == 0:
        tell("orphan")
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""


async def test_a_command_is_killed_with_all_it_started(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    told = tmp_path / "pids"
    leader = subprocess.Popen([sys.executable, "-c", FAMILY, str(told)], start_new_session=True)
    pids = [int(line) for line in wait_for_text(told, 5)]
    await kill_family(leader.pid, processes.pids)
    assert leader.wait() == -signal.SIGKILL
    assert [pid for pid in pids if start_time(pid)] == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


async def test_a_leader_that_has_ended_does_not_save_its_children(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    script = 'sleep 600 & echo $! >> "$1"'
    leader = subprocess.Popen(["sh", "-c", script, "sh", str(told)], start_new_session=True)
    leader.wait()
    (pid,) = (int(line) for line in wait_for_text(told, 1))
    assert start_time(pid)
    await kill_family(leader.pid, processes.pids)
    assert start_time(pid) == 0


async def test_nothing_to_kill_is_a_success() -> None:
    await kill_family(NO_PID, processes.pids)


def test_a_pid_namespace_is_that_of_the_process_meant_or_of_none() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        started = processes.start_time(process.pid)
        own = Path("/proc/self/ns/pid").readlink()
        try:
            with processes.pid_namespace(process.pid, started) as path:
                process.kill()
                process.wait()
                assert Path(path).readlink() == own  # also when the process is no more, whoever has its pid now
            assert not Path(path).exists() or Path(path).readlink() != own
        finally:
            process.kill()
    with (
        pytest.raises(FailedPrecondition, match="it has ended"),
        processes.pid_namespace(os.getpid(), processes.start_time(os.getpid()) - 1),  # another had the pid
    ):
        pass
    with pytest.raises(FailedPrecondition, match="it has ended"), processes.pid_namespace(process.pid, started):
        pass
