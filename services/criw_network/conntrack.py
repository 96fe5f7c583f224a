"""Connection tracking entries that would keep UDP datagrams away from a pod's new host port.

The kernel decides where a flow goes when it sees its first packet. A client that goes on sending from the same port
(syslog, WireGuard) while its pod is replaced would talk to the old pod, or to the host itself, for ever.
Numbers are those of linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from criw.kernel import suppress_errno
from criw_network import links
from criw_network.hostports import HostPort
from criw_network.links import Address
from criw_network.netlink import NETLINK_NETFILTER, NLM_F_DUMP, Message, Netlink, attribute, attributes, nested

_GET: Final = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_DELETE: Final = 1 << 8 | 2
_CTA_TUPLE_ORIG: Final = 1
_CTA_ID: Final = 12
_CTA_FILTER: Final = 25
_CTA_FILTER_ORIG_FLAGS: Final = 1
_CTA_FILTER_REPLY_FLAGS: Final = 2
_CTA_TUPLE_IP: Final = 1
_CTA_TUPLE_PROTO: Final = 2
_CTA_IP_DST: Final = {4: 2, 6: 4}
_CTA_PROTO_NUM: Final = 1
_CTA_PROTO_DST_PORT: Final = 3
_BY_PROTOCOL_AND_PORT: Final = 1 << 3 | 1 << 5
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def forget(ports: Iterable[HostPort]) -> None:
    """Forget the UDP flows to these ports of the host, so that their next packet is looked at anew. Blocks."""
    udp = [port for port in ports if port.protocol == "udp"]
    if not udp:
        return
    with Netlink() as netlink:
        local = {address.ip for _, address in links.addresses(netlink)}
    with Netlink(NETLINK_NETFILTER) as netlink:
        for port in udp:
            for version in port.families:
                for destination, identity in _flows(netlink, version, port.host_port):
                    here = destination in local or destination.is_loopback
                    if here if port.every_address else str(destination) == port.host_ip:
                        with suppress_errno(errno.ENOENT):  # over meanwhile
                            netlink.run(Message(_DELETE, _head(version) + identity, what="forget a UDP flow"))


def _head(version: int) -> bytes:
    return struct.pack("=BBH", _FAMILY[version], 0, 0)


def _flows(netlink: Netlink, version: int, port: int) -> Iterator[tuple[Address, bytes]]:
    """Destination, and the attributes that identify the entry, of each UDP flow to a port of any address."""
    protocol = attribute(_CTA_PROTO_NUM, bytes((socket.IPPROTO_UDP,)))
    number = attribute(_CTA_PROTO_DST_PORT, struct.pack("!H", port))
    payload = (
        _head(version)
        + nested(_CTA_TUPLE_ORIG, nested(_CTA_TUPLE_PROTO, protocol, number))
        + nested(
            _CTA_FILTER,
            attribute(_CTA_FILTER_ORIG_FLAGS, _BY_PROTOCOL_AND_PORT),
            attribute(_CTA_FILTER_REPLY_FLAGS, 0),
        )
    )
    for found in netlink.ask(Message(_GET, payload, NLM_F_DUMP, "list UDP flows")):
        fields = dict(attributes(found[4:]))
        original = dict(attributes(fields[_CTA_TUPLE_ORIG]))
        what = dict(attributes(original[_CTA_TUPLE_PROTO]))
        # Looked at again: a kernel before 5.8 knows no filter and lists everything.
        if what[_CTA_PROTO_NUM][0] == socket.IPPROTO_UDP and struct.unpack("!H", what[_CTA_PROTO_DST_PORT])[0] == port:
            destination = ipaddress.ip_address(dict(attributes(original[_CTA_TUPLE_IP]))[_CTA_IP_DST[version]])
            yield destination, nested(_CTA_TUPLE_ORIG, fields[_CTA_TUPLE_ORIG]) + attribute(_CTA_ID, fields[_CTA_ID])
