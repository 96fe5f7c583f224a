"""How a process tells that it lives: the gRPC health service and the HTTP endpoint."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from criw import __version__
from criw.errors import NotFound
from criw_proto.grpc.health.v1 import (
    HealthBase,
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
)

_STATUS: Final = HealthCheckResponseServingStatus


class Readiness:
    """Whether the process takes calls. Set once it has recovered its state, cleared when it stops."""

    def __init__(self) -> None:
        self.ready = False
        self._changed = asyncio.Condition()

    async def set(self, *, ready: bool) -> None:
        async with self._changed:
            self.ready = ready
            self._changed.notify_all()

    async def next_after(self, *, ready: bool) -> bool:
        """The state, as soon as it is not `ready` any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.ready is not ready)
            return self.ready


class HealthRpc(HealthBase):
    """grpc.health.v1 for the whole process ("") and each service it serves."""

    def __init__(self, readiness: Readiness, services: Collection[str]) -> None:
        self._readiness = readiness
        self._services = frozenset(services) | {""}

    def _answer(self, ready: bool) -> HealthCheckResponse:
        return HealthCheckResponse(status=_STATUS.SERVING if ready else _STATUS.NOT_SERVING)

    async def check(self, message: HealthCheckRequest) -> HealthCheckResponse:
        if message.service not in self._services:
            raise NotFound(f"cannot tell the health of {message.service}: this process does not serve it")
        return self._answer(self._readiness.ready)

    async def watch(self, message: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        if message.service not in self._services:
            yield HealthCheckResponse(status=_STATUS.SERVICE_UNKNOWN)
            return
        ready = self._readiness.ready
        while True:
            yield self._answer(ready)
            ready = await self._readiness.next_after(ready=ready)


def http_app(agent: str, readiness: Readiness, registry: CollectorRegistry) -> web.Application:
    """`/healthz` (the loop turns), `/readyz` (503 while starting or stopping), `/metrics`, `/version`."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if readiness.ready else web.Response(text="not ready\n", status=503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def version(_: web.Request) -> web.Response:
        return web.json_response({"agent": agent, "version": __version__})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/version", version),
        ]
    )
    return app
