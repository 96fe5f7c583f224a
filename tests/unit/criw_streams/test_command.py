"""Commands of a handler that is no container runtime: all that exec needs of one is in the description of a command.

`start` is a script that leaves a plain process behind, with a pid file and a terminal's other end, as runtimes do.
"""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import pytest
import pytest_asyncio

from criw import orphans
from criw.kernel import PR_SET_CHILD_SUBREAPER, prctl
from criw_proto.criw.streams.v1 import Command, Ends
from support.sessions import Server
from support.streaming import (
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Opener,
    Remote,
    over_spdy,
    read_all,
    read_until,
    status,
)

PROGRAM = """\
import fcntl, os, socket, sys, termios
process, pid_file, *console = sys.argv[1:]
with open(process) as file:  # it is gone when this program has ended
    script = file.read()
if console:
    ours, theirs = os.openpty()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(console[0])
        socket.send_fds(connection, [b"/dev/ptmx"], [ours])
pid = os.fork()
if pid == 0:
    if console:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        for fd in range(3):
            os.dup2(theirs, fd)
    os.execvp("sh", ["sh", "-c", script])
with open(pid_file, "w") as file:
    print(pid, file=file)
"""
Described: TypeAlias = Callable[..., Command]


@pytest_asyncio.fixture
async def described(tmp_path: Path) -> AsyncIterator[Described]:
    """Makes commands of a shell script; nothing of theirs is left in their directory, nor as a process."""
    numbers = itertools.count()

    def describe(script: str, *, stdin: bool = False, tty: bool = False, start: list[str] | None = None) -> Command:
        stem = tmp_path / f"exec-{next(numbers)}"
        files = [os.fspath(stem.with_suffix(suffix)) for suffix in (".json", ".pid", ".tty")]
        return Command(
            ends=Ends(stdin=stdin, stdout=True, stderr=not tty, terminal=tty),
            container_id="c",
            start=start or [sys.executable, "-SEc", PROGRAM, *files[: 3 if tty else 2]],
            process_file=files[0],
            process=script.encode(),
            pid_file=files[1],
            console_socket=files[2] if tty else "",
            oom_score_adj=123,
        )

    orphans.become_subreaper()
    reaping = asyncio.create_task(orphans.reap_strays())
    try:
        yield describe
    finally:
        reaping.cancel()
        prctl(PR_SET_CHILD_SUBREAPER, 0)
    async with asyncio.timeout(10):
        while list(tmp_path.glob("exec-*")):  # the session's end is told before its files are removed
            await asyncio.sleep(0.01)


async def ended_with(remote: Remote) -> int:
    told = await status(remote)
    return 0 if told["status"] == "Success" else int(told["details"]["causes"][0]["message"])


async def reaped(pid: int) -> None:
    """Wait until a process that was left to us is gone."""
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("end", "code"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)])
async def test_outputs_and_exit_code(opened: Opener, server: Server, described: Described, end: str, code: int) -> None:
    async with opened(server.url(described(f"echo out; echo err >&2; {end}")), (STDOUT, STDERR)) as remote:
        assert await read_all(remote, STDOUT) == b"out\n"
        assert await read_all(remote, STDERR) == b"err\n"
        assert await ended_with(remote) == code


async def test_input_comes_to_its_end(opened: Opener, server: Server, described: Described) -> None:
    async with opened(server.url(described("cat", stdin=True)), (STDIN, STDOUT, STDERR)) as remote:
        await remote.send(b"hello")
        assert await read_until(remote, STDOUT, b"hello") == b"hello"
        await remote.end_input()
        assert await read_all(remote, STDOUT) == b""
        assert await ended_with(remote) == 0


async def test_without_input_there_is_none_to_wait_for(opened: Opener, server: Server, described: Described) -> None:
    async with opened(server.url(described("cat; echo end")), (STDOUT, STDERR)) as remote:
        assert await read_all(remote, STDOUT) == b"end\n"


async def test_input_that_is_not_read_is_dropped(opened: Opener, server: Server, described: Described) -> None:
    script = "exec 0<&-; read x < %s; echo end"
    fifo = Path(described("").process_file).with_name("go")
    os.mkfifo(fifo)
    async with opened(server.url(described(script % fifo, stdin=True)), (STDIN, STDOUT, STDERR)) as remote:
        await remote.send(bytes(8 * 1024 * 1024))
        await asyncio.to_thread(fifo.write_text, "\n")
        assert await read_all(remote, STDOUT) == b"end\n"
        assert await ended_with(remote) == 0


