"""The HTTP side: WebSocket sessions, and answers to whatever is no upgrade. aiohttp's; see `front` for SPDY."""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from aiohttp import web

from criw.errors import Fault, NotFound, ResourceExhausted
from criw_proto.criw.streams.v1 import Ends, Forwarding
from criw_streams import forward_spdy, forward_websocket, tunnel, websocket
from criw_streams.client import Gone
from criw_streams.sessions import Sessions, serve
from criw_streams.tokens import Session

log = logging.getLogger(__name__)
_PART_LIMIT_S: Final = 2.0
TUNNEL: Final = f"SPDY/3.1+{forward_spdy.PROTOCOL}"


def app(sessions: Sessions) -> web.Application:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await _handle(request, sessions)
        except Fault as err:
            return refusal(err)

    application = web.Application()
    for method in ("GET", "POST"):
        application.router.add_route(method, "/{kind}/{token}", handle)
    return application


def refusal(err: Fault) -> web.Response:
    """An error as HTTP tells it."""
    if isinstance(err, NotFound):
        return web.Response(status=404, text=str(err))
    if isinstance(err, ResourceExhausted):
        return web.Response(status=429, text=str(err), headers={"Retry-After": "60"})
    return web.Response(status=500, text=str(err))


async def _handle(request: web.Request, sessions: Sessions) -> web.StreamResponse:
    session = sessions.tokens.look(request.path)
    if request.headers.get("Upgrade", "").lower() != "websocket":
        return web.Response(status=400, text="unable to upgrade: neither SPDY/3.1 nor a WebSocket is asked for")
    known: Collection[str] = websocket.SUBPROTOCOLS
    if isinstance(session, Forwarding):
        known = {TUNNEL, *forward_websocket.SUBPROTOCOLS}
    lines = request.headers.getall("Sec-WebSocket-Protocol", [])
    offered = [name.strip() for line in lines for name in line.split(",") if name.strip()] or [""]
    chosen = next((name for name in offered if name in known), None)
    if chosen is None:
        return web.Response(
            status=403, text=f"unable to upgrade: none of {offered} is known; known are {sorted(known)}"
        )
    upgraded = web.WebSocketResponse(
        protocols=[chosen] if chosen else [],
        autoping=False,
        compress=False,
        max_msg_size=websocket.MESSAGE_LIMIT,
        # Until the client answers our end it may still be reading what came before, as slowly as it likes.
        timeout=sessions.idle_timeout_s,
    )
    if not upgraded.can_prepare(request):
        return web.Response(status=400, text="unable to upgrade: it is no request for a WebSocket of version 13")
    sessions.tokens.take(request.path)  # before anything is awaited: no other gets it meanwhile
    await upgraded.prepare(request)
    try:
        await _serve(sessions, session, upgraded, chosen)
    except Gone:
        log.debug("a client has gone before its session began", extra={"path": request.path.rpartition("/")[0]})
    finally:
        await _part(upgraded, request)
    return upgraded


async def _part(upgraded: web.WebSocketResponse, request: web.Request) -> None:
    """Close the WebSocket if it is open; whoever does not take that in time is not waited for."""
    try:
        async with asyncio.timeout(_PART_LIMIT_S):
            await upgraded.close()
    except TimeoutError:
        log.debug("a client does not read the end of its session")
    else:
        if request.transport is None or request.transport.is_closing():
            return
    if request.transport is not None:
        request.transport.abort()


async def _serve(sessions: Sessions, session: Session, upgraded: web.WebSocketResponse, chosen: str) -> None:
    """Raises Gone."""
    if isinstance(session, Forwarding):
        if chosen == TUNNEL:
            async with (
                tunnel.opened(upgraded) as connection,
                sessions.session(session, lambda: connection.last_activity),
            ):
                await forward_spdy.run(connection, session)
            return
        messages = websocket.Messages(upgraded, in_base64=forward_websocket.SUBPROTOCOLS[chosen])
        async with sessions.session(session, lambda: messages.last_activity):
            await forward_websocket.run(messages, session)
        return
    protocol = websocket.SUBPROTOCOLS[chosen]
    messages = websocket.Messages(upgraded, in_base64=protocol.in_base64)
    client = websocket.WebSocketClient(messages, session.ends or Ends(), protocol)
    receiving = asyncio.create_task(client.receive(), name="client")
    try:
        async with sessions.session(session, lambda: messages.last_activity):
            await client.greet()
            await serve(session, client)
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
