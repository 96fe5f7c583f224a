"""Addresses of pods: the ranges, their gateways, and who has which."""

import contextlib
import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import ClassVar, Final, TypeAlias

from criw.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from criw.store import Record
from criw_network.netlink.links import Address, Interface

Network: TypeAlias = IPv4Network | IPv6Network

_LONGEST_PREFIX: Final = {4: 30, 6: 126}  # a gateway and at least one pod must fit


class Ranges(Record):
    """The pod ranges the kubelet set, which override the configuration. There is one, `id` "pods"."""

    kind: ClassVar[str] = "ranges"
    cidrs: tuple[str, ...]


class Rotation(Record):
    """Where the search for a free address goes on after a restart. `id` is the pod range."""

    kind: ClassVar[str] = "rotation"
    last: str


def parse_ranges(cidrs: Iterable[str]) -> tuple[Network, ...]:
    """The pod ranges in the order given: the first one's family is a pod's primary.

    Raises InvalidArgument for what is no CIDR, is too small or cannot be routed, and for two of one family.
    """
    networks: list[Network] = []
    for cidr in cidrs:
        try:
            network = ipaddress.ip_network(cidr)
        except ValueError as err:
            raise InvalidArgument(f"cannot use pod range {cidr!r}: {err}") from err
        if "%" in cidr:  # a zone is any text: it must not get into the rules
            raise InvalidArgument(f"cannot use pod range {cidr!r}: it has a zone")
        if "/" not in cidr or network.prefixlen > _LONGEST_PREFIX[network.version]:
            longest = _LONGEST_PREFIX[network.version]
            raise InvalidArgument(f"cannot use pod range {cidr}: too small for a gateway and a pod; /{longest} at most")
        if (
            network.is_multicast
            or network.is_loopback
            or network.is_link_local
            or network.network_address.is_unspecified
        ):
            raise InvalidArgument(f"cannot use pod range {cidr}: pods need addresses that can be routed")
        if any(network.version == other.version for other in networks):
            raise InvalidArgument(
                f"cannot use pod range {cidr}: there is another of IPv{network.version}; give one each"
            )
        networks.append(network)
    return tuple(networks)


def gateway(network: Network) -> Interface:
    """The first address, which the bridge has."""
    return ipaddress.ip_interface((network.network_address + 1, network.prefixlen))


def mac(address: Address) -> bytes:
    """A locally administered MAC made of an address: who gets the address next is found in every neighbour cache.

    The ends of two IPv6 addresses may be the same, where pods have some of an earlier range: all of it counts.
    """
    if address.version == 6:
        return b"\x02" + hashlib.sha256(address.packed).digest()[:5]
    return b"\x02\xc1" + address.packed


class Pool:
    """The addresses of one range, handed out in turn: one just freed comes last, so that no peer mixes up two pods."""

    def __init__(self, network: Network, *, last: Address | None = None) -> None:
        self.network = network
        self.gateway = gateway(network)
        self._first = int(self.gateway.ip) + 1
        # IPv4 ends with the broadcast address.
        self._end = int(network.broadcast_address) + (0 if network.version == 4 else 1)
        self._taken: set[int] = set()
        self._last = self._first - 1
        if last is not None and last in network:
            self._last = int(last)

    @property
    def free(self) -> int:
        return self._end - self._first - len(self._taken)

    @property
    def last(self) -> Address:
        """The address handed out last; where the next search begins."""
        return self.network.network_address + (self._last - int(self.network.network_address))

    def take(self) -> Interface:
        """A free address. Raises ResourceExhausted."""
        if self.free <= 0:
            raise ResourceExhausted(
                f"cannot give the pod an address: all of {self.network} are in use; remove pods or use a larger range"
            )
        candidate = self._last
        while True:
            candidate = candidate + 1 if candidate + 1 < self._end else self._first
            if candidate not in self._taken:
                break
        self._taken.add(candidate)
        self._last = candidate
        return ipaddress.ip_interface((candidate, self.network.prefixlen))

    def occupy(self, address: Address) -> None:
        """Note an address that a pod has, or that is no pod's to have; one outside is passed over."""
        if self._first <= int(address) < self._end:
            self._taken.add(int(address))

    def give_back(self, address: Address) -> None:
        self._taken.discard(int(address))


