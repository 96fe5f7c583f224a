"""Pods with nothing in them but their network: sockets opened in their namespaces, and the agent's client."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from criw import kernel, namespaces
from criw.ids import new_id
from criw.mountinfo import mounts_below
from criw.rpc.client import call
from criw_proto.criw.network.v1 import (
    AttachRequest,
    DetachRequest,
    ListRequest,
    NetworkStatusStub,
    NetworkStub,
    PortMapping,
    StatusRequest,
    StatusResponse,
    UpdateConfigRequest,
)
from support.crew import Crew
from support.host import links_on
from support.own import ranges

T = TypeVar("T")
LIMIT_S = 5.0


@dataclass(frozen=True)
class Place:
    """A network namespace, with a name to tell it by; None is the host's."""

    name: str
    netns: Path | None
    ips: tuple[str, ...] = ()

    async def inside(self, work: Callable[[], T]) -> T:
        """Run blocking `work` in a thread that is in the namespace."""
        netns = self.netns
        if netns is None:
            return await asyncio.to_thread(work)

        def entered() -> T:
            with netns.open("rb") as file:
                kernel.setns(file.fileno(), kernel.CLONE_NEWNET)
            return work()

        return await kernel.in_fresh_thread(entered)

    async def socket(self, address: str, kind: socket.SocketKind) -> socket.socket:
        """A socket of the namespace, for the family of `address`; it may be used from outside."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = await self.inside(lambda: socket.socket(family, kind))
        made.setblocking(False)
        return made

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace."""
        entered = [] if self.netns is None else ["nsenter", f"--net={self.netns}"]
        return subprocess.run([*entered, *argv], capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def pings(self, address: str) -> bool:
        return self.run("busybox", "ping", "-c", "1", "-W", "2", address).returncode == 0


HOST = Place("host", None)


@contextlib.asynccontextmanager
async def tcp_server(place: Place, port: int, address: str = "0.0.0.0") -> AsyncIterator[None]:
    """A server that tells every client its own name and the client's address."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{place.name} {writer.get_extra_info('peername')[0]}".encode())
        writer.close()
        await writer.wait_closed()

    listening = await place.socket(address, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    async with await asyncio.start_server(answer, sock=listening):
        yield


async def ask_tcp(place: Place, address: str, port: int) -> tuple[str, str]:
    """Who answered, and from which address it saw us come. Raises OSError or TimeoutError if nobody does."""
    async with asyncio.timeout(LIMIT_S):
        connection = await place.socket(address, socket.SOCK_STREAM)
        with connection:
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
            reader, writer = await asyncio.open_connection(sock=connection)
            who, _, seen = (await reader.read()).decode().partition(" ")
            writer.close()
            await writer.wait_closed()
    return who, seen


@contextlib.asynccontextmanager
async def udp_server(place: Place, port: int, address: str = "0.0.0.0") -> AsyncIterator[None]:
    """As `tcp_server`, for datagrams."""

    class Answer(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(f"{place.name} {addr[0]}".encode(), addr)

    bound = await place.socket(address, socket.SOCK_DGRAM)
    bound.bind((address, port))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Answer, sock=bound)
    try:
        yield
    finally:
        transport.close()


async def ask_udp(place: Place, address: str, port: int, *, source_port: int = 0) -> tuple[str, str]:
    """As `ask_tcp`, with one datagram; from a port of ours if one is given."""
    loop = asyncio.get_running_loop()
    sending = await place.socket(address, socket.SOCK_DGRAM)
    with sending:
        sending.bind(("::" if ":" in address else "0.0.0.0", source_port))
        sending.connect((address, port))
        async with asyncio.timeout(LIMIT_S):
            await loop.sock_sendall(sending, b"?")
            who, _, seen = (await loop.sock_recv(sending, 200)).decode().partition(" ")
    return who, seen


class NetworkClient:
    """The agent's calls, its errors as faults."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    @property
    def stub(self) -> NetworkStub:
        return NetworkStub(self._crew.channel("network"))

    async def attach(
        self,
        pod_id: str | None = None,
        *,
        ports: Sequence[PortMapping] = (),
        sysctls: Mapping[str, str] | None = None,
    ) -> Place:
        pod_id = new_id() if pod_id is None else pod_id
        request = AttachRequest(pod_id=pod_id, port_mappings=list(ports), sysctls=dict(sysctls or {}))
        reply = await call(self.stub.attach, request, agent="criw-network")
        return Place(pod_id, Path(reply.netns_path), tuple(reply.ips))

    async def detach(self, pod: Place | str) -> None:
        pod_id = pod if isinstance(pod, str) else pod.name
        await call(self.stub.detach, DetachRequest(pod_id=pod_id), agent="criw-network")

    async def attached(self) -> set[str]:
        return set((await call(self.stub.list, ListRequest(), agent="criw-network")).pod_ids)

    async def lost(self) -> set[str]:
        return set((await call(self.stub.list, ListRequest(), agent="criw-network")).lost)

    async def status(self) -> StatusResponse:
        stub = NetworkStatusStub(self._crew.channel("network"))
        return await call(stub.status, StatusRequest(), agent="criw-network")

    async def update_config(self, *cidrs: str) -> None:
        await call(self.stub.update_config, UpdateConfigRequest(pod_cidrs=list(cidrs)), agent="criw-network")

    async def detach_all(self) -> None:
        for pod_id in await self.attached():
            await self.detach(pod_id)


def left_by_pods(crew: Crew) -> list[str]:
    """Links on the crew's bridge, pins and map elements: what pods have, bridge and table themselves not counted."""
    bridge = crew.config.network.bridge
    found = [f"link {link}" for link in links_on(bridge)]
    pins = crew.config.run_dir("network") / "netns"
    found += [f"pin {pin.name}" for pin in pins.iterdir()]
    found += [f"mount {point}" for point in mounts_below(pins)]
    return found + [f"element {element}" for element in elements(crew)]


def elements(crew: Crew) -> list[str]:
    """The elements of the crew's host port maps, as nft prints them in JSON; none if there is no table."""
    listed = subprocess.run(
        ["nft", "-j", "list", "table", "inet", f"criw_{crew.config.network.bridge}"],
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        return []
    objects = json.loads(listed.stdout)["nftables"]
    maps = [entry["map"] for entry in objects if "map" in entry]
    return sorted(f"{m['name']} {json.dumps(element)}" for m in maps for element in m.get("elem", []))


@contextlib.asynccontextmanager
async def outside_world() -> AsyncIterator[tuple[Place, Mapping[int, str]]]:
    """Another machine on a network of the host's: a namespace, and the host's address there by IP version.

    It knows no way to any pod: what answers it, or what it answers, was translated.
    """
    token = secrets.token_hex(3)
    ipv4, ipv6 = ranges()
    link, subnet, prefix = f"ow{token}", ipv4.removesuffix(".0/24"), ipv6.removesuffix("::/64")
    pin = Path(f"/run/criw-test-{token}")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def make() -> None:
        kernel.unshare(kernel.CLONE_NEWNET)
        namespaces.pin("net", pin)

    try:
        await kernel.in_fresh_thread(make)
        place = Place("outside", pin, (f"{subnet}.2", f"{prefix}::2"))
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", os.fspath(pin))
        for address in (f"{subnet}.1/24", f"{prefix}::1/64"):
            ip("addr", "add", address, "dev", link, *(["nodad"] if ":" in address else []))
        ip("link", "set", link, "up")
        place.run("ip", "link", "set", "eth0", "up")
        for address in (f"{subnet}.2/24", f"{prefix}::2/64"):
            place.run("ip", "addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        yield place, {4: f"{subnet}.1", 6: f"{prefix}::1"}
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", link)
        namespaces.unpin(pin)


async def answers(question: Coroutine[object, object, object]) -> bool:
    """Whether somebody answers a question of `ask_tcp` or `ask_udp` within a second."""
    try:
        await asyncio.wait_for(question, 1.0)
    except (OSError, TimeoutError):
        return False
    return True


def send_router_advertisement(prefix: str) -> None:
    """Say to all on `eth0`, by a raw frame as NET_RAW allows, that we are a router, and for a /64 of addresses."""
    source, everybody = socket.inet_pton(socket.AF_INET6, "fe80::bad"), socket.inet_pton(socket.AF_INET6, "ff02::1")
    mac = bytes.fromhex("02bad0bad001")
    an_hour = struct.pack("!II", 3600, 3600)
    on_link_and_autonomous = 0xC0
    body = (
        struct.pack("!BBHII", 64, 0, 1800, 0, 0)
        + struct.pack("!BBBB", 3, 4, 64, on_link_and_autonomous)
        + an_hour
        + bytes(4)
        + socket.inet_pton(socket.AF_INET6, prefix)
        + (b"\x01\x01" + mac)
    )
    pseudo = source + everybody + struct.pack("!II", 4 + len(body), socket.IPPROTO_ICMPV6)
    total = sum(struct.unpack(f"!{(len(pseudo) + 4 + len(body)) // 2}H", pseudo + b"\x86\0\0\0" + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = struct.pack("!BBH", 134, 0, ~total & 0xFFFF) + body
    header = struct.pack("!IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255) + source + everybody
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending:
        sending.bind(("eth0", 0x86DD))
        sending.send(bytes.fromhex("333300000001") + mac + b"\x86\xdd" + header + message)
