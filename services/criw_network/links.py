"""Links, addresses and routes of one network namespace, over netlink (rtnetlink(7), linux/if_link.h)."""

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final, TypeAlias

from criw_network.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Netlink,
    attribute,
    attributes,
    messages_in,
    nested,
)

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface

_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_RTM_NEWROUTE: Final = 24
_RTM_GETSTATS: Final = 94

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_NET_NS_FD: Final = 28
_IFLA_STATS_LINK_64: Final = 1
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFLA_INFO_SLAVE_KIND: Final = 4
_IFLA_INFO_SLAVE_DATA: Final = 5
_IFLA_BRPORT_MODE: Final = 4
_VETH_INFO_PEER: Final = 1
_IFLA_BR_FORWARD_DELAY: Final = 1
_IFF_UP: Final = 1
_RTMGRP_LINK: Final = 1

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_IFA_F_NODAD: Final = 0x2
_SCOPE_UNIVERSE: Final = 0

_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
_RTN_UNICAST: Final = 1

_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # rtmsg
_STATS_OF: Final = struct.Struct("=BxHII")  # if_stats_msg: family, padding, index, mask of what is wanted
_STATS: Final = struct.Struct("=8Q")  # the head of rtnl_link_stats64


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

    def at_the_other_end(self) -> "Counters":
        """What the other end of a veth pair counts: what one sends the other receives."""
        return Counters(
            rx_packets=self.tx_packets,
            tx_packets=self.rx_packets,
            rx_bytes=self.tx_bytes,
            tx_bytes=self.rx_bytes,
            rx_errors=self.tx_errors,
            tx_errors=self.rx_errors,
            rx_dropped=self.tx_dropped,
            tx_dropped=self.rx_dropped,
        )


@dataclass(frozen=True)
class Link:
    """What we look at of a link. `master` is the index of the bridge it is a port of, 0 for none."""

    index: int
    name: str
    alias: str
    master: int


def _link(index: int = 0, *, up: bool = False) -> bytes:
    return _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP if up else 0, _IFF_UP if up else 0)


def _family(address: Address | Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def set_up(index: int) -> Message:
    return Message(_RTM_NEWLINK, _link(index, up=True), what=f"set link {index} up")


def new_bridge(name: str, *, mac: bytes, mtu: int) -> Message:
    """A bridge without spanning tree, whose ports forward at once, up.

    A given MAC address stays: a bridge without one takes a port's, and changes it as ports come and go.
    """
    payload = (
        _link(up=True)
        + attribute(_IFLA_IFNAME, name)
        + attribute(_IFLA_ADDRESS, mac)
        + attribute(_IFLA_MTU, mtu)
        + nested(
            _IFLA_LINKINFO,
            attribute(_IFLA_INFO_KIND, "bridge"),
            nested(_IFLA_INFO_DATA, attribute(_IFLA_BR_FORWARD_DELAY, 0)),
        )
    )
    return Message(_RTM_NEWLINK, payload, NLM_F_CREATE | NLM_F_EXCL, f"create bridge {name}")


def new_veth(name: str, *, bridge: int, mtu: int, peer: str, peer_mac: bytes, peer_netns: int) -> Message:
    """A pair of which one end, up, is a port of `bridge` and the other, down, is made in the namespace of an open file.

    The other end cannot be made up: the kernel brings it up before it has this one for a peer, and refuses.
    """
    payload = (
        _link(up=True)
        + attribute(_IFLA_IFNAME, name)
        + attribute(_IFLA_MTU, mtu)
        + attribute(_IFLA_MASTER, bridge)
        + nested(
            _IFLA_LINKINFO,
            attribute(_IFLA_INFO_KIND, "veth"),
            nested(
                _IFLA_INFO_DATA,
                attribute(
                    _VETH_INFO_PEER,
                    _link()
                    + attribute(_IFLA_IFNAME, peer)
                    + attribute(_IFLA_ADDRESS, peer_mac)
                    + attribute(_IFLA_MTU, mtu)
                    + attribute(_IFLA_NET_NS_FD, peer_netns),
                ),
            ),
        )
    )
    return Message(_RTM_NEWLINK, payload, NLM_F_CREATE | NLM_F_EXCL, f"create link {name}")


def set_alias(name: str, alias: str) -> Message:
    payload = _link() + attribute(_IFLA_IFNAME, name) + attribute(_IFLA_IFALIAS, alias.encode())
    return Message(_RTM_NEWLINK, payload, what=f"name link {name}")


def allow_hairpin(name: str) -> Message:
    """Let a bridge send through this port what came by it: a pod that reaches itself through a host port.

    Without br_netfilter such a packet is routed and would pass anyway; with it, the bridge itself turns it round.
    """
    slave = nested(
        _IFLA_LINKINFO,
        attribute(_IFLA_INFO_SLAVE_KIND, "bridge"),
        nested(_IFLA_INFO_SLAVE_DATA, attribute(_IFLA_BRPORT_MODE, b"\1")),
    )
    return Message(_RTM_NEWLINK, _link() + attribute(_IFLA_IFNAME, name) + slave, what=f"set up bridge port {name}")


def set_master(index: int, bridge: int) -> Message:
    return Message(_RTM_NEWLINK, _link(index) + attribute(_IFLA_MASTER, bridge), what=f"add link {index} to the bridge")


def delete_link(name: str) -> Message:
    return Message(_RTM_DELLINK, _link() + attribute(_IFLA_IFNAME, name), what=f"delete link {name}")


def _address(kind: int, index: int, address: Interface, flags: int, what: str) -> Message:
    raw = address.ip.packed
    head = _ADDRESS.pack(_family(address), address.network.prefixlen, 0, _SCOPE_UNIVERSE, index)
    payload = head + attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw) + attribute(_IFA_FLAGS, _IFA_F_NODAD)
    return Message(kind, payload, flags, f"{what} address {address}")


