"""Forgetting UDP flows, in a network namespace of its own with real ones."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_interface

import pytest
from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_DUMP, nlmsg

from criw import kernel
from criw_network.builtin import conntrack
from criw_network.builtin.nftables import Nftables
from criw_network.netlink import links
from criw_network.netlink.socket import Message, Netlink
from criw_network.pod import HostPort

pytestmark = pytest.mark.root

_TRACK = "table inet track {\n chain out {\n type filter hook output priority 0\n ct state new accept\n }\n}\n"


def udp(host_port: int, host_ip: str = "") -> HostPort:
    return HostPort(protocol="udp", host_port=host_port, container_port=1, host_ip=host_ip)


@contextlib.contextmanager
def tracked(*flows: tuple[str, int]) -> Iterator[None]:
    """In the thread: a namespace with these flows, by destination address and port."""
    kernel.unshare(kernel.CLONE_NEWNET)
    with Netlink() as netlink:
        netlink.run(links.set_up(1))
        for place in ("198.18.0.1/24", "fd99::1/64"):
            netlink.run(links.add_address(1, ip_interface(place)))
    nft = Nftables.load()
    nft.run(_TRACK)  # the kernel tracks where a rule asks about it
    for address, port in flows:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.sendto(b"?", (address, port))
    yield
    nft.close()


def known() -> set[tuple[str, int]]:
    with Netlink(NETLINK_NETFILTER) as netlink:
        return {
            (str(destination), number)
            for version in (4, 6)
            for destination, number, _ in conntrack._flows(netlink, version, range(1 << 16))
        }


HERE = [("127.0.0.1", 7001), ("127.0.0.1", 7002), ("198.18.0.1", 7001), ("fd99::1", 7001), ("fd99::1", 7003)]


async def test_flows_to_the_hosts_ports_are_forgotten_and_others_kept() -> None:
    def work() -> None:
        with tracked(*HERE):
            assert known() == set(HERE)
            conntrack.forget([udp(7001, "198.18.0.1"), udp(7003)])
            assert known() == {("127.0.0.1", 7001), ("127.0.0.1", 7002), ("fd99::1", 7001)}
            conntrack.forget([udp(7001)])
            assert known() == {("127.0.0.1", 7002)}

    await kernel.in_fresh_thread(work)


async def test_flows_to_an_address_of_another_machine_are_not_touched() -> None:
    def work() -> None:
        with tracked(("198.18.0.77", 7001), ("198.18.0.1", 7001)):
            conntrack.forget([udp(7001, "198.18.0.77"), udp(7001)])
            assert known() == {("198.18.0.77", 7001)}

    await kernel.in_fresh_thread(work)


async def test_many_ports_take_one_listing_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    listings: list[str] = []
    ask = Netlink.ask

    def counting(netlink: Netlink, message: Message, **how: Callable[[bytes], bool]) -> list[nlmsg]:
        if message.flags & NLM_F_DUMP and "flow" in message.what:
            listings.append(message.what)
        return ask(netlink, message, **how)

    def work() -> None:
        with tracked(*HERE):
            monkeypatch.setattr(Netlink, "ask", counting)
            conntrack.forget([udp(port) for port in range(6900, 7400)])
            monkeypatch.undo()
            assert known() == set()

    await kernel.in_fresh_thread(work)
    assert len(listings) == 2