async def test_a_child_in_the_background_keeps_no_session(opened: Opener, server: Server, described: Described) -> None:
    script = "sleep 7653 & echo $!"
    async with opened(server.url(described(script)), (STDOUT, STDERR)) as remote:
        pid = int(await read_all(remote, STDOUT))
        assert await ended_with(remote) == 0
    os.kill(pid, 9)  # it is there
    await reaped(pid)


async def test_a_terminal_is_one_and_has_its_size(opened: Opener, server: Server, described: Described) -> None:
    has = "until stty size | grep '^{}'; do sleep 0.02; done"
    script = f"tty; {has.format('33 99')}; echo first; read line; {has.format('50 132')}; exit 3"
    where = server.url(described(script, stdin=True, tty=True))
    async with opened(where, (STDIN, STDOUT), tty=True) as remote:
        await remote.resize(99, 33)
        assert b"/dev/pts/" in await read_until(remote, STDOUT, b"first\r\n")
        await remote.resize(132, 50)
        await remote.send(b"\n")
        assert b"50 132\r\n" in await read_all(remote, STDOUT)
        assert await ended_with(remote) == 3


async def test_a_terminal_hangs_up_when_its_client_has_gone(
    opened: Opener, server: Server, described: Described, tmp_path: Path
) -> None:
    script = f"trap 'echo hup > {tmp_path}/hup; exit' HUP; echo $$ ready; while :; do sleep 0.05; done"
    where = server.url(described(script, stdin=True, tty=True))
    async with opened(where, (STDIN, STDOUT), tty=True) as remote:
        pid = int((await read_until(remote, STDOUT, b"ready\r\n")).split()[0])
        await remote.drop()
        await reaped(pid)
    assert (tmp_path / "hup").read_text() == "hup\n"


async def test_without_a_terminal_the_command_goes_on(
    opened: Opener, server: Server, described: Described, tmp_path: Path
) -> None:
    script = f"echo $$ ready; cat; head -c 9999999 /dev/zero; echo unread >&2; echo end > {tmp_path}/end"
    where = server.url(described(script, stdin=True))
    async with opened(where, (STDIN, STDOUT, STDERR)) as remote:
        pid = int((await read_until(remote, STDOUT, b"ready\n")).split()[0])
        await remote.drop()
        await reaped(pid)
    assert (tmp_path / "end").read_text() == "end\n"


@pytest.mark.parametrize("tty", [False, True])
async def test_what_the_program_says_of_its_failure_is_told(
    opened: Opener, server: Server, described: Described, tty: bool
) -> None:
    start = ["sh", "-c", "echo no such thing >&2; exit 1"]
    command = described("", tty=tty, start=start)
    async with opened(server.url(command), (STDOUT,) if tty else (STDOUT, STDERR), tty=tty) as remote:
        told = await status(remote)
    assert told["message"].endswith("error executing command in container: no such thing")
    assert told["reason"] == "InternalError"


@pytest.mark.parametrize(
    ("tty", "script", "complaint"),
    [
        (False, "true", "pid"),
        (False, 'echo > "$1"', "pid"),
        (True, "true", "the runtime has sent no terminal"),
    ],
)
async def test_a_program_that_does_not_keep_the_contract_is_told_of(
    opened: Opener, server: Server, described: Described, tty: bool, script: str, complaint: str
) -> None:
    command = described("", tty=tty)
    command.start = ["sh", "-c", script, command.process_file, command.pid_file]
    async with opened(server.url(command), (STDOUT,) if tty else (STDOUT, STDERR), tty=tty) as remote:
        told = await status(remote)
    assert told["reason"] == "InternalError"
    assert complaint in told["message"]


async def test_the_command_has_the_score_it_is_to_have(opened: Opener, server: Server, described: Described) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it lowers a score")
    script = "until grep -qx 123 /proc/$$/oom_score_adj; do sleep 0.01; done"
    async with opened(server.url(described(script)), (STDOUT, STDERR)) as remote:
        assert await ended_with(remote) == 0


async def test_a_stream_that_was_not_asked_for_is_none(server: Server, described: Described) -> None:
    async with over_spdy(server.url(described("cat; echo end")), (STDIN, STDOUT, STDERR, RESIZE)) as remote:
        await remote.send(b"not asked for")
        assert await read_all(remote, STDOUT) == b"end\n"
