"""Linux capabilities of a container (capabilities(7))."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from criw.errors import InvalidArgument

# In the order of their numbers.
ALL: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip

# What containerd and Docker give a container by default.
DEFAULT: Final = frozenset(
    {"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
     "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}
)  # fmt: skip


def bounding_set(status: str) -> frozenset[str]:
    """The capabilities in the bounding set of the process whose /proc/PID/status this is (proc(5)).

    No container can have another one than our own process has there.
    """
    mask = int(next(line for line in status.splitlines() if line.startswith("CapBnd:")).split()[1], 16)
    return frozenset(name for number, name in enumerate(ALL) if mask >> number & 1)


@dataclass(frozen=True)
class Asked:
    """Names with or without the CAP_ prefix; "ALL" may be in `add` and `drop`, and single names win over it."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


def effective(asked: Asked, *, privileged: bool, held: frozenset[str]) -> frozenset[str]:
    """A container's capabilities, without the CAP_ prefix.

    Raises InvalidArgument for a name that is no capability. One that this process lacks itself is left out.
    """
    if privileged:
        return held
    adding, dropping = {_name(text) for text in asked.add}, {_name(text) for text in asked.drop}
    result = set(ALL) if "ALL" in adding else set(DEFAULT)
    if "ALL" in dropping:
        result = set()
    result |= adding - {"ALL"}
    result -= dropping - {"ALL"}
    return frozenset(result) & held


def _name(text: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if name != "ALL" and name not in ALL:
        raise InvalidArgument(f"cannot add or drop capability {text}: there is no such capability")
    return name


def oci(names: frozenset[str], ambient: Sequence[str]) -> dict[str, list[str]]:
    """The `process.capabilities` object. Raises InvalidArgument for an ambient capability that is not held."""
    ordered = [f"CAP_{name}" for name in ALL if name in names]
    raised = [f"CAP_{_name(text)}" for text in ambient]
    if missing := set(raised) - set(ordered):
        raise InvalidArgument(f"cannot raise ambient capabilities {sorted(missing)}: the container does not have them")
    result = {"bounding": ordered, "effective": ordered, "permitted": ordered}
    return result | {"inheritable": raised, "ambient": raised} if raised else result