def add_address(index: int, address: Interface) -> Message:
    """Usable at once: no duplicate address detection, for it is we who hand them out."""
    return _address(_RTM_NEWADDR, index, address, NLM_F_CREATE | NLM_F_REPLACE, "add")


def delete_address(index: int, address: Interface) -> Message:
    return _address(_RTM_DELADDR, index, address, 0, "delete")


def default_route(index: int, gateway: Address) -> Message:
    head = _ROUTE.pack(_family(gateway), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    payload = head + attribute(_RTA_GATEWAY, gateway.packed) + attribute(_RTA_OIF, index)
    return Message(_RTM_NEWROUTE, payload, NLM_F_CREATE | NLM_F_EXCL, f"add the default route by {gateway}")


def addresses(netlink: Netlink) -> Iterator[tuple[int, Interface]]:
    """The addresses of all links with their link's index, without those that are link-local."""
    dump = Message(_RTM_GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0), NLM_F_DUMP, "list addresses")
    for payload in netlink.ask(dump):
        _, prefix, _, _, index = _ADDRESS.unpack_from(payload)
        fields = dict(attributes(payload[_ADDRESS.size :]))
        address = ipaddress.ip_interface((fields.get(_IFA_LOCAL) or fields[_IFA_ADDRESS], prefix))
        if not address.ip.is_link_local:
            yield index, address


def link(netlink: Netlink, name: str) -> Link:
    """Raises OSError (ENODEV) if there is none."""
    get = Message(_RTM_GETLINK, _link() + attribute(_IFLA_IFNAME, name), what=f"look at link {name}")
    return _parse(netlink.ask(get)[0])


def counters(netlink: Netlink, index: int) -> Counters:
    """The counters of a link, and nothing else of it. Raises OSError (ENODEV) if there is none."""
    wanted = _STATS_OF.pack(socket.AF_UNSPEC, 0, index, 1 << (_IFLA_STATS_LINK_64 - 1))
    (payload,) = netlink.ask(Message(_RTM_GETSTATS, wanted, what=f"read the counters of link {index}"))
    return Counters(*_STATS.unpack_from(dict(attributes(payload[_STATS_OF.size :]))[_IFLA_STATS_LINK_64]))


def links(netlink: Netlink) -> Iterator[Link]:
    """All links of the namespace."""
    for payload in netlink.ask(Message(_RTM_GETLINK, _link(), NLM_F_DUMP, "list links")):
        yield _parse(payload)


def watch_links() -> socket.socket:
    """A socket, not blocking, that gets every change of a link of the thread's namespace (see `deleted_links`)."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
    )
    events.bind((0, _RTMGRP_LINK))
    return events


def deleted_links(datagram: bytes) -> Iterator[int]:
    """Indexes of the links that a datagram of `watch_links` says are gone."""
    for kind, _, _, payload in messages_in(datagram):
        family, _, index, _, _ = _LINK.unpack_from(payload)
        # A bridge tells in its own family that it lost a port.
        if kind == _RTM_DELLINK and family == socket.AF_UNSPEC:
            yield index


def _parse(payload: bytes) -> Link:
    _, _, index, _, _ = _LINK.unpack_from(payload)
    fields = dict(attributes(payload[_LINK.size :]))
    return Link(
        index=index,
        name=_text(fields[_IFLA_IFNAME]),
        alias=_text(fields.get(_IFLA_IFALIAS, b"")),
        master=_number(fields.get(_IFLA_MASTER)),
    )


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _number(raw: bytes | None) -> int:
    return 0 if raw is None else int(struct.unpack("=I", raw)[0])
