"""A netlink socket: requests go out in batches, each acknowledged by the kernel, and what it answers is read.

The messages are pyroute2's; its sockets are not used, for they need an event loop each (docs/decisions/0007). A socket
belongs to the namespace its thread was in when it was made. Calls block: the kernel does the work before `sendto`
returns.
"""

import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Final, Self

from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    nlmsg,
    nlmsgerr,
)

RECEIVE_BYTES: Final = 1 << 16

# Of nlmsghdr (linux/netlink.h): flags and sequence number, behind length and type.
_CHANGING: Final = struct.Struct("=HI")
_CHANGING_AT: Final = 6


@dataclass(frozen=True)
class Message:
    """A request. `form` is pyroute2's class for it and its answers, `attributes` are as that class has them.

    pyroute2 passes over attributes whose names it does not know: tests read every message again.
    """

    kind: int
    form: type[nlmsg]
    fields: Mapping[str, int] = field(default_factory=dict)
    attributes: Sequence[tuple[str, object]] = ()
    flags: int = 0  # besides REQUEST and ACK
    what: str = ""  # what it does to what, for the error of a refusal

    @cached_property
    def _encoded(self) -> bytes:
        """But for what differs each time it is sent: compiling it takes pyroute2 up to 0.3 ms."""
        message = self.form()
        message.update(self.fields)
        message["attrs"] = list(self.attributes)
        message["header"] = {"type": self.kind}
        message.encode()
        return bytes(message.data)

    def encode(self, *, flags: int, sequence: int) -> bytes:
        raw = bytearray(self._encoded)
        _CHANGING.pack_into(raw, _CHANGING_AT, self.flags | NLM_F_REQUEST | flags, sequence)
        return bytes(raw)


class Netlink:
    """A netlink socket in the calling thread's network namespace. Not for several threads at once."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        # Without NETLINK_CAP_ACK: where the reason is, pyroute2 knows only behind the whole request.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)

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
        # The kernel tells of every refusal unasked; of what it did, the last one's acknowledgement tells enough.
        *others, last = messages
        first = self._sequence
        self._send(*((other, 0) for other in others), (last, NLM_F_ACK))
        refused: OSError | None = None
        ended = False
        while not ended:
            for head in self._receive():
                at = head["header"]["sequence_number"] - first
                if head["header"]["type"] == NLMSG_ERROR and 0 <= at < len(messages):
                    refused = refused or _refusal(head, messages[at].what)
                    ended = at == len(others)
        if refused is not None:
            raise refused

    def ask(self, message: Message, *, worth: Callable[[bytes], bool] | None = None) -> list[nlmsg]:
        """What answers a dump or a get, of the message's form. Raises the kernel's OSError.

        `worth` tells, by its bytes, whether one of many is worth reading: pyroute2 takes 0.2 ms for one with nests.
        """
        first = self._sequence
        self._send((message, 0))
        found: list[nlmsg] = []
        while True:
            for head in self._receive():
                if head["header"]["sequence_number"] != first:
                    continue
                if head["header"]["type"] in {NLMSG_ERROR, NLMSG_DONE}:
                    if (err := _refusal(head, message.what)) is not None:
                        raise err
                    return found
                if worth is None or worth(bytes(head.data[head.offset : head.offset + head.length])):
                    found.append(read(message.form, head))
                if message.flags & NLM_F_DUMP != NLM_F_DUMP:
                    return found

    def _send(self, *requests: tuple[Message, int]) -> None:
        """All at once, each with its flags, numbered in order."""
        batch = b"".join(
            message.encode(flags=flags, sequence=sequence)
            for sequence, (message, flags) in enumerate(requests, self._sequence)
        )
        self._sequence += len(requests)
        self._socket.sendto(batch, (0, 0))

    def _receive(self) -> Iterator[nlmsg]:
        return messages_in(self._socket.recv(RECEIVE_BYTES))


def messages_in(raw: bytes) -> Iterator[nlmsg]:
    """The head of each message of a datagram."""
    at = 0
    while at < len(raw):
        head = nlmsg(raw, offset=at)
        head.decode()
        yield head
        at += (head.length + 3) & ~3


def read(form: type[nlmsg], head: nlmsg) -> nlmsg:
    """The whole of a message. pyroute2 reads an attribute when it is asked for."""
    message = form(head.data, offset=head.offset)
    message.decode()
    return message


def _refusal(head: nlmsg, what: str) -> OSError | None:
    reply = read(nlmsgerr, head)
    number = -reply["error"]
    if not number:
        return None
    reason = reply.get_attr("NLMSGERR_ATTR_MSG")
    text = os.strerror(number) + (f": {reason}" if reason else "")
    return OSError(number, f"{what}: {text}" if what else text)
