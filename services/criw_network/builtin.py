"""The builtin provider: bridge, veth pairs, addresses from the pod ranges, masquerade and host ports."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from criw import kernel
from criw.errors import Failed, FailedPrecondition
from criw.store import Record
from criw_network import addresses, conntrack, hostports, links, nftables, ruleset
from criw_network.addresses import Network, Pool
from criw_network.bridge import POD_INTERFACE, Bridge
from criw_network.disposal import Disposal
from criw_network.hostports import HostPort, Taken
from criw_network.links import Address, Counters, Interface
from criw_network.netlink import Netlink
from criw_network.nftables import Nftables
from criw_network.provider import Attachment, Condition

log = logging.getLogger(__name__)


class Rotation(Record):
    """Where the search for a free address goes on after a restart. `id` is the pod range."""

    kind: ClassVar[str] = "rotation"
    last: str


class Builtin:
    """Use `builtin()`. `rotations` are those saved by an earlier process."""

    def __init__(
        self, bridge: Bridge, networks: Sequence[Network], rotations: Iterable[Rotation], disposal: Disposal
    ) -> None:
        self._bridge = bridge
        self._disposal = disposal
        self._last: dict[str, Address] = {row.id: ipaddress.ip_address(row.last) for row in rotations}
        self._pools = self._pools_of(networks, ())
        self._taken = Taken()
        self.nftables: Nftables | None = None
        self._problem = Condition(ready=True)
        # Pods whose host ports are in the maps, and whether bridge and table are as they must be: both change, with
        # what they describe, only under the lock.
        self._open: dict[str, Attachment] = {}
        self._ensured = False
        self._host = asyncio.Lock()

    def _pools_of(self, networks: Sequence[Network], attached: Iterable[Attachment]) -> tuple[Pool, ...]:
        pools = tuple(Pool(network, last=self._last.get(str(network))) for network in networks)
        for attachment in attached:
            for address in _addresses(attachment):
                for pool in pools:
                    if address.ip in pool.network:
                        pool.occupy(address.ip)
        return pools

    @property
    def condition(self) -> Condition:
        if not self._problem.ready:
            return self._problem
        if not self._pools:
            return Condition(
                ready=False,
                reason="NoPodRange",
                message="cannot attach pods: no pod CIDR is configured; set network.pod_cidrs, or wait for the kubelet",
            )
        return self._problem

    @property
    def networks(self) -> Sequence[Network]:
        return tuple(pool.network for pool in self._pools)

    def free_addresses(self) -> Mapping[int, int]:
        return {pool.network.version: pool.free for pool in self._pools}

    async def recover(self, attached: Sequence[Attachment]) -> None:
        await asyncio.to_thread(self._claim_bridge)
        self.use(self.networks, attached)
        for attachment in attached:
            self._taken.take(attachment.id, attachment.ports)
            if attachment.ports:
                self._open[attachment.id] = attachment
        await self._probe()
        kept = {self._bridge.port(attachment.id) for attachment in attached}
        strays = [link.name for link in await asyncio.to_thread(self._bridge.ports) if link.name not in kept]
        await asyncio.gather(*(self._disposal.delete(name) for name in strays))
        if strays:
            log.info("removed links without a pod", extra={"links": strays})
        if not attached:
            await self.close(idle=True)
        elif self._problem.ready:
            await self._ensure()

    def _claim_bridge(self) -> None:
        with Netlink() as netlink:
            self._bridge.find(netlink)

    async def _probe(self) -> None:
        """Find out whether this host can do what a pod needs, leaving nothing on it."""
        try:
            self.nftables = await asyncio.to_thread(Nftables.load)
        except FailedPrecondition as err:
            self._problem = Condition(ready=False, reason="NftablesMissing", message=str(err))
        else:
            try:
                await asyncio.to_thread(self.nftables.run, self._rules(), check_only=True)
            except Failed as err:
                self._problem = Condition(ready=False, reason="NftablesRefused", message=str(err))
        try:
            await kernel.in_fresh_thread(self._bridge.rehearse)
        except OSError as err:
            message = (
                f"cannot make links for pods: {err.strerror}; is this agent root, with bridge and veth in the kernel?"
            )
            self._problem = Condition(ready=False, reason="NetlinkRefused", message=message)
        if not self._problem.ready:
            log.error("pods cannot be attached", extra={"reason": self._problem.reason, "error": self._problem.message})

    def use(self, networks: Sequence[Network], attached: Iterable[Attachment]) -> None:
        attached = tuple(attached)
        for attachment in attached:
            if not addresses.fits(_addresses(attachment), networks):
                raise FailedPrecondition(
                    f"cannot use pod ranges {', '.join(map(str, networks)) or '(none)'}: pod {attachment.id} has "
                    f"{', '.join(attachment.addresses)}, of another range or gateway; remove the pods with such first"
                )
        self._remember()
        self._pools = self._pools_of(networks, attached)
        self._ensured = False

    def _remember(self) -> None:
        self._last |= {str(pool.network): pool.last for pool in self._pools}

    async def refresh(self) -> None:
        if self._open or self._bridge.exists():
            await self._ensure()

    async def _ensure(self) -> Nftables:
        """Bridge and table as they must be; made on first need, and again if somebody removed them."""
        if self.nftables is None or not self._problem.ready:
            raise FailedPrecondition(self._problem.message)
        async with self._host:
            if not (self._ensured and await asyncio.to_thread(self._intact)):
                await asyncio.to_thread(self._bridge.ensure, self.networks)
                await asyncio.to_thread(self.nftables.run, self._rules())
                self._ensured = True
        return self.nftables

    def _intact(self) -> bool:
        return self._bridge.exists() and nftables.table_exists(ruleset.table(self._bridge.name))

    def _rules(self) -> str:
        elements = [element for attachment in self._open.values() for element in _elements(attachment)]
        return ruleset.replace(self._bridge.name, self.networks, elements)

    def reserve(self, pod_id: str, ports: Sequence[HostPort]) -> tuple[Attachment, Sequence[Record]]:
        if not self.condition.ready:
            raise FailedPrecondition(self.condition.message)
        hostports.check(ports, families=frozenset(pool.network.version for pool in self._pools))
        with contextlib.ExitStack() as undo:
            self._taken.take(pod_id, ports)
            undo.callback(self._taken.give_back, pod_id, ports)
            given: list[Interface] = []
            for pool in self._pools:
                given.append(pool.take())
                undo.callback(pool.give_back, given[-1].ip)
            undo.pop_all()
        attachment = Attachment(id=pod_id, state="attaching", addresses=tuple(map(str, given)), ports=tuple(ports))
        return attachment, [Rotation(id=str(pool.network), last=str(pool.last)) for pool in self._pools]

    def release(self, attachment: Attachment) -> None:
        self._taken.give_back(attachment.id, attachment.ports)
        for address in _addresses(attachment):
            for pool in self._pools:
                if address.ip in pool.network:
                    pool.give_back(address.ip)

    async def connect(self, attachment: Attachment, netns: Path) -> None:
        nft = await self._ensure()
        wire = partial(self._bridge.connect, attachment.id, _addresses(attachment), netns)
        await kernel.in_fresh_thread(wire)
        if attachment.ports:
            async with self._host:
                self._open[attachment.id] = attachment
                await asyncio.to_thread(nft.run, ruleset.add(self._bridge.name, _elements(attachment)))
            await asyncio.to_thread(conntrack.forget, attachment.ports)

    async def disconnect(self, attachment: Attachment) -> None:
        if attachment.id in self._open:
            async with self._host:
                await self._close_ports(attachment)
        await self._disposal.delete(self._bridge.port(attachment.id))

    async def _close_ports(self, attachment: Attachment) -> None:
        assert self.nftables is not None  # it was when the ports were opened
        del self._open[attachment.id]
        try:
            await asyncio.to_thread(self.nftables.run, ruleset.delete(self._bridge.name, _elements(attachment)))
        except Failed:
            # One of the elements is not there: it was never added, or somebody flushed the rules of the host.
            try:
                await asyncio.to_thread(self.nftables.run, self._rules())
            except BaseException:
                self._open[attachment.id] = attachment
                raise

    async def counters(self, pod_ids: Sequence[str]) -> Mapping[str, tuple[str, Counters]]:
        return await asyncio.to_thread(self._read_counters, pod_ids)

    def _read_counters(self, pod_ids: Sequence[str]) -> dict[str, tuple[str, Counters]]:
        found = {}
        with Netlink() as netlink:
            for pod_id in pod_ids:
                with kernel.suppress_errno(errno.ENODEV):
                    host_end = links.counters(netlink, socket.if_nametoindex(self._bridge.port(pod_id)))
                    found[pod_id] = (POD_INTERFACE, host_end.at_the_other_end())
        return found

    async def close(self, *, idle: bool) -> None:
        if not idle:
            return
        async with self._host:
            if self.nftables is not None and nftables.table_exists(ruleset.table(self._bridge.name)):
                await asyncio.to_thread(self.nftables.run, ruleset.remove(self._bridge.name))
            await self._disposal.delete(self._bridge.name)
            self._ensured = False


def _addresses(attachment: Attachment) -> tuple[Interface, ...]:
    return tuple(map(ipaddress.ip_interface, attachment.addresses))


def _elements(attachment: Attachment) -> Iterator[ruleset.Element]:
    return ruleset.elements(attachment.ports, [address.ip for address in _addresses(attachment)])


@contextlib.asynccontextmanager
async def builtin(bridge: Bridge, networks: Sequence[Network], rotations: Iterable[Rotation]) -> AsyncIterator[Builtin]:
    """The provider; leaving the block waits for what the kernel still has to tidy up."""
    disposal = Disposal()
    provider = Builtin(bridge, networks, rotations, disposal)
    try:
        yield provider
    finally:
        await disposal.finish()
        if provider.nftables is not None:
            await asyncio.to_thread(provider.nftables.close)
