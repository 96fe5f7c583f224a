"""What is done in the network namespaces of pods, each of which is pinned at a file named after its pod.

These functions block; those that change the namespace of their thread say so and belong in `kernel.in_fresh_thread`.
"""

import contextlib
import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from criw import kernel, namespaces
from criw.errors import InvalidArgument
from criw_network.netlink import links
from criw_network.netlink.socket import Netlink

_LOOPBACK: Final = 1  # the first link of every namespace
_SYSCTL: Final = re.compile(r"net(\.[A-Za-z0-9_-]+)+")
_PROC_SYS: Final = Path("/proc/sys")


def create(pin: Path) -> None:
    """Make a namespace with loopback up and pin it. Changes the thread's namespace.

    No interface that comes into it listens to router advertisements: any pod on the same network may send some, and
    be the way of all others to the world (CVE-2020-10749).
    """
    kernel.unshare(kernel.CLONE_NEWNET)
    namespaces.pin("net", pin)
    for interface in ("all", "default"):
        set_ipv6(interface, accept_ra=0)
    with Netlink() as netlink:
        netlink.run(links.set_up(_LOOPBACK))


def set_ipv6(interface: str, **settings: int) -> None:
    """Write settings of an interface of the thread's namespace; a kernel without IPv6 needs none."""
    for name, value in settings.items():
        with contextlib.suppress(FileNotFoundError):
            (_PROC_SYS / "net/ipv6/conf" / interface / name).write_text(str(value), encoding="ascii")


def enter(pin: Path) -> None:
    """Go into the pinned namespace. Changes the thread's namespace."""
    with pin.open("rb") as file:
        kernel.setns(file.fileno(), kernel.CLONE_NEWNET)


def check_sysctls(sysctls: Mapping[str, str]) -> None:
    """Raises InvalidArgument for a name that is not a dotted one below `net.`: others are not this agent's."""
    for name in sysctls:
        if _SYSCTL.fullmatch(name) is None:
            raise InvalidArgument(f"cannot set sysctl {name!r}: not a dotted name below net.")


def write_sysctls(sysctls: Mapping[str, str]) -> None:
    """Write `sysctls` in the thread's namespace: /proc/sys/net shows the namespace of who looks.

    Raises InvalidArgument for one the kernel does not have, does not let a namespace set, or whose value it refuses.
    """
    for name, value in sysctls.items():
        try:
            # Not created when missing; one write is one value.
            file = os.open(_PROC_SYS / name.replace(".", "/"), os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(file, value.encode())
            finally:
                os.close(file)
        except OSError as err:
            reason = "the kernel has no such setting for a pod" if err.errno == errno.ENOENT else err.strerror
            raise InvalidArgument(f"cannot set sysctl {name} to {value!r}: {reason}") from err
