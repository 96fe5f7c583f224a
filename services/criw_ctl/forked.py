"""An agent of the embedded crew as a fork of `criwctl up`.

The modules every agent needs are imported before the fork, so that their memory exists once; five Python
processes started apart would each hold their own copy. What makes forking sound: until then there is one thread, no
event loop, and nothing of an agent's has been built. What it costs: an upgrade of the files takes effect as a whole
when `criwctl up` is started again, for what has been imported stays.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from criw import kernel
from criw.config.common import AgentName
from criw.listener import SD_FIRST_FD

SHARED: Final = (
    "criw.locks",
    "criw.operations",
    "criw.process",
    "criw.rpc.client",
    "criw.service",  # asyncio, uvloop, grpclib, aiohttp, prometheus_client and pydantic with it
    "criw.store",
    "criw_proto.criw.image.v1",
    "criw_proto.criw.network.v1",
    "criw_proto.criw.storage.v1",
    "criw_proto.criw.streams.v1",
    "criw_proto.runtime.v1",
)


def import_shared() -> None:
    """Import what all agents need, and put it out of the collector's reach, whose marks would copy every page."""
    for name in SHARED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def fork_agent(
    agent: AgentName, argv: Sequence[str], *, listener: socket.socket | None, let_go: Callable[[], None]
) -> int:
    """Start the agent in a child process with the arguments `argv`; returns its pid.

    It is handed `listener`, if there is one (sd_listen_fds(3)). `let_go` runs in the child first and closes what is the
    parent's alone.
    """
    assert len(list(Path("/proc/self/task").iterdir())) == 1, (
        "a fork takes one thread only; locks the others hold stay locked"
    )
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # Blocked meanwhile: a signal must not meet the parent's handlers in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if not pid:
            _run(agent, argv, parent, before, listener, let_go)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _run(
    agent: AgentName,
    argv: Sequence[str],
    parent: int,
    mask: set[int | signal.Signals],
    listener: socket.socket | None,
    let_go: Callable[[], None],
) -> None:
    """The child's whole life. It ends here: unwinding would run the parent's cleanup a second time."""
    code = 1
    try:
        handed = None if listener is None else os.dup(listener.fileno())
        let_go()
        if handed is not None:
            _hand_over(handed)
        _part_from(parent, mask)
        _set_title([f"criw-{agent}", *argv])
        importlib.import_module(f"criw_{agent}.__main__").main(argv)
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else int(err.code is not None)
    except BaseException:  # noqa: BLE001 — as the interpreter does at the end of a program
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _hand_over(listener: int) -> None:
    os.dup2(listener, SD_FIRST_FD)  # after what was there has been let go
    if listener != SD_FIRST_FD:
        os.close(listener)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}


def _part_from(parent: int, mask: set[int | signal.Signals]) -> None:
    os.setsid()  # the terminal's Ctrl-C is for the parent, who stops the crew in order
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)  # it died before the line above
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)


def _set_title(argv: Sequence[str]) -> None:
    """What `ps` shows: the name, and the command line written over the parent's as far as it fits (proc(5))."""
    Path("/proc/self/comm").write_text(argv[0])
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end; 0 where the kernel hides them
    if start:
        room = end - start
        title = b"\0".join(os.fsencode(argument) for argument in argv)
        ctypes.memmove(start, title[: room - 1].ljust(room, b"\0"), room)
