import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from criw import __version__
from criw.errors import NotFound
from criw.health import HealthRpc, Readiness, http_app
from criw.metrics import Metrics
from criw.rpc.client import Channel, call, watch
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthCheckResponseServingStatus, HealthStub
from support.serving import serving

SERVING = HealthCheckResponseServingStatus.SERVING
NOT_SERVING = HealthCheckResponseServingStatus.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponseServingStatus.SERVICE_UNKNOWN
SERVICE = "criw.network.v1.Network"


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest_asyncio.fixture
async def health(path: Path, channel: Channel, readiness: Readiness) -> AsyncIterator[HealthStub]:
    async with serving(path, HealthRpc(readiness, [SERVICE])):
        yield HealthStub(channel)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_a_check_tells_the_state_now(service: str, health: HealthStub, readiness: Readiness) -> None:
    for ready in (False, True, False):
        await readiness.set(ready=ready)
        reply = await call(health.check, HealthCheckRequest(service=service))
        assert reply.status == (SERVING if ready else NOT_SERVING)


async def test_a_check_of_an_unknown_service_is_not_found(health: HealthStub) -> None:
    with pytest.raises(NotFound, match="Nonsense"):
        await call(health.check, HealthCheckRequest(service="Nonsense"))


async def test_a_watch_tells_every_change(health: HealthStub, readiness: Readiness) -> None:
    async with contextlib.aclosing(watch(health.watch, HealthCheckRequest(service=SERVICE))) as states:
        assert (await anext(states)).status == NOT_SERVING
        for ready in (True, False, True):
            await readiness.set(ready=ready)
            assert (await asyncio.wait_for(anext(states), 5)).status == (SERVING if ready else NOT_SERVING)


async def test_a_watch_tells_nothing_that_did_not_change(health: HealthStub, readiness: Readiness) -> None:
    states = watch(health.watch, HealthCheckRequest())
    assert (await anext(states)).status == NOT_SERVING
    following = asyncio.ensure_future(anext(states))
    await readiness.set(ready=False)
    await asyncio.wait({following}, timeout=0.05)
    assert not following.done()
    await readiness.set(ready=True)
    assert (await asyncio.wait_for(following, 5)).status == SERVING


async def test_a_watch_of_an_unknown_service_says_so(health: HealthStub) -> None:
    states = [reply.status async for reply in watch(health.watch, HealthCheckRequest(service="Nonsense"))]
    assert states == [SERVICE_UNKNOWN]


@pytest_asyncio.fixture
async def http(readiness: Readiness) -> AsyncIterator[aiohttp.ClientSession]:
    runner = web.AppRunner(http_app("image", readiness, Metrics("image").registry))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    _, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session
    await runner.cleanup()


async def test_the_process_lives_before_it_is_ready(http: aiohttp.ClientSession, readiness: Readiness) -> None:
    for ready in (False, True, False):
        await readiness.set(ready=ready)
        async with http.get("/healthz") as healthz, http.get("/readyz") as readyz:
            assert (healthz.status, readyz.status) == (200, 200 if ready else 503)


async def test_metrics_are_in_the_format_of_prometheus(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics") as reply:
        text = await reply.text()
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
    assert f'criw_build_info{{agent="image",version="{__version__}"}} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert "python_gc_collections_total" in text
    assert "# TYPE criw_rpc_duration_seconds histogram" in text


async def test_the_version_is_told(http: aiohttp.ClientSession) -> None:
    async with http.get("/version") as reply:
        assert await reply.json() == {"agent": "image", "version": __version__}


async def test_there_is_nothing_else(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as reply, http.post("/healthz") as posted:
        assert (reply.status, posted.status) == (404, 405)
