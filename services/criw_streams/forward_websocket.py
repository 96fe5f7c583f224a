"""Port-forward over WebSocket, for clients older than the tunnel: two channels and one connection a port, for good."""

import asyncio
import logging
from typing import Final

from criw.errors import Fault
from criw_proto.criw.streams.v1 import Forwarding
from criw_streams import forward
from criw_streams.client import Gone
from criw_streams.inbox import Inbox
from criw_streams.websocket import Messages

log = logging.getLogger(__name__)
SUBPROTOCOLS: Final = {"": False, "v4.channel.k8s.io": False, "v4.base64.channel.k8s.io": True}  # and whether in base64
_PIECE: Final = 32 * 1024  # bytes


class _Channel:
    """The client's end of a connection (`forward.Link`). This protocol knows no half-close."""

    def __init__(self, messages: Messages, number: int) -> None:
        self._messages = messages
        self._number = number
        self._left = asyncio.Event()
        self.inbox = Inbox()

    async def read(self) -> bytes:
        return await self.inbox.get()

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), _PIECE):
            await self._messages.send(self._number, data[at : at + _PIECE])

    def close_write(self) -> None:
        self.leave()  # whoever cannot be told that this was all is told by the end of the connection

    @property
    def gone(self) -> bool:
        return self._left.is_set()

    async def wait_gone(self) -> None:
        await self._left.wait()

    def leave(self) -> None:
        self._left.set()
        self.inbox.end()


async def run(messages: Messages, forwarding: Forwarding) -> None:
    """Connect to each port of the request, and copy until all connections have ended or the client has gone."""
    channels = [_Channel(messages, 2 * at) for at in range(len(forwarding.ports))]
    receiving = asyncio.create_task(_receive(messages, channels), name="receive")
    try:
        ports = zip(channels, forwarding.ports, strict=True)
        serving = [_forward(messages, forwarding, channel, at, port) for at, (channel, port) in enumerate(ports)]
        await asyncio.gather(*serving)
        await messages.close()
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)


async def _receive(messages: Messages, channels: list[_Channel]) -> None:
    try:
        async for number, data in messages.received():
            if number % 2 == 0 and number // 2 < len(channels):
                await channels[number // 2].inbox.put(data)
    finally:
        for channel in channels:
            channel.leave()


async def _forward(messages: Messages, forwarding: Forwarding, channel: _Channel, at: int, port: int) -> None:
    try:
        for number in (2 * at, 2 * at + 1):
            await messages.send(number, port.to_bytes(2, "little"))
        try:
            connected = await forward.connect(forwarding, port)
        except (Fault, OSError) as err:
            log.info("cannot forward a port", extra={"pod": forwarding.pod_id, "error": str(err)})
            await messages.send(2 * at + 1, str(err).encode())
            return
        await forward.copy(connected, channel)
    except Gone:
        log.debug("the client of a port-forward has gone", extra={"pod": forwarding.pod_id})
    finally:
        channel.leave()  # what else comes for it must not hold up the others
