"""Who is at the other end of a connection, and what he may call."""

import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

_SO_PEERGROUPS: Final = 59
_OPTION_LIMIT: Final = 1024  # bytes of a socket option Python reads: 256 groups
_HEALTH: Final = "grpc.health.v1.Health"


@dataclass(frozen=True)
class Peer:
    """A process as it was when it connected. Of one with more than 256 groups only the primary one is known."""

    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """As the kernel vouches for it: SO_PEERCRED, SO_PEERGROUPS."""
        _pid, uid, gid = struct.unpack("3I", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _OPTION_LIMIT)
        except OSError:  # ERANGE: more groups than fit
            raw = b""
        return cls(uid, frozenset({gid, *struct.unpack(f"{len(raw) // 4}I", raw)}))


@dataclass(frozen=True)
class Callers:
    """Who may use a server: root, its own user, and `group` may connect to it.

    `users` has, by gRPC service, those who may call it besides root; one that is not there is for root alone. None:
    whoever may connect may call everything. All may ask for its health.
    """

    group: int | None = None
    users: Mapping[str, frozenset[int]] | None = None

    def may_connect(self, peer: Peer) -> bool:
        return peer.uid in {0, os.geteuid()} or self.group in peer.groups

    def may_call(self, peer: Peer, service: str) -> bool:
        if self.users is None or service == _HEALTH:
            return True
        return peer.uid == 0 or peer.uid in self.users.get(service, ())
