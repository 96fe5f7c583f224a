"""The nftables rules of one bridge: a static table; a pod only adds elements to its maps.

Names: the table is `inet criw_<bridge>`. `port4` and `port6` lead from a protocol and port, on any address of the
host, to a pod; `address4` and `address6` do so for one address, while the host has it.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from criw_network.builtin.addresses import Network
from criw_network.netlink.links import Address
from criw_network.pod import HostPort


@dataclass(frozen=True)
class Element:
    """An element of one of the maps."""

    map: str
    key: str
    value: str


def table(bridge: str) -> str:
    return f"criw_{bridge}"


def elements(ports: Iterable[HostPort], addresses: Sequence[Address]) -> Iterator[Element]:
    """What leads from a pod's host ports to its addresses."""
    for port in ports:
        key = f"{port.protocol} . {port.host_port}"
        for address in addresses:
            if address.version not in port.families:
                continue
            value = f"{address} . {port.container_port}"
            if port.every_address:
                yield Element(f"port{address.version}", key, value)
            else:
                yield Element(f"address{address.version}", f"{ipaddress.ip_address(port.host_ip)} . {key}", value)


def add(bridge: str, added: Iterable[Element]) -> str:
    return "".join(f"add element inet {table(bridge)} {e.map} {{ {e.key} : {e.value} }}\n" for e in added)


def delete(bridge: str, deleted: Iterable[Element]) -> str:
    return "".join(f"delete element inet {table(bridge)} {e.map} {{ {e.key} }}\n" for e in deleted)


def remove(bridge: str) -> str:
    """The end of the table, whether it is there or not."""
    return f"add table inet {table(bridge)}\ndelete table inet {table(bridge)}\n"


def replace(bridge: str, networks: Sequence[Network], present: Iterable[Element]) -> str:
    """The whole table with these elements, instead of what there is; connections that exist keep their translation."""
    return f"""{remove(bridge)}table inet {table(bridge)} {{
    map port4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
    map port6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
    map address4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
    map address6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
    chain guard {{
        # route_localnet, which lets 127.0.0.1 of the host lead to pods, must not lead from pods to the host's loopback.
        type filter hook prerouting priority raw; policy accept;
        iifname "{bridge}" ip daddr 127.0.0.0/8 drop
        iifname "{bridge}" ip saddr 127.0.0.0/8 drop
    }}
    chain hostports {{
        # Nothing that comes from ::1 ever leaves the loopback interface: refused at once is better than never answered.
        ip6 daddr ::1 return
        # A pod may name any address: whatever is not the host's now goes where it would have gone without us.
        fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @address4
        fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @address6
        fib daddr type local dnat ip to meta l4proto . th dport map @port4
        fib daddr type local dnat ip6 to meta l4proto . th dport map @port6
    }}
    chain arriving {{
        type nat hook prerouting priority dstnat; policy accept;
        jump hostports
    }}
    chain local {{
        type nat hook output priority -100; policy accept;
        jump hostports
    }}
    chain leaving {{
        type nat hook postrouting priority srcnat; policy accept;
{_masquerade(bridge, networks)}    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" accept
        oifname "{bridge}" accept
    }}
}}
{add(bridge, present)}"""


def _masquerade(bridge: str, networks: Sequence[Network]) -> str:
    # A pod cannot answer the host's loopback.
    lines = [f'oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade']
    for network in networks:
        family = "ip" if network.version == 4 else "ip6"
        # A pod that came by a host port would be answered by its neighbour directly, from an address it never asked.
        lines.append(f'oifname "{bridge}" {family} saddr {network} ct status dnat masquerade')
        lines.append(f'oifname != "{bridge}" {family} saddr {network} masquerade')
    return "".join(f"        {line}\n" for line in lines)
