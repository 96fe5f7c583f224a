"""Who is at the other end of a connection."""

import os
import socket
import struct
from typing import Final

_SO_PEERGROUPS: Final = 59
_OPTION_LIMIT: Final = 1024  # bytes of a socket option Python reads: 256 groups


def may_use(peer: socket.socket, group: int | None) -> bool:
    """Whether the process at the other end is root, our own user, or in `group` (SO_PEERCRED, SO_PEERGROUPS).

    Of a process with more than 256 groups only the primary one counts.
    """
    _pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in {0, os.geteuid()} or gid == group:
        return True
    if group is None:
        return False
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _OPTION_LIMIT)
    except OSError:  # ERANGE: more groups than fit
        return False
    return group in struct.unpack(f"{len(raw) // 4}i", raw)
