"""The listening side: SPDY requests are taken here, with every byte that follows them; all others are aiohttp's.

aiohttp upgrades to WebSocket only, and would read what follows another request's head as the next request.
"""

import asyncio
import contextlib
import http.client
import io
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, cast

from aiohttp import web

from criw.config.streams import StreamsSection
from criw.errors import FailedPrecondition, NotFound
from criw.spdy.tcp import TcpConnection
from criw_proto.criw.streams.v1 import Forwarding
from criw_streams import forward_spdy, spdy
from criw_streams.sessions import Sessions
from criw_streams.tokens import Session
from criw_streams.web import app

log = logging.getLogger(__name__)
_HEAD_LIMIT: Final = 16 * 1024  # bytes
_HEAD_LIMIT_S: Final = 30.0
_END_LIMIT_S: Final = 2.0
_UPGRADE: Final = "spdy/3.1"
_VERSION: Final = "X-Stream-Protocol-Version"
_ACCEPTED: Final = "X-Accepted-Stream-Protocol-Versions"


class _Refused(Exception):  # noqa: N818 — an answer
    def __init__(self, status: HTTPStatus, text: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    headers: http.client.HTTPMessage

    @property
    def is_spdy(self) -> bool:
        return any(_UPGRADE in line.lower() for line in self.headers.get_all("Upgrade", []))


def _parse(head: bytes) -> _Request | None:
    """None for what is no request: aiohttp says so."""
    first, _, rest = head.partition(b"\r\n")
    words = first.decode("latin-1").split(" ")
    try:
        headers = http.client.parse_headers(io.BytesIO(rest))
    except http.client.HTTPException:
        return None
    return _Request(words[0], words[1].partition("?")[0], headers) if len(words) == 3 else None


class Front(asyncio.Protocol):
    """A connection until its first request's head is there."""

    def __init__(
        self, sessions: Sessions, others: Callable[[], asyncio.Protocol], tasks: set[asyncio.Task[None]]
    ) -> None:
        self._sessions = sessions
        self._others = others
        self._tasks = tasks
        self._transport: asyncio.Transport
        self._head = bytearray()
        self._answered = False
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are like it, but no instances of it
        self._timer = asyncio.get_running_loop().call_later(_HEAD_LIMIT_S, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > _HEAD_LIMIT:
                self._answer(_Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too long"))
            return
        self._timer.cancel()
        request = _parse(bytes(self._head[: end + 4]))
        if request is None or not request.is_spdy:
            self._hand_over(self._others(), bytes(self._head))
            return
        try:
            session, version = self._negotiate(request)
        except NotFound as err:
            self._answer(_Refused(HTTPStatus.NOT_FOUND, str(err)))
        except _Refused as refused:
            self._answer(refused)
        else:
            self._upgrade(session, version, bytes(self._head[end + 4 :]))

    def _hand_over(self, protocol: asyncio.Protocol, received: bytes) -> None:
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if received:
            protocol.data_received(received)

    def _negotiate(self, request: _Request) -> tuple[Session, str]:
        """The session and the protocol's version. Raises NotFound and _Refused; the URL can be used again then."""
        if request.method not in {"GET", "POST"}:
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or POST", [("Allow", "GET, POST")])
        session = self._sessions.tokens.look(request.path)
        if not any("upgrade" in line.lower() for line in request.headers.get_all("Connection", [])):
            raise _Refused(HTTPStatus.BAD_REQUEST, "unable to upgrade: there is no Connection: Upgrade")
        lines = request.headers.get_all(_VERSION, [])
        offered = [name.strip() for line in lines for name in line.split(",") if name.strip()]
        if not offered:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"unable to upgrade: {_VERSION} is required")
        known = [forward_spdy.PROTOCOL] if isinstance(session, Forwarding) else list(spdy.VERSIONS)
        chosen = next((name for name in offered if name in known), None)
        if chosen is None:
            text = f"unable to upgrade: none of {offered} is known; known are {known}"
            raise _Refused(HTTPStatus.FORBIDDEN, text, [(_ACCEPTED, name) for name in known])
        return self._sessions.tokens.take(request.path), chosen

    def _upgrade(self, session: Session, version: str, received: bytes) -> None:
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Connection: Upgrade",
            "Upgrade: SPDY/3.1",
            f"{_VERSION}: {version}",
        ]
        self._transport.write("\r\n".join([*lines, "", ""]).encode())
        protocol = TcpConnection(server=True)
        self._hand_over(protocol, received)
        serving = self._sessions.over_spdy(session, protocol.connection, spdy.VERSIONS.get(version, spdy.Version()))
        task = asyncio.create_task(serving, name=version)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (err := task.exception()) is not None:
            log.error("a session failed", exc_info=err)

    def _answer(self, refused: _Refused) -> None:
        self._answered = True
        body = str(refused).encode()
        headers = [*refused.headers, ("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        lines = [f"HTTP/1.1 {refused.status.value} {refused.status.phrase}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers]
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self._transport.close()


@contextlib.asynccontextmanager
async def listening(section: StreamsSection, sessions: Sessions) -> AsyncIterator[str]:
    """Serve for as long as the block runs; what the URLs begin with. Leaving it ends the sessions.

    Raises FailedPrecondition for an address or certificate that cannot be used.
    """
    host, port = section.listen_address
    tls = _tls(section)
    tasks: set[asyncio.Task[None]] = set()
    runner = web.AppRunner(app(sessions), access_log=None, shutdown_timeout=_END_LIMIT_S)
    await runner.setup()
    assert runner.server is not None
    others = runner.server
    try:
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: Front(sessions, others, tasks), host, port, ssl=tls
            )
        except OSError as err:
            raise FailedPrecondition(
                f"cannot listen on {host}:{port} for exec, attach and port-forward: {err.strerror or err}; set "
                "listen in [streams] to a free address of this host"
            ) from err
        bound = server.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        try:
            yield f"{'https' if tls else 'http'}://{shown}:{bound}"
        finally:
            server.close()
            await sessions.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await runner.shutdown()
        await runner.cleanup()


def _tls(section: StreamsSection) -> ssl.SSLContext | None:
    if not section.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(section.tls_cert, section.tls_key)
    except (OSError, ssl.SSLError) as err:
        raise FailedPrecondition(
            f"cannot use tls_cert {section.tls_cert} and tls_key {section.tls_key} of [streams]: {err}"
        ) from err
    return context
