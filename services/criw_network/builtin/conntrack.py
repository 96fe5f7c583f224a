"""Connection tracking entries that would keep UDP datagrams away from a pod's new host port.

The kernel decides where a flow goes when it sees its first packet. A client that goes on sending from the same port
(syslog, WireGuard) while its pod is replaced would talk to the old pod, or to the host itself, for ever.
"""

import errno
import ipaddress
import re
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_DUMP
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET, nfct_msg

from criw.kernel import suppress_errno
from criw_network.netlink import links
from criw_network.netlink.links import Address
from criw_network.netlink.socket import Message, Netlink
from criw_network.pod import HostPort

# linux/netfilter/nfnetlink_conntrack.h, enum ctattr_filter's flags
_BY_PROTOCOL: Final = 1 << 3
_BY_PORT: Final = 1 << 5
_PORT_IN_ANSWER: Final = re.compile(struct.pack("=HH", 6, 3) + rb"(..)", re.DOTALL)  # CTA_PROTO_DST_PORT
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


def forget(ports: Iterable[HostPort]) -> None:
    """Forget the UDP flows to these ports of the host, so that their next packet is looked at anew. Blocks.

    The kernel walks through all it tracks for each listing: there is one for each family, however many ports.
    """
    udp = [port for port in ports if port.protocol == "udp"]
    if not udp:
        return
    with Netlink() as netlink:
        local = {address.ip for _, address in links.addresses(netlink)}
    with Netlink(NETLINK_NETFILTER) as netlink:
        for version in _FAMILY:
            wanted: dict[int, list[HostPort]] = {}
            for port in udp:
                if version in port.families:
                    wanted.setdefault(port.host_port, []).append(port)
            if not wanted:
                continue
            for destination, number, deletion in _flows(netlink, version, wanted):
                if (destination in local or destination.is_loopback) and any(
                    port.every_address or port.host_ip == str(destination) for port in wanted[number]
                ):
                    with suppress_errno(errno.ENOENT):  # over meanwhile
                        netlink.run(deletion)


def _flows(netlink: Netlink, version: int, ports: Collection[int]) -> Iterator[tuple[Address, int, Message]]:
    """Destination and port of each UDP flow to one of these ports of any address, and what deletes its entry."""
    protocol: list[tuple[str, int]] = [("CTA_PROTO_NUM", socket.IPPROTO_UDP)]
    flags = _BY_PROTOCOL
    if len(ports) == 1:
        protocol += (("CTA_PROTO_DST_PORT", port) for port in ports)
        flags |= _BY_PORT
    listing = Message(
        NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
        nfct_msg,
        {"nfgen_family": _FAMILY[version]},
        [
            ("CTA_TUPLE_ORIG", {"attrs": [("CTA_TUPLE_PROTO", {"attrs": protocol})]}),
            ("CTA_FILTER", {"attrs": [("CTA_FILTER_ORIG_FLAGS", flags), ("CTA_FILTER_REPLY_FLAGS", 0)]}),
        ],
        NLM_F_DUMP,
        "list UDP flows",
    )

    def worth(raw: bytes) -> bool:
        return any(int.from_bytes(number) in ports for number in _PORT_IN_ANSWER.findall(raw))

    for found in netlink.ask(listing, worth=worth):
        original = found.get_attr("CTA_TUPLE_ORIG")
        what = original.get_attr("CTA_TUPLE_PROTO")
        number = what.get_attr("CTA_PROTO_DST_PORT")
        # Looked at again: a kernel before 5.8 knows no filter and lists everything.
        if what.get_attr("CTA_PROTO_NUM") == socket.IPPROTO_UDP and number in ports:
            destination = original.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_V{version}_DST")
            yield (
                ipaddress.ip_address(destination),
                number,
                Message(
                    NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE,
                    nfct_msg,
                    {"nfgen_family": _FAMILY[version]},
                    [("CTA_TUPLE_ORIG", original), ("CTA_ID", found.get_attr("CTA_ID"))],
                    what="forget a UDP flow",
                ),
            )
