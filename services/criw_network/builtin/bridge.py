"""The bridge of a crew on the host: the link, its addresses, the settings it needs, and the ports pods hang on.

These functions block and are for threads in the host's namespace, unless they say otherwise.
"""

import contextlib
import errno
import hashlib
import logging
import socket
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import FailedPrecondition
from criw_network import netns
from criw_network.builtin.addresses import Network, gateway, mac
from criw_network.netlink import links
from criw_network.netlink.links import Address, Interface, Link
from criw_network.netlink.socket import Netlink

log = logging.getLogger(__name__)

POD_INTERFACE: Final = "eth0"
_SYSCTL: Final = Path("/proc/sys/net")


class Bridge:
    """One bridge, known by its name and marked with its owner, the state directory of the crew's network agent."""

    def __init__(self, name: str, *, owner: str, mtu: int) -> None:
        self.name = name
        self._owner = owner
        self._mtu = mtu
        # 15 characters are all a link's name may have: a mark of the bridge, then as much of the pod as fits.
        self._prefix = f"v{zlib.crc32(name.encode()) & 0xFFFF:04x}"

    def port(self, pod_id: str) -> str:
        """The name of the host's end of a pod's veth pair; its alias is the whole id."""
        return self._prefix + pod_id[:10]

    def exists(self) -> bool:
        """Whether there is a link of that name. Cheap."""
        try:
            links.index_of(self.name)
        except OSError:
            return False
        return True

    def find(self, netlink: Netlink) -> Link | None:
        """Raises FailedPrecondition if there is a link of that name that is not this crew's."""
        try:
            link = links.link(netlink, self.name)
        except OSError as err:
            if err.errno == errno.ENODEV:
                return None
            raise
        if link.alias != self._owner:
            whose = f"it belongs to {link.alias}" if link.alias else "it is not Criw's"
            raise FailedPrecondition(f"cannot use bridge {self.name}: {whose}; set network.bridge to another name")
        return link

    def claim(self) -> None:
        """Raises FailedPrecondition if there is a link of that name that is not this crew's."""
        with Netlink() as netlink:
            self.find(netlink)

    def ensure(self, networks: Sequence[Network]) -> None:
        """Make the bridge as it must be for these pod ranges, whatever of it is there already.

        Raises FailedPrecondition if the name or a range is somebody else's.
        """
        with Netlink() as netlink:
            found = self.find(netlink)
            present = list(links.addresses(netlink))
            _check_ranges(networks, [(i, address) for i, address in present if found is None or i != found.index])
            if found is None:
                own_mac = b"\x02" + hashlib.sha256(self.name.encode()).digest()[:5]
                netlink.run(
                    links.new_bridge(self.name, mac=own_mac, mtu=self._mtu), links.set_alias(self.name, self._owner)
                )
            index = links.index_of(self.name)
            netlink.run(links.set_up(index))
            own = {address for i, address in present if i == index}
            wanted = {gateway(network) for network in networks}
            netlink.run(
                # In this order: the kernel has an IPv6 address once, with whatever prefix.
                *(links.delete_address(index, address) for address in own - wanted),
                *(links.add_address(index, address) for address in wanted - own),
            )
            for link in links.links(netlink):
                if link.master == 0 and link.name.startswith(self._prefix):
                    # Somebody deleted the bridge under its pods.
                    netlink.run(links.set_master(link.index, index), links.set_port(link.name, link.alias))
        self._allow_forwarding({network.version for network in networks})

    def _allow_forwarding(self, versions: set[int]) -> None:
        if (_SYSCTL / f"ipv6/conf/{self.name}").exists():  # not where IPv6 is off, or the MTU below its least
            _set(f"ipv6/conf/{self.name}/accept_ra", "0")  # no pod may pose as the host's router
        if 4 in versions:
            _set("ipv4/ip_forward", "1")
        if 6 in versions and _read("ipv6/conf/all/forwarding") != "1":
            # A host that forwards ignores router advertisements unless told otherwise: without this, one that has
            # its default route from them would lose it.
            for setting in (_SYSCTL / "ipv6/conf").glob("*/accept_ra"):
                if setting.read_text().strip() == "1":
                    setting.write_text("2")
            _set("ipv6/conf/all/forwarding", "1")

    def lead_loopback(self, *, allowed: bool) -> None:
        """Whether 127.0.0.1 of the host leads to host ports. Pods could use it too, but for the rules that guard it."""
        with contextlib.suppress(FileNotFoundError):  # no bridge
            _set(f"ipv4/conf/{self.name}/route_localnet", str(int(allowed)))

    def as_made(self, networks: Sequence[Network]) -> bool:
        """Whether the bridge is what `ensure` makes it for these pod ranges, as far as it is cheap to see."""
        with Netlink() as netlink:
            found = self.find(netlink)
        versions = {network.version for network in networks}
        return (
            found is not None
            and found.up
            and (4 not in versions or _read("ipv4/ip_forward") == "1")
            and (6 not in versions or _read("ipv6/conf/all/forwarding") == "1")
            and all(_is_here(gateway(network).ip) for network in networks)
        )

    def connect(self, pod_id: str, addresses: Sequence[Interface], pin: Path) -> None:
        """Wire a pod: a veth pair between the bridge and `eth0` in its namespace, addresses and default routes.

        Begins in the host's namespace and leaves the thread in the pod's.
        """
        port = self.port(pod_id)
        with pin.open("rb") as file, Netlink() as host:
            host.run(
                links.new_veth(
                    port,
                    bridge=links.index_of(self.name),
                    mtu=self._mtu,
                    peer=POD_INTERFACE,
                    peer_mac=mac(addresses[0].ip),
                    peer_netns=file.fileno(),
                ),
                links.set_port(port, pod_id),
            )
            kernel.setns(file.fileno(), kernel.CLONE_NEWNET)
        # Before the link is up.
        netns.set_ipv6(POD_INTERFACE, accept_ra=0)
        if all(address.version == 4 for address in addresses):  # the loopback keeps ::1
            netns.set_ipv6(POD_INTERFACE, disable_ipv6=1)
        with Netlink() as pod:
            index = links.index_of(POD_INTERFACE)
            pod.run(
                links.set_up(index),
                *(links.add_address(index, address) for address in addresses),
                *(links.default_route(index, gateway(address.network).ip) for address in addresses),
            )

    def rehearse(self) -> None:
        """Make a bridge with a port in a namespace that ends with this thread: what fails for a pod fails here.

        Changes the thread's namespace. Raises the kernel's OSError.
        """
        kernel.unshare(kernel.CLONE_NEWNET)
        with Path("/proc/thread-self/ns/net").open("rb") as here, Netlink() as netlink:
            netlink.run(links.new_bridge(self.name, mac=b"\x02\xc1\0\0\0\0", mtu=self._mtu))
            netlink.run(
                links.new_veth(
                    self.port("rehearsal"),
                    bridge=links.index_of(self.name),
                    mtu=self._mtu,
                    peer=POD_INTERFACE,
                    peer_mac=b"\x02\xc1\0\0\0\1",
                    peer_netns=here.fileno(),
                )
            )

    def ports(self) -> list[Link]:
        """The links that carry our mark: those on the bridge, and those on none."""
        with Netlink() as netlink:
            bridge = self.find(netlink)
            masters = {0, bridge.index if bridge else 0}
            return [
                link for link in links.links(netlink) if link.name.startswith(self._prefix) and link.master in masters
            ]


def _check_ranges(networks: Sequence[Network], foreign: Sequence[tuple[int, Interface]]) -> None:
    """Two links with the same range: the kernel would send one's traffic to the other. A wider range is no harm."""
    for network in networks:
        for index, address in foreign:
            if address.ip in network and address.network.prefixlen >= network.prefixlen:
                raise FailedPrecondition(
                    f"cannot use pod range {network}: {socket.if_indextoname(index)} has {address}; "
                    "set network.pod_cidrs to a range of its own"
                )


def _is_here(address: Address) -> bool:
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError as err:
            if err.errno == errno.EADDRNOTAVAIL:
                return False
            raise
    return True


def delete_link(name: str) -> None:
    """Delete a link if it is there. Takes some 30 ms; see `disposal` for not waiting so long."""
    with Netlink() as netlink, kernel.suppress_errno(errno.ENODEV):
        netlink.run(links.delete_link(name))


def _read(setting: str) -> str:
    return (_SYSCTL / setting).read_text(encoding="ascii").strip()


def _set(setting: str, value: str) -> None:
    if _read(setting) != value:
        (_SYSCTL / setting).write_text(value, encoding="ascii")
        log.info("changed a setting of the host", extra={"sysctl": f"net/{setting}", "value": value})
