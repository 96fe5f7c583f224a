"""Connection tracking entries that would keep UDP datagrams away from a pod's new host port.

The kernel decides where a flow goes when it sees its first packet. A client that goes on sending from the same port
(syslog, WireGuard) while its pod is replaced would talk to the old pod, or to the host itself, for ever.
"""

import errno
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from typing import Final

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_DUMP
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET, nfct_msg

from criw.kernel import suppress_errno
from criw_network.netlink import links
from criw_network.netlink.links import Address
from criw_network.netlink.socket import Message, Netlink
from criw_network.pod import HostPort

_BY_PROTOCOL_AND_PORT: Final = 1 << 3 | 1 << 5  # linux/netfilter/nfnetlink_conntrack.h
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
                for destination, deletion in _flows(netlink, version, port.host_port):
                    here = destination in local or destination.is_loopback
                    if here if port.every_address else str(destination) == port.host_ip:
                        with suppress_errno(errno.ENOENT):  # over meanwhile
                            netlink.run(deletion)


def _flows(netlink: Netlink, version: int, port: int) -> Iterator[tuple[Address, Message]]:
    """The destination of each UDP flow to a port of any address, and what deletes its entry."""
    by_port = {
        "attrs": [
            (
                "CTA_TUPLE_PROTO",
                {"attrs": [("CTA_PROTO_NUM", socket.IPPROTO_UDP), ("CTA_PROTO_DST_PORT", port)]},
            )
        ]
    }
    which = {"attrs": [("CTA_FILTER_ORIG_FLAGS", _BY_PROTOCOL_AND_PORT), ("CTA_FILTER_REPLY_FLAGS", 0)]}
    listing = Message(
        NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
        nfct_msg,
        {"nfgen_family": _FAMILY[version]},
        [("CTA_TUPLE_ORIG", by_port), ("CTA_FILTER", which)],
        NLM_F_DUMP,
        "list UDP flows",
    )
    for found in netlink.ask(listing):
        original = found.get_attr("CTA_TUPLE_ORIG")
        what = original.get_attr("CTA_TUPLE_PROTO")
        # Looked at again: a kernel before 5.8 knows no filter and lists everything.
        if (what.get_attr("CTA_PROTO_NUM"), what.get_attr("CTA_PROTO_DST_PORT")) == (socket.IPPROTO_UDP, port):
            destination = original.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_V{version}_DST")
            yield (
                ipaddress.ip_address(destination),
                Message(
                    NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE,
                    nfct_msg,
                    {"nfgen_family": _FAMILY[version]},
                    [("CTA_TUPLE_ORIG", original), ("CTA_ID", found.get_attr("CTA_ID"))],
                    what="forget a UDP flow",
                ),
            )
