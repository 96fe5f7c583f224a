"""Links, addresses and routes of one network namespace, over netlink (rtnetlink(7), linux/if_link.h)."""

import dataclasses
import errno
import functools
import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final, TypeAlias

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETSTATS,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_LINK,
    rtprotos,
    rtscopes,
    rtypes,
)
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP, ifinfmsg
from pyroute2.netlink.rtnl.ifstatsmsg import ifstatsmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from criw_network.netlink.socket import Message, Netlink, messages_in, read

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface

_LINK_64: Final = 1  # IFLA_STATS_FILTER_BIT(IFLA_STATS_LINK_64): linux/if_link.h
_RT_TABLE_MAIN: Final = 254  # linux/rtnetlink.h

# Of messages that are the same for pod after pod: sent again, one is not compiled again.
_MANY: Final = 64


@dataclass(frozen=True)
class Counters:
    """rtnl_link_stats64, as the interface itself sees it."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int
    rx_dropped: int
    tx_dropped: int


@dataclass(frozen=True)
class Link:
    """What we look at of a link. `master` is the index of the bridge it is a port of, 0 for none."""

    index: int
    name: str
    alias: str
    master: int
    up: bool


def _fields(index: int = 0, *, up: bool = False) -> dict[str, int]:
    return {"index": index, "flags": IFF_UP if up else 0, "change": IFF_UP if up else 0}


def _family(address: Address | Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _mac(raw: bytes) -> str:
    return raw.hex(":")


@functools.lru_cache(_MANY)
def set_up(index: int) -> Message:
    return Message(RTM_NEWLINK, ifinfmsg, _fields(index, up=True), what=f"set link {index} up")


def new_bridge(name: str, *, mac: bytes, mtu: int) -> Message:
    """A bridge without spanning tree, whose ports forward at once, up.

    A given MAC address stays: a bridge without one takes a port's, and changes it as ports come and go.
    """
    info = _nested(("IFLA_INFO_KIND", "bridge"), ("IFLA_INFO_DATA", _nested(("IFLA_BR_FORWARD_DELAY", 0))))
    return Message(
        RTM_NEWLINK,
        ifinfmsg,
        _fields(up=True),
        [("IFLA_IFNAME", name), ("IFLA_ADDRESS", _mac(mac)), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", info)],
        NLM_F_CREATE | NLM_F_EXCL,
        f"create bridge {name}",
    )


def new_veth(name: str, *, bridge: int, mtu: int, peer: str, peer_mac: bytes, peer_netns: int) -> Message:
    """A pair of which one end, up, is a port of `bridge` and the other, down, is made in the namespace of an open file.

    The other end cannot be made up: the kernel brings it up before it has this one for a peer, and refuses.
    """
    other_end = _nested(
        ("IFLA_IFNAME", peer), ("IFLA_ADDRESS", _mac(peer_mac)), ("IFLA_MTU", mtu), ("IFLA_NET_NS_FD", peer_netns)
    )
    info = _nested(("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", _nested(("VETH_INFO_PEER", other_end))))
    return Message(
        RTM_NEWLINK,
        ifinfmsg,
        _fields(up=True),
        [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_MASTER", bridge), ("IFLA_LINKINFO", info)],
        NLM_F_CREATE | NLM_F_EXCL,
        f"create link {name}",
    )


def set_alias(name: str, alias: str) -> Message:
    return Message(
        RTM_NEWLINK,
        ifinfmsg,
        attributes=[("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)],
        what=f"name link {name}",
    )


def set_port(name: str, alias: str) -> Message:
    """Name a port of a bridge, and let the bridge send through it what came by it.

    The latter is for a pod that reaches itself through a host port. Without br_netfilter such a packet is routed and
    would pass anyway; with it, the bridge itself turns it round.
    """
    info = _nested(("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", _nested(("IFLA_BRPORT_MODE", 1))))
    return Message(
        RTM_NEWLINK,
        ifinfmsg,
        attributes=[("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias), ("IFLA_LINKINFO", info)],
        what=f"set up bridge port {name}",
    )


def set_master(index: int, bridge: int) -> Message:
    return Message(
        RTM_NEWLINK, ifinfmsg, _fields(index), [("IFLA_MASTER", bridge)], what=f"add link {index} to the bridge"
    )


def delete_link(name: str) -> Message:
    return Message(RTM_DELLINK, ifinfmsg, attributes=[("IFLA_IFNAME", name)], what=f"delete link {name}")


def _address(kind: int, index: int, address: Interface, flags: int, what: str) -> Message:
    fields = {"family": _family(address), "prefixlen": address.network.prefixlen, "index": index}
    ip = str(address.ip)
    attributes = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip), ("IFA_FLAGS", IFA_F_NODAD)]
    return Message(kind, ifaddrmsg, fields, attributes, flags, f"{what} address {address}")


def add_address(index: int, address: Interface) -> Message:
    """Usable at once: no duplicate address detection, for it is we who hand them out."""
    return _address(RTM_NEWADDR, index, address, NLM_F_CREATE | NLM_F_REPLACE, "add")


def delete_address(index: int, address: Interface) -> Message:
    return _address(RTM_DELADDR, index, address, 0, "delete")


@functools.lru_cache(_MANY)
def default_route(index: int, gateway: Address) -> Message:
    return Message(
        RTM_NEWROUTE,
        rtmsg,
        {
            "family": _family(gateway),
            "table": _RT_TABLE_MAIN,
            "proto": rtprotos["RTPROT_STATIC"],
            "scope": rtscopes["RT_SCOPE_UNIVERSE"],
            "type": rtypes["RTN_UNICAST"],
        },
        [("RTA_GATEWAY", str(gateway)), ("RTA_OIF", index)],
        NLM_F_CREATE | NLM_F_EXCL,
        f"add the default route by {gateway}",
    )


def addresses(netlink: Netlink) -> Iterator[tuple[int, Interface]]:
    """The addresses of all links with their link's index, without those that are link-local."""
    for found in netlink.ask(Message(RTM_GETADDR, ifaddrmsg, flags=NLM_F_DUMP, what="list addresses")):
        ip = found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS")
        address = ipaddress.ip_interface((ip, found["prefixlen"]))
        if not address.ip.is_link_local:
            yield found["index"], address


