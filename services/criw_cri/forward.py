"""Passing calls on: bytes in, bytes out, with deadline, metadata and errors as they are."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpclib.client
import grpclib.server
from grpclib.const import Handler

from criw.config.common import AgentName
from criw.rpc.client import in_own_task, never_begun
from criw.rpc.faults import BROKEN, as_fault
from criw_cri.instances import PAUSE_S, Instance, Instances
from criw_cri.routes import Route

ServerStream = grpclib.server.Stream[Any, Any]
_SENDABLE: Final = re.compile(r"[ -~]+")


class Forwarder:
    """A gRPC service whose methods are answered by the agents behind it."""

    def __init__(self, routes: Mapping[str, Route], instances: Mapping[AgentName, Instances]) -> None:
        self._routes = routes
        self._instances = instances

    def __mapping__(self) -> dict[str, Handler]:
        return {path: self.handler(route) for path, route in self._routes.items()}

    def handler(self, route: Route) -> Handler:
        async def answer(stream: ServerStream) -> None:
            request = await stream.recv_message()
            assert request is not None
            if route.cardinality.server_streaming:
                await self._forward_stream(route, request, stream)
            else:
                await stream.send_message(await self.unary(route, request, stream))

        return Handler(answer, route.cardinality, bytes, bytes)

    async def unary(self, route: Route, request: bytes, stream: ServerStream) -> bytes:
        """The reply. A call that broke is repeated if that is harmless. Raises Unavailable, DeadlineExceeded."""
        while True:
            instance = await self._instances[route.agent].connected(until=_until(stream))
            try:
                return await in_own_task(_ask(instance, route, request, stream))
            except (*BROKEN, TimeoutError) as err:
                if isinstance(err, TimeoutError) or not (route.repeated or never_begun(err)):
                    raise as_fault(err, f"criw-{route.agent}") from err
            await asyncio.sleep(PAUSE_S)

    async def _forward_stream(self, route: Route, request: bytes, stream: ServerStream) -> None:
        while True:
            instance = await self._instances[route.agent].connected(until=_until(stream))
            try:
                return await in_own_task(_pass_on(instance, route, request, stream))
            except (*BROKEN, TimeoutError) as err:
                if not never_begun(err):
                    raise as_fault(err, f"criw-{route.agent}") from err
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def _asked(
    instance: Instance, route: Route, request: bytes, stream: ServerStream
) -> AsyncIterator[grpclib.client.Stream[bytes, bytes]]:
    """The call to the agent, made as it was made to us."""
    with instance.busy() as channel:
        async with channel.request(
            route.path, route.cardinality, bytes, bytes, deadline=stream.deadline, metadata=_metadata(stream)
        ) as call:
            await call.send_message(request, end=True)
            yield call


async def _ask(instance: Instance, route: Route, request: bytes, stream: ServerStream) -> bytes:
    async with _asked(instance, route, request, stream) as call:
        reply = await call.recv_message()
    assert reply is not None
    return reply


async def _pass_on(instance: Instance, route: Route, request: bytes, stream: ServerStream) -> None:
    async with _asked(instance, route, request, stream) as call:
        async for reply in call:
            await stream.send_message(reply)


def _metadata(stream: ServerStream) -> list[tuple[str, str | bytes]]:
    """The client's metadata, but for what grpclib refuses to send: empty values, and text that is not ASCII."""
    return [
        (key, value)
        for key, value in (stream.metadata or {}).items()
        if isinstance(value, bytes) or _SENDABLE.fullmatch(value)
    ]


def _until(stream: ServerStream) -> float | None:
    """The call's deadline as monotonic time, a moment early so that the caller gets the reason."""
    return None if stream.deadline is None else time.monotonic() + stream.deadline.time_remaining() - 0.1