class Addresses:
    """The pod ranges, and what pods have of them and of earlier ones. `rotations`: as an earlier process saved them."""

    def __init__(self, networks: Sequence[Network], rotations: Iterable[Rotation]) -> None:
        self._last = {row.id: ipaddress.ip_address(row.last) for row in rotations}
        self._pools: tuple[Pool, ...] = ()
        self._held: dict[str, tuple[Interface, ...]] = {}
        self.use(networks)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The ranges that new pods get addresses of."""
        return tuple(pool.network for pool in self._pools)

    @property
    def in_force(self) -> tuple[Network, ...]:
        """These and the earlier ones pods still have addresses of: each needs its gateway, and is masqueraded.

        One that begins where a wider one begins has the same gateway, and needs nothing of its own. Threads ask, too.
        """
        earlier = (address.network for given in list(self._held.values()) for address in given)
        present = tuple(dict.fromkeys([*self.networks, *earlier]))
        widest: dict[tuple[int, Address], int] = {}
        for network in present:
            key = (network.version, network.network_address)
            widest[key] = min(widest.get(key, network.prefixlen), network.prefixlen)
        return tuple(n for n in present if n.prefixlen == widest[n.version, n.network_address])

    def check(self) -> None:
        """Raises FailedPrecondition if a pod has the address that a gateway needs."""
        gateways = {gateway(network).ip: network for network in self.in_force}
        for pod_id, given in list(self._held.items()):
            for address in given:
                if (network := gateways.get(address.ip)) is not None:
                    raise FailedPrecondition(
                        f"cannot use pod range {network}: pod {pod_id} has {address.ip}, which is the range's gateway; "
                        "remove that pod first"
                    )

    def free(self) -> Mapping[int, int]:
        """How many pods each IP version has room for."""
        return {pool.network.version: pool.free for pool in self._pools}

    def rotations(self) -> list[Rotation]:
        return [Rotation(id=str(pool.network), last=str(pool.last)) for pool in self._pools]

    def use(self, networks: Sequence[Network]) -> None:
        """Change the ranges that new pods get addresses of; those that pods have stay theirs."""
        self._last |= {str(pool.network): pool.last for pool in self._pools}
        self._pools = tuple(Pool(network, last=self._last.get(str(network))) for network in networks)
        for given in self._held.values():
            self._occupy(given)

    def hold(self, pod_id: str, given: Sequence[Interface]) -> None:
        """Note what a pod got of an earlier process."""
        self._held[pod_id] = tuple(given)
        self._occupy(given)

    def held(self) -> Collection[str]:
        """The pods that have addresses."""
        return self._held.keys()

    def take(self, pod_id: str) -> tuple[Interface, ...]:
        """An address of each range for the pod. Raises ResourceExhausted, taking none."""
        with contextlib.ExitStack() as undo:
            given: list[Interface] = []
            for pool in self._pools:
                given.append(pool.take())
                undo.callback(pool.give_back, given[-1].ip)
            undo.pop_all()
        self._held[pod_id] = tuple(given)
        return self._held[pod_id]

    def give_back(self, pod_id: str) -> None:
        """A pod without any is a success."""
        for address in self._held.pop(pod_id, ()):
            self._free(address.ip)
            if address.network not in self.in_force:
                self._free(gateway(address.network).ip)

    def _occupy(self, given: Iterable[Interface]) -> None:
        for address in given:
            for pool in self._pools:
                for taken in (address.ip, gateway(address.network).ip):
                    if taken in pool.network:
                        pool.occupy(taken)

    def _free(self, address: Address) -> None:
        for pool in self._pools:
            if address in pool.network:
                pool.give_back(address)
