"""HTTP as all pulls share it: connections, trust, an end to every wait. A host that trickles is as good as silent."""

import asyncio
import contextlib
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from criw import __version__
from criw.config.image import ImageSection
from criw.errors import Failed
from criw_image.foreign import address, cleaned
from criw_image.hosts import Hosts

_CONNECT_TIMEOUT_S: Final = 10.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
REDIRECT_LIMIT: Final = 5
MINIMUM_RATE: Final = 1024  # bytes a second, over the time of `stall_timeout_s`
_BUFFER_BYTES: Final = 256 * 1024  # received ahead of what is written, a connection; aiohttp takes up to twice as much
_GZIP: Final = 16 + zlib.MAX_WBITS  # zlib's word for the format


class Down(Exception):  # noqa: N818 — like the faults, named by what the caller learns
    """The endpoint cannot be reached or is not well: it later, or another one now, may help."""


class Http:
    """Connections and trust, shared by all pulls. Use `open_http()`."""

    def __init__(self, session: aiohttp.ClientSession, section: ImageSection) -> None:
        self.stall_timeout_s = section.stall_timeout_s
        self.hosts = Hosts(section.registries)
        self._session = session
        self._contexts: dict[tuple[Path, int], ssl.SSLContext] = {}

    async def request(
        self,
        stack: contextlib.AsyncExitStack,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        ca_file: Path | None,
        form: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """The head of the answer, open until the stack is left. Raises Down if it takes too long, aiohttp's errors."""
        trust = await self._trust(ca_file)
        request = self._session.request(method, url, headers=headers, data=form, ssl=trust, allow_redirects=False)
        try:
            async with asyncio.timeout(self.stall_timeout_s):
                return await stack.enter_async_context(request)
        except aiohttp.ServerTimeoutError as err:
            raise Down(f"{url.origin()}: connection timed out after {_CONNECT_TIMEOUT_S:g} s") from err
        except TimeoutError as err:
            raise Down(f"{url.origin()}: no answer came within {self.stall_timeout_s:g} s") from err

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Down if we wait for it longer than `MINIMUM_RATE` allows."""
        loop, enough = asyncio.get_running_loop(), max(1, int(self.stall_timeout_s * MINIMUM_RATE))
        left_s, came = self.stall_timeout_s, 0
        while True:
            begun = loop.time()
            try:
                async with asyncio.timeout(left_s):
                    piece = await response.content.readany()
            except TimeoutError as err:
                what = f"only {came} bytes" if came else "nothing"
                raise Down(f"{response.url.origin()}: {what} came for {self.stall_timeout_s:g} s") from err
            if not piece:
                return
            yield piece
            left_s -= loop.time() - begun
            came += len(piece)
            if came >= enough:
                left_s, came = self.stall_timeout_s, 0

    async def read(self, response: aiohttp.ClientResponse, limit: int) -> bytes | None:
        """The whole of a small body; None if it is longer than `limit` bytes.

        It is decoded where it comes compressed although we asked for it as it is.
        """
        body = bytearray()
        async for piece in self.pieces(response):
            body += piece
            if len(body) > limit:
                return None
        if response.headers.get("Content-Encoding", "").lower() not in {"gzip", "x-gzip"}:
            return bytes(body)
        try:
            decoded = zlib.decompressobj(_GZIP).decompress(bytes(body), limit + 1)
        except zlib.error:
            return bytes(body)  # the header is wrong; whoever hashes or parses the body will know
        return decoded if len(decoded) <= limit else None

    async def _trust(self, ca_file: Path | None) -> ssl.SSLContext | bool:
        """The system's authorities, and those of `ca_file` besides. Raises Failed if that cannot be read."""
        if ca_file is None:
            return True
        try:
            key = (ca_file, ca_file.stat().st_mtime_ns)
            if key not in self._contexts:
                self._contexts[key] = await asyncio.to_thread(_context, ca_file)
            return self._contexts[key]
        except OSError as err:  # ssl.SSLError is one
            raise Failed(f"cannot use ca_file {ca_file}: {err.strerror or err}") from err


def _context(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


@contextlib.asynccontextmanager
async def open_http(section: ImageSection) -> AsyncIterator[Http]:
    """What talks to registries until the block is left."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        auto_decompress=False,  # digests are of what was stored
        headers={"User-Agent": f"criw/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0),  # a pull bounds its own downloads
        read_bufsize=_BUFFER_BYTES,
    ) as session:
        yield Http(session, section)


def redirected(response: aiohttp.ClientResponse, *, what: str) -> URL | None:
    """Where an answer sends us, if it does. Raises Failed for nowhere, and for a way from HTTPS to HTTP."""
    if response.status not in _REDIRECTS or "Location" not in response.headers:
        return None
    here, text = response.url.origin(), response.headers["Location"]
    try:
        target = address(text, beside=response.url)
    except ValueError as err:
        raise Failed(f"cannot {what}: {here} redirects to {cleaned(text)!r}: {cleaned(err)}") from err
    if here.scheme == "https" and target.scheme == "http":
        raise Failed(f"cannot {what}: {here} redirects to http, which is not secure")
    return target


def reason(err: aiohttp.ClientError) -> str:
    """Why there was no answer, in the words that people look for."""
    if isinstance(err, aiohttp.ClientConnectorError):
        cause = err.os_error
        if isinstance(cause, socket.gaierror):
            unknown = cause.errno in {socket.EAI_NONAME, socket.EAI_NODATA}
            return f"no such host {cleaned(err.host)}" if unknown else f"{err.host}: {cause.strerror}"
        refused = isinstance(cause, ConnectionRefusedError)
        return "connection refused" if refused else cleaned(cause.strerror or cause)
    return cleaned(err) or type(err).__name__
