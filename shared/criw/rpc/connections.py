"""The connections of a server's clients, and how they end without a call being lost."""

import asyncio
import logging
from typing import Final

from grpclib.protocol import Connection, H2Protocol
from h2.settings import SettingCodes

from criw.rpc.peers import Callers, Peer

log = logging.getLogger(__name__)

PARTING_S: Final = 1.0  # for clients to hang up
CALLS_AT_ONCE: Final = 2**16  # on one connection


class ClientProtocol(H2Protocol):
    """A connection; closed if its peer may not use the socket, should the file's mode ever have let it in."""

    begun = 0  # the number of the latest call on it that was begun
    parted = False
    connections: "Connections"
    callers: Callers
    peer: Peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # h2 would let a connection have 100 calls at a time: a kubelet that drains a node has more, each as long as the
        # grace of a stop, and its question whether the node is ready waits behind them.
        settings: dict[SettingCodes | int, int] = {SettingCodes.MAX_CONCURRENT_STREAMS: CALLS_AT_ONCE}
        self.connection._connection.update_settings(settings)  # noqa: SLF001 — grpclib has no option for it
        self.connection._connection.local_settings.acknowledge()  # noqa: SLF001 — a client may have begun many already
        self.connection.flush()
        self.connections.add(self)
        self.peer = Peer.of(transport.get_extra_info("socket"))
        if not self.callers.may_connect(self.peer):
            log.warning("refused a connection of somebody who may not use the socket", extra={"user": self.peer.uid})
            transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.connections.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.parted:
            super().data_received(data)

    def part(self) -> None:
        """Have the client hang up, and tell it which of its calls were never begun: RFC 9113, section 6.8 (GOAWAY).

        Were it us who hang up, a call on its way would break for the client as one does that was carried out. What
        still comes is read and ignored: closing a socket with something unread in it is an error at the other end.
        """
        self.parted = True
        self.connection._connection.close_connection(last_stream_id=self.begun)  # noqa: SLF001 — grpclib never does
        self.connection.flush()


class Connections:
    """Those there are now."""

    def __init__(self) -> None:
        self._clients: dict[Connection, ClientProtocol] = {}
        self._changed = asyncio.Event()

    def of(self, connection: Connection) -> ClientProtocol:
        return self._clients[connection]

    def add(self, client: ClientProtocol) -> None:
        self._clients[client.connection] = client

    def discard(self, client: ClientProtocol) -> None:
        del self._clients[client.connection]
        self._changed.set()

    def part(self) -> None:
        """See `ClientProtocol.part`."""
        for client in self._clients.values():
            if not client.connection.is_closing():
                client.part()

    async def close(self) -> None:
        """Wait a moment until all clients have hung up; hang up on those that have not."""
        try:
            async with asyncio.timeout(PARTING_S):
                while self._clients:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.debug("clients do not hang up", extra={"connections": len(self._clients)})
        for client in self._clients.values():
            client.connection.close()
