"""The HTTP side: WebSocket sessions, and answers to whatever is no upgrade. aiohttp's; see `front` for SPDY."""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from aiohttp import WSCloseCode, web

from criw.errors import Fault, NotFound, ResourceExhausted
from criw_proto.criw.streams.v1 import Ends, Forwarding
from criw_streams import forward_spdy, forward_websocket, tunnel, websocket
from criw_streams.sessions import Sessions, serve
from criw_streams.tokens import Session

log = logging.getLogger(__name__)
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
    offered = [
        name.strip() for line in request.headers.getall("Sec-WebSocket-Protocol", []) for name in line.split(",")
    ] or [""]
    chosen = next((name for name in offered if name in known), None)
    if chosen is None:
        return web.Response(
            status=403, text=f"unable to upgrade: none of {offered} is known; known are {sorted(known)}"
        )
    upgraded = web.WebSocketResponse(
        protocols=[chosen] if chosen else [], autoping=False, compress=False, max_msg_size=websocket.MESSAGE_LIMIT
    )
    await upgraded.prepare(request)
    sessions.tokens.take(request.path)
    await _serve(sessions, session, upgraded, chosen)
    return upgraded


async def _serve(sessions: Sessions, session: Session, upgraded: web.WebSocketResponse, chosen: str) -> None:
    def end() -> None:
        ending.append(asyncio.ensure_future(upgraded.close(code=WSCloseCode.GOING_AWAY)))

    ending: list[asyncio.Future[bool]] = []
    if isinstance(session, Forwarding):
        if chosen == TUNNEL:
            async with (
                tunnel.opened(upgraded) as connection,
                sessions.session(session, lambda: connection.last_activity, connection.close),
            ):
                await forward_spdy.run(connection, session)
            return
        messages = websocket.Messages(upgraded, in_base64=forward_websocket.SUBPROTOCOLS[chosen])
        async with sessions.session(session, lambda: messages.last_activity, end):
            await forward_websocket.run(messages, session)
        return
    protocol = websocket.SUBPROTOCOLS[chosen]
    messages = websocket.Messages(upgraded, in_base64=protocol.in_base64)
    client = websocket.WebSocketClient(messages, session.ends or Ends(), protocol)
    receiving = asyncio.create_task(client.receive(), name="client")
    try:
        async with sessions.session(session, lambda: messages.last_activity, end):
            await client.greet()
            await serve(session, client)
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
