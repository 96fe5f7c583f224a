"""nftables through libnftables, in this process: commands are text, and one text is one transaction.

Why libnftables: the ruleset stays readable, `nft` itself is built on it (so it is there where nftables is), and it
takes 0.1 ms where starting `nft` takes 4; pyroute2's nftables has no maps with concatenated keys.

One context is kept: the kernel makes whoever closes its socket wait (12 ms) for what was deleted before. On a node with
ten thousand foreign sets and chains it holds 4 MB of them.
"""

import ctypes
import errno
import functools
import logging
import socket
import threading
from typing import Final

from pyroute2.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_NETFILTER, NLM_F_DUMP, SOL_NETLINK
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    nft_rule_msg,
    nft_table_msg,
)

from criw.errors import Failed, FailedPrecondition
from criw_network.netlink.socket import Message, Netlink, messages_in

log = logging.getLogger(__name__)

_SONAME: Final = "libnftables.so.1"
_NFPROTO_INET: Final = 1  # linux/netfilter.h
_TAKEN_AWAY: Final = {
    NFNL_SUBSYS_NFTABLES << 8 | kind for kind in (NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE)
}


class Nftables:
    """Runs commands in the network namespace of the thread that made it with `load()`, blocking, one at a time."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        library.nft_ctx_free.restype = None
        library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
        library.nft_ctx_set_dry_run.restype = None
        library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._lock = threading.Lock()
        self._context = library.nft_ctx_new(0)
        library.nft_ctx_buffer_error(self._context)

    @classmethod
    def load(cls) -> "Nftables":
        """Raises FailedPrecondition where nftables is not installed or the kernel has none."""
        try:
            library = ctypes.CDLL(_SONAME)
        except OSError as err:
            raise FailedPrecondition(f"cannot load {_SONAME}: install nftables and start this agent again") from err
        try:
            # The library ends the process when it cannot open this socket, so it is tried before.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
        except OSError as err:
            raise FailedPrecondition(
                f"cannot use nftables: the kernel has no netfilter netlink ({err.strerror})"
            ) from err
        return cls(library)

    def run(self, commands: str, *, check_only: bool = False) -> None:
        """Run `commands` as one transaction; with `check_only` the kernel judges it and forgets it.

        Raises Failed with what nftables said.
        """
        with self._lock:
            self._library.nft_ctx_set_dry_run(self._context, check_only)
            if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()):
                said = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace").strip()
                log.debug("nftables refused", extra={"commands": commands, "said": said})
                reason, _, _ = said.partition("\n")  # the other lines quote the command
                raise Failed(f"cannot change the nftables rules: {reason or 'no reason given'}")

    def close(self) -> None:
        with self._lock:
            self._library.nft_ctx_free(self._context)


def table_handle(name: str) -> int | None:
    """The kernel's number of table `inet <name>`, which no other ever gets; None if there is no such table.

    Asked directly, for the library would read every table of the host.
    """
    with Netlink(NETLINK_NETFILTER) as netlink:
        try:
            (found,) = netlink.ask(_look_for(name))
        except OSError as err:
            if err.errno == errno.ENOENT:
                return None
            raise
    return int(found.get_attr("NFTA_TABLE_HANDLE"))


@functools.lru_cache(1)  # every pod asks the same
def _look_for(name: str) -> Message:
    return Message(
        NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE,
        nft_table_msg,
        {"nfgen_family": _NFPROTO_INET},
        [("NFTA_TABLE_NAME", name)],
        what=f"look for table {name}",
    )


def rule_handles(name: str) -> frozenset[int]:
    """The kernel's numbers of the rules of table `inet <name>`: a rule that is made again gets another."""
    with Netlink(NETLINK_NETFILTER) as netlink:
        found = netlink.ask(
            Message(
                NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE,
                nft_rule_msg,
                {"nfgen_family": _NFPROTO_INET},
                [("NFTA_RULE_TABLE", name)],
                NLM_F_DUMP,
                f"list the rules of table {name}",
            )
        )
        return frozenset(int(rule.get_attr("NFTA_RULE_HANDLE")) for rule in found)


def watch_tables() -> socket.socket:
    """A socket, not blocking, that gets every change of the tables of the thread's namespace."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
    )
    events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
    return events


def takes_away(datagram: bytes, name: str) -> bool:
    """Whether a datagram of `watch_tables` may say that the table, or a chain or rule of it, is gone.

    Pods come and go with elements of its maps, which is none of these.
    """
    if name.encode() + b"\0" not in datagram:
        return False
    return any(head["header"]["type"] in _TAKEN_AWAY for head in messages_in(datagram))