def index_of(name: str) -> int:
    """The index of a link of the thread's namespace; cheap. Raises OSError (ENODEV) if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError as err:  # which has no errno
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name) from err


def link(netlink: Netlink, name: str) -> Link:
    """Raises OSError (ENODEV) if there is none."""
    (found,) = netlink.ask(
        Message(RTM_GETLINK, ifinfmsg, attributes=[("IFLA_IFNAME", name)], what=f"look at link {name}")
    )
    return _link(found)


def links(netlink: Netlink) -> Iterator[Link]:
    """All links of the namespace."""
    for found in netlink.ask(Message(RTM_GETLINK, ifinfmsg, flags=NLM_F_DUMP, what="list links")):
        yield _link(found)


def _link(found: nlmsg) -> Link:
    return Link(
        index=found["index"],
        name=found.get_attr("IFLA_IFNAME"),
        alias=found.get_attr("IFLA_IFALIAS", ""),
        master=found.get_attr("IFLA_MASTER", 0),
        up=bool(found["flags"] & IFF_UP),
    )


def counters(netlink: Netlink, index: int) -> Counters:
    """The counters of a link, and nothing else of it. Raises OSError (ENODEV) if there is none."""
    (found,) = netlink.ask(
        Message(
            RTM_GETSTATS,
            ifstatsmsg,
            {"ifindex": index, "filter_mask": _LINK_64},
            what=f"read the counters of link {index}",
        )
    )
    counted = found.get_attr("IFLA_STATS_LINK_64")
    return Counters(**{field.name: counted[field.name] for field in dataclasses.fields(Counters)})


def watch_links() -> socket.socket:
    """A socket, not blocking, that gets every change of a link of the thread's namespace (see `deleted_links`)."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
    )
    events.bind((0, RTMGRP_LINK))
    return events


def deleted_links(datagram: bytes) -> Iterator[int]:
    """Indexes of the links that a datagram of `watch_links` says are gone."""
    for head in messages_in(datagram):
        if head["header"]["type"] == RTM_DELLINK:
            gone = read(ifinfmsg, head)
            # A bridge tells in its own family that it lost a port.
            if gone["family"] == socket.AF_UNSPEC:
                yield gone["index"]


def _nested(*attributes: tuple[str, object]) -> dict[str, object]:
    return {"attrs": attributes}
