"""How one agent calls another. A client waits for an agent that is restarting, within the deadline."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, TypeVar

import betterproto2
import grpclib.client
from betterproto2.grpclib.grpclib_client import ServiceStub
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import H2Protocol
from h2.errors import ErrorCodes

from criw.errors import PermissionDenied
from criw.rpc.codec import SETTINGS, Codec
from criw.rpc.faults import BROKEN, FAILURES, as_fault

_CONNECT_PAUSE_S: Final = 0.02

Q = TypeVar("Q", bound=betterproto2.Message)
A = TypeVar("A", bound=betterproto2.Message)
T = TypeVar("T")
Method: TypeAlias = Callable[..., Coroutine[Any, Any, A]]


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


async def in_own_task(work: Coroutine[object, object, T]) -> T:
    """Await a call. grpclib wakes a waiting call by cancelling its task and never takes that back."""
    caller = asyncio.current_task()
    assert caller is not None
    cancellations = caller.cancelling()
    try:
        return await asyncio.create_task(work, name="call")
    except FAILURES as err:
        if caller.cancelling() > cancellations:  # we were cancelled in the same moment
            raise asyncio.CancelledError from err
        raise


async def ask(method: Method[A], request: Q, *, timeout_s: float | None = 10.0, agent: str = "the crew") -> A:
    """Call a method once, through its generated stub: of the door, say, which repeats what may be repeated.

    Raises the agent's own fault; Unavailable if it cannot be reached or the connection breaks, DeadlineExceeded if it
    was reached but did not answer within `timeout_s` seconds.
    """
    try:
        return await in_own_task(method(request, timeout=timeout_s))
    except FAILURES as err:
        raise as_fault(err, agent, timeout_s=timeout_s, reached=_connected(method)) from err


async def call(method: Method[A], request: Q, *, timeout_s: float = 60.0, agent: str = "the agent") -> A:
    """Call an idempotent method of another agent; repeated if the agent dies meanwhile. Raises as `ask`."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return await in_own_task(method(request, timeout=max(until - time.monotonic(), 0.001)))
        except FAILURES as err:
            if not isinstance(err, BROKEN) or time.monotonic() >= until:
                raise as_fault(err, agent, timeout_s=timeout_s, reached=_connected(method)) from err
        await asyncio.sleep(_CONNECT_PAUSE_S)


async def watch(
    method: Callable[[Q], AsyncIterator[A]], request: Q, *, agent: str = "the agent"
) -> AsyncGenerator[A, None]:
    """The messages of a streaming method. Raises as `ask`; nothing is repeated when the agent dies."""
    messages = method(request)

    async def following() -> A | None:
        return await anext(messages, None)

    try:
        while (message := await in_own_task(following())) is not None:
            yield message
    except FAILURES as err:
        raise as_fault(err, agent) from err


def _connected(method: Callable[..., object]) -> bool:
    """Whether the stub `method` belongs to has a connection now."""
    stub = getattr(method, "__self__", None)
    return isinstance(stub, ServiceStub) and isinstance(stub.channel, Channel) and stub.channel.connected


def never_begun(err: Exception) -> bool:
    """Whether a call broke because a stopping process refused it: then any call may be repeated."""
    # grpclib tells the code in the text of the error only.
    return isinstance(err, StreamTerminatedError) and str(err).endswith(f"error_code: {ErrorCodes.REFUSED_STREAM:d}")
