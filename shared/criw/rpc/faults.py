"""The one translation of errors: a fault becomes a status where a call is answered, and a fault again at its caller."""

import logging
from collections.abc import Mapping
from typing import Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from criw.errors import (
    AlreadyExists,
    DataLoss,
    DeadlineExceeded,
    Failed,
    FailedPrecondition,
    Fault,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    fault_of_os_error,
)

log = logging.getLogger(__name__)

STATUS: Final[Mapping[type[Fault], Status]] = {
    InvalidArgument: Status.INVALID_ARGUMENT,
    NotFound: Status.NOT_FOUND,
    AlreadyExists: Status.ALREADY_EXISTS,
    FailedPrecondition: Status.FAILED_PRECONDITION,
    ResourceExhausted: Status.RESOURCE_EXHAUSTED,
    PermissionDenied: Status.PERMISSION_DENIED,
    DeadlineExceeded: Status.DEADLINE_EXCEEDED,
    Unavailable: Status.UNAVAILABLE,
    DataLoss: Status.DATA_LOSS,
    Unimplemented: Status.UNIMPLEMENTED,
    Failed: Status.UNKNOWN,
}

_FAULT: Final[Mapping[Status, type[Fault]]] = {status: fault for fault, status in STATUS.items()}
BROKEN: Final = (StreamTerminatedError, ConnectionError)  # what became of the call is not known
FAILURES: Final = (GRPCError, TimeoutError, *BROKEN)  # all that a call through a stub may raise


def status_of(fault: Fault) -> Status:
    """The gRPC status of a fault, or of the one it is a special case of."""
    return next((STATUS[kind] for kind in type(fault).__mro__ if kind in STATUS), Status.UNKNOWN)


def as_status(err: Exception, path: str) -> GRPCError:
    """The status of whatever a call to `path` failed with. What is not ours to tell is logged, and said to be there."""
    while isinstance(err, ExceptionGroup):  # of a TaskGroup: its first error is the cause, others follow from it
        err = err.exceptions[0]
    if isinstance(err, OSError):
        err = fault_of_os_error(err) or err
    if isinstance(err, GRPCError):
        if err.status is Status.UNIMPLEMENTED and not err.message:  # of the generated method nobody has overridden
            return GRPCError(err.status, f"cannot answer {path.rpartition('/')[2]}: this version does not have it yet")
        return err
    if isinstance(err, Fault):
        log.debug("call refused", extra={"method": path, "code": status_of(err).name, "error": str(err)})
        return GRPCError(status_of(err), str(err))
    if isinstance(err, StreamTerminatedError | ProtocolError):
        return GRPCError(Status.CANCELLED, f"the client ended the call: {err}")
    if isinstance(err, TimeoutError):
        log.warning("call took too long", extra={"method": path}, exc_info=err)
        return GRPCError(Status.DEADLINE_EXCEEDED, f"cannot finish {path.rpartition('/')[2]} in time; try again")
    log.error("call failed", extra={"method": path}, exc_info=err)
    return GRPCError(Status.INTERNAL, "internal error, see the log of the agent")


def as_fault(err: Exception, agent: str, *, timeout_s: float | None = None, reached: bool = True) -> Fault:
    """The fault that one of `FAILURES` is to the caller: the agent's own, or what became of the way to it.

    `timeout_s` is the time it had in seconds; `reached` whether there was a connection when it was over.
    """
    if isinstance(err, BROKEN):
        return Unavailable(f"cannot finish the call: {agent} went away in it; ask again")
    if isinstance(err, GRPCError) and (err.message or err.status is not Status.DEADLINE_EXCEEDED):
        return _FAULT.get(err.status, Failed)(err.message or err.status.name)
    limit = "in time" if timeout_s is None else f"within {timeout_s:g} s"
    if reached:
        return DeadlineExceeded(f"cannot get an answer from {agent} {limit}; see criwctl status")
    return Unavailable(f"cannot reach {agent} {limit}; is it running?")
