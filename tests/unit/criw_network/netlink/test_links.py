"""pyroute2 passes over what it has no name for: every message must say, read again, what was put into it."""

from collections.abc import Iterable
from ipaddress import ip_interface
from socket import AF_BRIDGE

import pytest
from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl import RTM_DELLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from criw_network.netlink import links
from criw_network.netlink.socket import Message, messages_in, read

MAC = bytes((2, 0xC1, 0, 0, 0, 1))
ADDRESSES = [ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64")]
MESSAGES = [
    links.set_up(7),
    links.new_bridge("criw0", mac=MAC, mtu=1400),
    links.new_veth("v1", bridge=7, mtu=1400, peer="eth0", peer_mac=MAC, peer_netns=9),
    links.set_alias("criw0", "/var/lib/criw/network"),
    links.set_port("v1", "a" * 64),
    links.set_master(8, 7),
    links.delete_link("v1"),
    *(links.add_address(7, address) for address in ADDRESSES),
    *(links.delete_address(7, address) for address in ADDRESSES),
    *(links.default_route(7, address.ip) for address in ADDRESSES),
]


def wanted(attributes: Iterable[tuple[str, object]]) -> list[tuple[str, object]]:
    return [(name, wanted(value["attrs"]) if isinstance(value, dict) else value) for name, value in attributes]


def said(message: nlmsg) -> list[tuple[str, object]]:
    return [(slot.name, said(slot.nla) if slot.nla.nla_map else slot.value) for slot in message["attrs"]]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.what)
def test_a_message_read_again_says_what_was_put_into_it(message: Message) -> None:
    (head,) = messages_in(message.encode(flags=0, sequence=3))
    assert head["header"]["type"] == message.kind
    assert head["header"]["flags"] == message.flags | 1
    assert head["header"]["sequence_number"] == 3
    found = read(message.form, head)
    assert said(found) == wanted(message.attributes)
    assert {name: found[name] for name in message.fields} == message.fields


def test_a_batch_is_read_message_by_message() -> None:
    batch = b"".join(message.encode(flags=4, sequence=at) for at, message in enumerate(MESSAGES))
    assert [head["header"]["sequence_number"] for head in messages_in(batch)] == list(range(len(MESSAGES)))


def test_only_links_that_are_gone_are_deleted_links() -> None:
    bridge_port = Message(RTM_DELLINK, ifinfmsg, {"family": AF_BRIDGE, "index": 5})
    gone = Message(RTM_DELLINK, ifinfmsg, {"index": 6}, [("IFLA_IFNAME", "v1")])
    events = b"".join(message.encode(flags=0, sequence=0) for message in (links.set_up(4), bridge_port, gone))
    assert list(links.deleted_links(events)) == [6]
