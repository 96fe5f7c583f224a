"""How one agent calls another. A client waits for an agent that is restarting, within the deadline."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TypeVar

import betterproto2
import grpclib.client
from betterproto2.grpclib.grpclib_client import ServiceStub
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from h2.errors import ErrorCodes

from criw.errors import DeadlineExceeded, PermissionDenied, Unavailable, fault_of
from criw.rpc.codec import SETTINGS, Codec

_CONNECT_PAUSE_S: Final = 0.02

Q = TypeVar("Q", bound=betterproto2.Message)
A = TypeVar("A", bound=betterproto2.Message)


class Channel(grpclib.client.Channel):
    """A client's connection to one socket, which waits for the agent behind it to come (back) up.

    How long is decided by the deadline of the call that wants the connection.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path=os.fspath(path), codec=Codec(), config=SETTINGS)
        self._where = path

    async def __aenter__(self) -> Self:
        return self

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return bool(self._connected)

    async def _create_connection(self) -> H2Protocol:
        while True:
            try:
                return await super()._create_connection()
            except (ConnectionError, FileNotFoundError, BlockingIOError):  # the last: its queue is full
                await asyncio.sleep(_CONNECT_PAUSE_S)
            except PermissionError as err:
                raise PermissionDenied(
                    f"cannot use {self._where}: only root and the socket's group may; become one of them"
                ) from err


async def call(
    method: Callable[..., Coroutine[Any, Any, A]], request: Q, *, timeout_s: float = 60.0, agent: str = "the agent"
) -> A:
    """Call an idempotent method of another agent through its generated stub; repeated if the agent dies meanwhile.

    Raises the agent's own fault; Unavailable if it cannot be reached, DeadlineExceeded if it was reached but did not
    answer, within `timeout_s`.
    """
    until = time.monotonic() + timeout_s
    caller = asyncio.current_task()
    assert caller is not None
    cancellations = caller.cancelling()
    while True:
        left = max(until - time.monotonic(), 0.001)
        # In a task of its own, because grpclib wakes a waiting call by cancelling its task and never takes that back.
        attempt = asyncio.create_task(method(request, timeout=left), name=f"call {agent}")
        try:
            return await attempt
        except GRPCError as err:
            if err.status is Status.DEADLINE_EXCEEDED and not err.message:
                _out_of_time(method, agent, timeout_s, err)
            raise fault_of(err) from err
        except (TimeoutError, StreamTerminatedError, ConnectionError) as err:
            if caller.cancelling() > cancellations:  # we were cancelled in the same moment
                raise asyncio.CancelledError from err
            if isinstance(err, TimeoutError):
                _out_of_time(method, agent, timeout_s, err)
            if time.monotonic() >= until:
                raise Unavailable(f"cannot reach {agent}: the connection broke") from err
        await asyncio.sleep(_CONNECT_PAUSE_S)


def _out_of_time(method: Callable[..., object], agent: str, timeout_s: float, cause: Exception) -> NoReturn:
    stub = getattr(method, "__self__", None)
    if isinstance(stub, ServiceStub) and isinstance(stub.channel, Channel) and stub.channel.connected:
        raise DeadlineExceeded(f"cannot get an answer from {agent} within {timeout_s:g} s") from cause
    raise Unavailable(f"cannot reach {agent} within {timeout_s:g} s; is it running?") from cause


async def watch(
    method: Callable[..., AsyncIterator[A]], request: Q, *, agent: str = "the agent"
) -> AsyncGenerator[A, None]:
    """The messages of a streaming method, its errors as faults. Not repeated when the agent dies: Unavailable."""
    try:
        async for message in method(request):
            yield message
    except GRPCError as err:
        raise fault_of(err) from err
    except TimeoutError as err:
        raise DeadlineExceeded(f"cannot wait any longer for {agent}") from err
    except (StreamTerminatedError, ConnectionError) as err:
        raise Unavailable(f"cannot reach {agent}: the connection broke") from err


def never_begun(err: Exception) -> bool:
    """Whether a call broke because a stopping process refused it: then any call may be repeated."""
    # grpclib tells the code in the text of the error only.
    return isinstance(err, StreamTerminatedError) and str(err).endswith(f"error_code: {ErrorCodes.REFUSED_STREAM:d}")
