"""What the embedded crew's process waits for: signals, the ends of its children, and what agents tell of themselves."""

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from types import FrameType
from typing import Final

_CREDENTIALS_SIZE: Final = socket.CMSG_SPACE(struct.calcsize("3i"))


class Signals:
    """Signals as something to poll for: `wakeup` is readable after one has come."""

    def __init__(self, wakeup: socket.socket) -> None:
        self.wakeup = wakeup
        self.stop = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:  # that one need only wake us up
            self.stop = True

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.wakeup.recv(4096):
                pass


def handle_signals(stack: contextlib.ExitStack) -> Signals:
    """Take over the signals a crew acts on, for the rest of this process."""
    wakeup, written = socket.socketpair()
    for end in (wakeup, written):
        end.setblocking(False)
        stack.enter_context(end)
    signals = Signals(wakeup)
    numbers = [signal.SIGCHLD, signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup(1) has the crew outlive its terminal
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, signals.handle)
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    stack.callback(signal.set_wakeup_fd, -1)
    return signals


def notify_socket(stack: contextlib.ExitStack) -> socket.socket:
    """Where the agents tell that they are ready, sd_notify(3): an abstract address, so that no file stays behind."""
    notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    notify.bind("")  # the kernel chooses one that is free: unix(7), autobind
    os.environ["NOTIFY_SOCKET"] = f"@{notify.getsockname()[1:].decode()}"
    return notify


def messages(notify: socket.socket) -> Iterator[tuple[int, str]]:
    """Sender's pid, as the kernel vouches for it, and text of each waiting message."""
    while True:
        try:
            text, ancillary, _, _ = notify.recvmsg(4096, _CREDENTIALS_SIZE)
        except BlockingIOError:
            return
        for level, kind, credentials in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                yield struct.unpack("3i", credentials)[0], text.decode(errors="replace")


def ended_children() -> Iterator[tuple[int, int]]:
    """Pid and status of each child that has ended: agents, and the orphans given to this process."""
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            yield child
