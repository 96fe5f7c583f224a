"""Addresses of pods: the ranges, their gateways, and who has which."""

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
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
    """A locally administered MAC made of an address: who gets the address next is found in every neighbour cache."""
    return b"\x02\xc1" + address.packed[-4:]


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
        """Note an address that a pod has."""
        self._taken.add(int(address))

    def give_back(self, address: Address) -> None:
        self._taken.discard(int(address))


class Addresses:
    """The pod ranges in force, and what pods have of them. `rotations` are those saved by an earlier process."""

    def __init__(self, networks: Sequence[Network], rotations: Iterable[Rotation]) -> None:
        self._last = {row.id: ipaddress.ip_address(row.last) for row in rotations}
        self._pools: tuple[Pool, ...] = ()
        self.use(networks, {})

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(pool.network for pool in self._pools)

    def free(self) -> Mapping[int, int]:
        """How many pods each IP version has room for."""
        return {pool.network.version: pool.free for pool in self._pools}

    def rotations(self) -> list[Rotation]:
        return [Rotation(id=str(pool.network), last=str(pool.last)) for pool in self._pools]

    def use(self, networks: Sequence[Network], held: Mapping[str, Sequence[Interface]]) -> None:
        """Change the pod ranges; `held` are the addresses that pods have.

        Raises FailedPrecondition, changing nothing, if a pod would not fit.
        """
        for pod_id, given in held.items():
            if not fits(given, networks):
                raise FailedPrecondition(
                    f"cannot use pod ranges {', '.join(map(str, networks)) or '(none)'}: pod {pod_id} has "
                    f"{', '.join(map(str, given))}, of another range or gateway; remove the pods with such first"
                )
        self._last |= {str(pool.network): pool.last for pool in self._pools}
        self._pools = tuple(Pool(network, last=self._last.get(str(network))) for network in networks)
        for given in held.values():
            for pool, address in self._of(given):
                pool.occupy(address)

    def take(self) -> tuple[Interface, ...]:
        """An address of each range. Raises ResourceExhausted, taking none."""
        with contextlib.ExitStack() as undo:
            given: list[Interface] = []
            for pool in self._pools:
                given.append(pool.take())
                undo.callback(pool.give_back, given[-1].ip)
            undo.pop_all()
        return tuple(given)

    def give_back(self, given: Sequence[Interface]) -> None:
        for pool, address in self._of(given):
            pool.give_back(address)

    def _of(self, given: Sequence[Interface]) -> list[tuple[Pool, Address]]:
        return [(pool, address.ip) for address in given for pool in self._pools if address.ip in pool.network]


def fits(addresses: Sequence[Interface], networks: Sequence[Network]) -> bool:
    """Whether a pod with these addresses goes on working with the ranges: inside one, and with its gateway."""
    return all(
        any(address.ip in network and gateway(address.network).ip == gateway(network).ip for network in networks)
        for address in addresses
    )
