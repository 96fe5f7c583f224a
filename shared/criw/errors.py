"""The errors raised on purpose.

Messages begin with "cannot", name the object and say what to do. Domain code raises these and knows no gRPC: they
become statuses in `criw.rpc.faults`.
"""

import errno
from typing import Final


class Fault(Exception):  # noqa: N818 — they are named by what the caller learns, as gRPC names them
    """Base of every error raised on purpose; one direct subclass per row of `criw.rpc.faults.STATUS`."""


class InvalidArgument(Fault):
    """The request is wrong; repeating it will not help."""


class NotFound(Fault):
    """The object named does not exist."""


class AlreadyExists(Fault):
    """The name, port or directory is taken by something else."""


class FailedPrecondition(Fault):
    """A right request in the wrong state."""


class ResourceExhausted(Fault):
    """Disk, addresses or another finite thing ran out."""


class PermissionDenied(Fault):
    """Credentials are missing, wrong or not enough."""


class DeadlineExceeded(Fault):
    """It took longer than the caller allowed."""


class Unavailable(Fault):
    """Something needed cannot be reached now; trying again later may help."""


class DataLoss(Fault):
    """Bytes are not what their digest promised."""


class Unimplemented(Fault):
    """A call or an option Criw does not have yet."""


class Failed(Fault):
    """An operation failed for a cause the user must read: the message is all that matters (UNKNOWN for the kubelet)."""


_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def fault_of_os_error(err: OSError) -> Fault | None:
    """A fault for the kernel errors that are the machine's state rather than a bug: a full disk. None for others."""
    if err.errno in _NO_SPACE:
        where = f" on {err.filename}" if err.filename else ""
        return ResourceExhausted(f"cannot write{where}: no space left on the device; free some and try again")
    return None
