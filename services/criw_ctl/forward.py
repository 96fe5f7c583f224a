"""`criwctl port-forward`: local TCP ports that lead into a pod, each connection a pair of SPDY streams."""

import asyncio
import contextlib
import ipaddress
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from criw.errors import FailedPrecondition, InvalidArgument, Unavailable
from criw.spdy.connection import Closed, Connection, Stream
from criw_ctl.descriptors import CHUNK
from criw_ctl.door import Door
from criw_ctl.interruptions import either, interruptions, unless
from criw_ctl.names import take_inventory
from criw_ctl.sessions import url_of
from criw_ctl.streams import connected
from criw_ctl.tunnel import Tunnel
from criw_proto.runtime.v1 import Container, PortForwardRequest

PROTOCOL: Final = "SPDY/3.1+portforward.k8s.io"
_LOOPBACK: Final = "127.0.0.1"
_TEXT_LIMIT_BYTES: Final = 64 * 1024
_TEXT_LIMIT_S: Final = 5.0
_GOODBYE_LIMIT_S: Final = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Forward:
    """A local port, 0 for any that is free, and the port in the pod it leads to."""

    address: str
    local: int
    remote: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.local}" if ":" in self.address else f"{self.address}:{self.local}"


def parse_forward(text: str) -> Forward:
    """[[ADDRESS:]LOCAL:]REMOTE; an IPv6 address stands in brackets, no LOCAL is any port. Raises InvalidArgument."""
    rest, colon, remote = text.rpartition(":")
    address, _, local = rest.rpartition(":")
    try:
        where = str(ipaddress.ip_address(address.strip("[]"))) if address not in {"", "localhost"} else _LOOPBACK
        there = _port(remote)
        here = there if not colon else _port(local) if local else 0
    except ValueError as err:
        raise InvalidArgument(
            f"cannot forward {text}: {err}; write it as LOCAL:REMOTE, ADDRESS:LOCAL:REMOTE, :REMOTE or REMOTE"
        ) from err
    return Forward(where, here, there)


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if not 0 < number < 65536:
        raise ValueError("ports are numbers from 1 to 65535")
    return number


async def forward(door: Door, name: str, wishes: Sequence[Forward], *, say: Say, complain: Say) -> None:
    """Forward until SIGINT, SIGTERM or SIGHUP; `say` is told each address, `complain` each connection that failed.

    Raises FailedPrecondition if a local port is taken, Unavailable if the connection to the crew is lost.
    """
    with interruptions() as interrupted:
        found = (await take_inventory(door)).pod_or_container(name)
        pod_id = found.pod_sandbox_id if isinstance(found, Container) else found.id
        async with contextlib.AsyncExitStack() as stack:
            accepted: asyncio.Queue[_Accepted] = asyncio.Queue()
            listeners = [await stack.enter_async_context(_listening(wish, accepted)) for wish in wishes]
            request = PortForwardRequest(pod_sandbox_id=pod_id, port=[wish.remote for wish in wishes])
            url = await unless(interrupted, url_of(door.runtime.port_forward, request))
            tunnel = Tunnel(await stack.enter_async_context(connected(url, PROTOCOL)), server=False)
            for listener, wish in zip(listeners, wishes, strict=True):
                await listener.start_serving()
                bound = Forward(wish.address, listener.sockets[0].getsockname()[1], wish.remote)
                say(f"{bound} leads to port {bound.remote} of {name}")
            running = asyncio.create_task(_run(tunnel, accepted, complain), name="port-forward")
            try:
                await either(running, interrupted)
                if running.done():
                    running.result()
                    raise Unavailable("cannot forward any longer: the streaming server went away; try again")
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


@dataclass(frozen=True)
class _Accepted:
    """A local connection, and the port it is for."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    remote: int


@contextlib.asynccontextmanager
async def _listening(wish: Forward, accepted: "asyncio.Queue[_Accepted]") -> AsyncIterator[asyncio.Server]:
    """A listener that does not accept yet. Raises FailedPrecondition."""

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.put_nowait(_Accepted(reader, writer, wish.remote))

    try:
        server = await asyncio.start_server(accept, wish.address, wish.local, start_serving=False)
    except OSError as err:
        raise FailedPrecondition(f"cannot listen on {wish}: {err.strerror or err}; choose another local port") from err
    try:
        yield server
    finally:
        server.close()


async def _run(tunnel: Tunnel, accepted: "asyncio.Queue[_Accepted]", complain: Say) -> None:
    """Forward what is accepted until the tunnel ends."""
    numbers = itertools.count()

    async def take() -> None:
        async with asyncio.TaskGroup() as pairs:
            while True:
                one = await accepted.get()
                number = next(numbers)
                pairs.create_task(_forward(tunnel.connection, one, number, complain), name=f"pair {number}")

    taking = asyncio.create_task(take(), name="connections to forward")
    carrying = asyncio.create_task(tunnel.run(), name="tunnel")
    try:
        done, _ = await asyncio.wait({taking, carrying}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        tunnel.connection.close()
        await asyncio.wait({carrying}, timeout=_GOODBYE_LIMIT_S)
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)


async def _forward(connection: Connection, one: _Accepted, number: int, complain: Say) -> None:
    """One connection to its end; its failure is told and hurts no other."""
    headers = {"port": str(one.remote), "requestid": str(number)}
    error: Stream | None = None
    try:
        # In this order; the client sends nothing on the first.
        error = await connection.open(headers | {"streamtype": "error"})
        error.close_write()
        data = await connection.open(headers | {"streamtype": "data"})
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_inward(one.reader, data), name=f"to port {one.remote}")
                both.create_task(_outward(data, one.writer), name=f"from port {one.remote}")
        finally:
            data.reset()
    except* (Closed, ConnectionError):  # one side has given up, and so the other must; the reason is on `error`
        pass
    finally:
        one.writer.close()
    if error is None:
        complain(f"cannot forward a connection to port {one.remote}: the streaming server refuses it")
    elif text := await _text(error):
        complain(f"cannot forward a connection to port {one.remote}: {text}")


async def _inward(reader: asyncio.StreamReader, data: Stream) -> None:
    while chunk := await reader.read(CHUNK):
        await data.write(chunk)
    data.close_write()


async def _outward(data: Stream, writer: asyncio.StreamWriter) -> None:
    while chunk := await data.read():
        writer.write(chunk)
        await writer.drain()
    if data.lost is not None:
        raise Closed(data.lost)
    writer.write_eof()


async def _text(error: Stream) -> str:
    """What the server says of a failure; "" if all went well."""
    text = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TEXT_LIMIT_S):
            while len(text) < _TEXT_LIMIT_BYTES and (chunk := await error.read()):
                text += chunk
    error.reset()
    return text.decode(errors="replace")
