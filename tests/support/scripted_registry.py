"""A registry in the test's own process, for what a real one does only on its bad days.

It serves what it was given and keeps the requests; each misbehaviour is switched on by an attribute.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

from support import images


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    query: dict[str, str]
    headers: CIMultiDict[str]


@dataclass
class ScriptedRegistry:
    """`url` is set while it runs. `answer` may take a request over from the registry."""

    url: str = ""
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    break_after: int | None = None  # bytes of a blob in one answer
    ranges: bool = True
    redirect_to: str = ""  # base URL the blobs are at
    answer: Callable[[web.Request], web.StreamResponse | None] = lambda _: None
    take_over: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None  # instead of `answer`, all requests

    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def host(self) -> str:
        return self.url.partition("://")[2]

    def add(self, name: str, added: images.Image | images.Index) -> None:
        """Serve an image as `repository:tag`."""
        repository, _, tag = name.rpartition(":")
        for media_type, document in added.manifests:
            self.manifests[f"{repository}@{images.digest_of(document)}"] = (media_type, document)
            self.manifests[f"{repository}@{tag}"] = (media_type, document)
        self.blobs |= {images.digest_of(blob): blob for blob in added.blobs}

    def requests(self, kind: str, method: str = "GET") -> list[Seen]:
        """Those for `manifests` or `blobs`."""
        return [one for one in self.seen if f"/{kind}/" in one.path and one.method == method]

    async def request_for(self, digest: str, *, number: int) -> None:
        """Wait until the manifest or blob of this digest (or tag) has been asked for so many times."""
        while sum(one.path.endswith(f"/{digest}") for one in self.seen) < number:
            self._arrived.clear()
            await self._arrived.wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(Seen(request.method, request.path, dict(request.query), CIMultiDict(request.headers)))
        self._arrived.set()
        if self.take_over is not None:
            return await self.take_over(request)
        if (taken := self.answer(request)) is not None:
            return taken
        return await self.serve(request)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """What a registry that behaves answers."""
        path = request.path.removeprefix("/v2/")
        repository, _, tag = path.partition("/manifests/")
        if tag:
            found = self.manifests.get(f"{repository}@{tag}")
            if found is None:
                return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}, status=404)
            headers = {"Docker-Content-Digest": images.digest_of(found[1]), "Content-Type": found[0]}
            return web.Response(body=found[1], headers=headers)
        digest = path.rpartition("/blobs/")[2]
        if self.redirect_to:
            raise web.HTTPTemporaryRedirect(f"{self.redirect_to}/v2/elsewhere/blobs/{digest}?signature=a%2Fb")
        if digest not in self.blobs:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)
        return await self._blob(request, self.blobs[digest])

    async def _blob(self, request: web.Request, blob: bytes) -> web.StreamResponse:
        start = 0
        headers = {}
        if self.ranges and "Range" in request.headers:
            start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(blob) - 1}/{len(blob)}"
        response = web.StreamResponse(status=206 if headers else 200, headers=headers)
        response.content_length = len(blob) - start
        await response.prepare(request)
        if self.break_after is not None and len(blob) - start > self.break_after:
            await response.write(blob[start : start + self.break_after])
            assert request.transport is not None
            request.transport.close()  # what is written is sent first
            return response
        await response.write(blob[start:])
        return response


@contextlib.asynccontextmanager
async def scripted_registry(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedRegistry]:
    registry = ScriptedRegistry()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", registry.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        registry.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        yield registry
    finally:
        await runner.cleanup()
