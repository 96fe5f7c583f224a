"""What every server does around a call.

Its errors become statuses, it is counted and timed, and the caller must be one who may call the service.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol, TypeVar

import betterproto2
import grpclib.server
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from h2.errors import ErrorCodes

from criw.errors import PermissionDenied
from criw.metrics import Metrics
from criw.rpc.codec import SETTINGS, Codec
from criw.rpc.connections import ClientProtocol, Connections
from criw.rpc.faults import as_status
from criw.rpc.peers import Callers, Peer

log = logging.getLogger(__name__)

Q = TypeVar("Q", bound=betterproto2.Message)
ServerStream = grpclib.server.Stream[Any, Any]


class Servable(Protocol):
    """A gRPC service: what the generated …Base classes are."""

    def __mapping__(self) -> Mapping[str, Handler]: ...


def serialized(path: str, request: type[Q], answer: Callable[[Q], Awaitable[bytes]]) -> Mapping[str, Handler]:
    """A unary method whose reply is serialised already: replaces the generated entry of `path` in a `__mapping__`."""

    async def handle(stream: ServerStream) -> None:
        message = await stream.recv_message()
        assert message is not None
        await stream.send_message(await answer(message))

    return {path: Handler(handle, Cardinality.UNARY_UNARY, request, bytes)}


class InFlight:
    """How many calls are being answered; a stopping process takes no new ones and waits until it is none."""

    def __init__(self) -> None:
        self.stopping = False
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()


class _Instrumented:
    """A service whose every method is counted, timed and has its errors translated."""

    def __init__(
        self, service: Servable, metrics: Metrics, in_flight: InFlight, connections: Connections, callers: Callers
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._in_flight = in_flight
        self._connections = connections
        self._callers = callers

    def __mapping__(self) -> Mapping[str, Handler]:
        return {
            path: Handler(self._around(path, entry.func), *entry[1:])
            for path, entry in self._service.__mapping__().items()
        }

    def _around(
        self, path: str, handle: Callable[[ServerStream], Awaitable[None]]
    ) -> Callable[[ServerStream], Awaitable[None]]:
        running = self._metrics.running.labels(path)
        seconds = self._metrics.seconds.labels(path)
        service = path.split("/")[1]

        async def answer(stream: ServerStream) -> None:
            if self._in_flight.stopping:
                return await _refuse(stream)
            inner = stream._stream  # noqa: SLF001 — grpclib hands out neither the connection nor the number
            client = self._connections.of(inner.connection)
            client.begun = max(client.begun, inner.id or 0)
            started = time.perf_counter()
            status = Status.CANCELLED
            # A stream may last for ever: a stopping process does not wait for those.
            waited_for = self._in_flight if not stream_of_replies(stream) else InFlight()
            with running.track_inprogress(), waited_for:
                try:
                    if not self._callers.may_call(client.peer, service):
                        raise _denied(client.peer, service)
                    await handle(stream)
                    status = Status.OK
                except asyncio.CancelledError:
                    raise
                except Exception as err:  # the boundary: each becomes a status
                    answered = as_status(err, path)
                    status = answered.status
                    raise answered from err
                finally:
                    stream._cancel_done |= client.parted  # noqa: SLF001 — then nothing can be answered any more
                    self._metrics.calls.labels(path, status.name).inc()
                    seconds.observe(time.perf_counter() - started)
            return None

        return answer


def _denied(peer: Peer, service: str) -> PermissionDenied:
    log.warning("refused a call", extra={"service": service, "user": peer.uid})
    return PermissionDenied(f"cannot let user {peer.uid} call {service}: only root and the crew's own callers may")


def stream_of_replies(stream: ServerStream) -> bool:
    """Whether the call answers with a stream of messages."""
    return bool(stream._cardinality.server_streaming)  # noqa: SLF001 — grpclib tells it in no other way


async def _refuse(stream: ServerStream) -> None:
    """Tell the client that the call was not begun, so that any call may be repeated (RFC 9113, section 8.7)."""
    await stream._stream.reset(ErrorCodes.REFUSED_STREAM)  # noqa: SLF001 — grpclib resets with NO_ERROR only
    stream._cancel_done = True  # noqa: SLF001


class _Methods(dict[str, Handler]):
    """Methods by path; one that is not there answers UNIMPLEMENTED.

    grpclib's own answer lacks a content type, so that grpc-go and grpclib report it as UNKNOWN, and the kubelet does
    not fall back to an older method.
    """

    def get(self, path: str, default: object = None) -> Handler:  # grpclib calls this alone
        return super().get(path) or Handler(_unimplemented, Cardinality.UNARY_UNARY, bytes, bytes)


async def _unimplemented(_: ServerStream) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, "cannot call a method this process does not have")


class Server(grpclib.server.Server):
    """Serves `callers` on a listening unix socket."""

    def __init__(self, services: Collection[Servable], metrics: Metrics, callers: Callers) -> None:
        self.in_flight = InFlight()
        self._connections = Connections()
        self._callers = callers
        instrumented = [
            _Instrumented(service, metrics, self.in_flight, self._connections, callers) for service in services
        ]
        super().__init__(instrumented, codec=Codec(), config=SETTINGS)
        self._mapping = _Methods(self._mapping)

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        protocol.__class__ = ClientProtocol
        assert isinstance(protocol, ClientProtocol)
        protocol.callers = self._callers
        protocol.connections = self._connections
        return protocol

    async def drain(self, limit_s: float) -> None:
        """Refuse new connections and calls, wait at most `limit_s` for those being answered, then end all."""
        assert self._server is not None
        self._server.close()
        self.in_flight.stopping = True
        try:
            await asyncio.wait_for(self.in_flight.wait_idle(), limit_s)
        except TimeoutError:
            log.warning("stopping with calls still running", extra={"waited_s": limit_s})
        self.close()  # cancels what still runs
        self._connections.part()
        await self._connections.close()
        await self.wait_closed()
