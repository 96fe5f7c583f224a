"""Ports and addresses a test process has to itself, though others run beside it: a share of each, taken with a lock.

The lock is the name of an abstract unix socket: like ports and addresses it belongs to the network namespace, and the
kernel gives it back with the process, however that ends.
"""

import functools
import itertools
import socket
from collections.abc import Iterator
from typing import Final

_SHARES: Final = 64
_FIRST_PORT: Final = 20_000  # below the kernel's own choice, and below the ports tests write out: 28,000 and more
_PORTS_EACH: Final = 125


@functools.cache
def _share() -> tuple[int, socket.socket]:
    """The number of our share, and what holds it until the process ends."""
    for number in range(_SHARES):
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0criw-tests-{number}")
        except OSError:
            lock.close()
        else:
            return number, lock
    raise AssertionError(f"cannot have a share of the ports: {_SHARES} test processes run already")


@functools.cache
def _ports() -> Iterator[int]:
    first = _FIRST_PORT + _share()[0] * _PORTS_EACH
    return itertools.cycle(range(first, first + _PORTS_EACH))


@functools.cache
def _numbers() -> Iterator[int]:
    return itertools.cycle(range(256))


def free_port() -> int:
    """A port of ours on which nobody listens; comes again after many others."""
    for port in itertools.islice(_ports(), _PORTS_EACH):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"cannot find a free port: all {_PORTS_EACH} of this test process are taken")


def ranges() -> tuple[str, str]:
    """An IPv4 and an IPv6 range of ours in which no crew has its pods; they come again after 255 others."""
    share = _share()[0]
    for number in itertools.islice(_numbers(), 256):
        if not _is_here(f"10.{64 + share}.{number}.1"):
            return f"10.{64 + share}.{number}.0/24", f"fd77:{share + 1:x}:{number + 1:x}::/64"
    raise AssertionError("cannot find a free range: all 256 of this test process are taken")


def _is_here(address: str) -> bool:
    """Whether the host has this address: a crew outlives the process whose share it had with `KEEP=1 make demo`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
