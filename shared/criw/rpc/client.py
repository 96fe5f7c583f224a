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
from h2.events import ConnectionTerminated

from criw.errors import PermissionDenied
from criw.rpc.codec import SETTINGS, Codec
from criw.rpc.faults import BROKEN, FAILURES, as_fault

_CONNECT_PAUSE_S: Final = 0.02
# grpclib tells the code of a reset in the text of the error only.
_REFUSED: Final = f"Stream reset by remote party, error_code: {ErrorCodes.REFUSED_STREAM:d}"

Q = TypeVar("Q", bound=betterproto2.Message)
A = TypeVar("A", bound=betterproto2.Message)
T = TypeVar("T")
Method: TypeAlias = Callable[..., Coroutine[Any, Any, A]]


class _Protocol(H2Protocol):
    """Tells calls that were never begun from those that broke."""

    lost = False
    _heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.processor.processors[ConnectionTerminated] = self._hang_up

    def data_received(self, data: bytes) -> None:
        self._heard = True
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        # A server's first words come with the connection: here it was never taken out of the socket's queue. After a
        # failed write, though, there may be words we have not read.
        if not self._heard and not isinstance(exc, BrokenPipeError):
            self._refuse_after(0)
        super().connection_lost(exc)

    def _hang_up(self, event: ConnectionTerminated) -> None:
        """The server has answered all it will, and has begun no call after the one it names: RFC 9113, section 6.8."""
        self.handler.close()  # the next call makes a connection of its own
        self._refuse_after(event.last_stream_id or 0)
        # In a moment: calls whose answers came just before are still to read them.
        asyncio.get_running_loop().call_soon(self.processor.close, "Connection closed by the server")

    def _refuse_after(self, last: int) -> None:
        for stream in self.processor.streams.values():
            if (stream.id or 0) > last:
                stream.__terminated__(_REFUSED)
                stream.wrapper = None  # or the end of the connection would become the reason


class DirectChannel(grpclib.client.Channel):
    """A client's connection to one socket; ConnectionRefusedError if nobody listens there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path=os.fspath(path), codec=Codec(), config=SETTINGS)

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        protocol.__class__ = _Protocol
        return protocol

    async def _create_connection(self) -> H2Protocol:
        try:
            protocol = await super()._create_connection()
        except (FileNotFoundError, BlockingIOError) as err:  # the last: its queue is full
            raise ConnectionRefusedError(err.errno, err.strerror) from err
        assert isinstance(protocol, _Protocol)
        if protocol.lost:
            raise ConnectionRefusedError("the connection was lost as it was made")
        return protocol

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return bool(self._connected)


class Channel(DirectChannel):
    """A connection that waits for the agent behind the socket to come (back) up.

    How long is decided by the deadline of the call that wants the connection.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._where = path

    async def __aenter__(self) -> Self:
        return self

    async def _create_connection(self) -> H2Protocol:
        while True:
            try:
                return await super()._create_connection()
            except ConnectionRefusedError:
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
    """Whether a call broke that never reached the server, or that it did not take up: then any call may be repeated."""
    return isinstance(err, ConnectionRefusedError) or (isinstance(err, StreamTerminatedError) and str(err) == _REFUSED)
