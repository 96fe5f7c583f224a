"""Netlink as this agent needs it: messages packed with `struct`, sent in batches, each acknowledged by the kernel.

Why not pyroute2 (docs/decisions/0006): importing any part of it costs 8 MB and 80 ms at start, its
asyncio core does not run on uvloop (which has no netlink datagram endpoint), and its blocking core needs 11 ms for
what takes 2 ms here. A socket belongs to the namespace its thread was in when it was made. Calls block: the kernel
does the work before `sendto` returns. Numbers are those of linux/netlink.h and its family headers.
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
RECEIVE_BYTES: Final = 1 << 16


def attribute(kind: int, value: bytes | str | int) -> bytes:
    """One attribute, padded; text is terminated by a zero byte and a number is 32 bits in the host's order."""
    raw = value if isinstance(value, bytes) else value.encode() + b"\0" if isinstance(value, str) else _u32(value)
    return _ATTRIBUTE.pack(4 + len(raw), kind) + raw + bytes(-len(raw) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `raw`, without their flags."""
    at = 0
    while at + 4 <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, at)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, raw[at + 4 : at + length]
        at += (length + 3) & ~3


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


@dataclass(frozen=True)
class Message:
    """A request: its type, flags besides REQUEST and ACK, and everything after the netlink header."""

    kind: int
    payload: bytes
    flags: int = 0
    what: str = ""  # what it does to what, for the error of a refusal


class Netlink:
    """A netlink socket in the calling thread's network namespace. Not for several threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def run(self, *messages: Message) -> None:
        """Send all at once; the kernel does them in order. Raises the OSError of the first that was refused."""
        if not messages:
            return
        first = self._send(messages, NLM_F_ACK)
        waiting = set(range(first, self._sequence))
        refused: OSError | None = None
        while waiting:
            for kind, flags, sequence, payload in self._receive():
                if kind != _NLMSG_ERROR or sequence not in waiting:
                    continue
                waiting.discard(sequence)
                err = _refusal(payload, flags, messages[sequence - first].what)
                refused = refused or err
        if refused is not None:
            raise refused

    def ask(self, message: Message) -> list[bytes]:
        """The payloads answering a dump or a get. Raises the kernel's OSError."""
        dump = message.flags & NLM_F_DUMP == NLM_F_DUMP
        first = self._send((message,), 0)
        found: list[bytes] = []
        while True:
            for kind, flags, sequence, payload in self._receive():
                if sequence != first:
                    continue
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    if payload and (err := _refusal(payload, flags, message.what)) is not None:
                        raise err
                    return found
                found.append(payload)
                if not dump:
                    return found

    def _send(self, messages: tuple[Message, ...], flags: int) -> int:
        first = self._sequence
        batch = bytearray()
        for message in messages:
            size = _HEADER.size + len(message.payload)
            batch += _HEADER.pack(size, message.kind, message.flags | NLM_F_REQUEST | flags, self._sequence, 0)
            batch += message.payload + bytes(-size % 4)
            self._sequence += 1
        self._socket.sendto(batch, (0, 0))
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        return messages_in(self._socket.recv(RECEIVE_BYTES))


def messages_in(raw: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence number and payload of each message of a datagram."""
    at = 0
    while at + _HEADER.size <= len(raw):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(raw, at)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, raw[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _refusal(payload: bytes, flags: int, what: str) -> OSError | None:
    (number,) = struct.unpack_from("=i", payload)
    if number == 0:
        return None
    text = os.strerror(-number)
    if flags & _NLM_F_ACK_TLVS:
        # after the error number comes the request's header, and with CAP_ACK nothing else of the request
        told = dict(attributes(payload[4 + _HEADER.size :])).get(_NLMSGERR_ATTR_MSG)
        if told:
            text = f"{text}: {told.rstrip(bytes(1)).decode(errors='replace')}"
    return OSError(-number, f"{what}: {text}" if what else text)
