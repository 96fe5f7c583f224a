"""How the builtin provider attaches a pod, and how it leaves the host."""

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from criw import kernel
from criw.errors import Failed, FailedPrecondition
from criw.operations import together
from criw.store import Store
from criw_network import netns
from criw_network.builtin import conntrack, hostports, nftables, ruleset
from criw_network.builtin.addresses import Addresses, Network, Ranges, Rotation, parse_ranges
from criw_network.builtin.bridge import POD_INTERFACE, Bridge
from criw_network.builtin.disposal import Disposal
from criw_network.builtin.hostports import Taken
from criw_network.builtin.nftables import Nftables
from criw_network.builtin.ruleset import Element
from criw_network.netlink import links
from criw_network.netlink.links import Counters, Interface
from criw_network.netlink.socket import Netlink
from criw_network.pod import Pod
from criw_network.provider import Attached, Condition

log = logging.getLogger(__name__)


class Builtin:
    """Use `builtin()`."""

    def __init__(
        self, bridge: Bridge, addresses: Addresses, disposal: Disposal, store: Store, registry: CollectorRegistry
    ) -> None:
        self._bridge = bridge
        self._addresses = addresses
        self._disposal = disposal
        self._store = store
        self._free = Gauge("criw_network_free_addresses", "Addresses left for pods.", ["ip_version"], registry=registry)
        self._taken = Taken()
        self._given: dict[str, tuple[Interface, ...]] = {}  # by pod, as long as anything of it is on the host
        self._nftables: Nftables | None = None
        self._problem = Condition(ready=True)
        self._recovered = False
        self._configuring = asyncio.Lock()
        # What of which pod is in the maps, and whether bridge and table are as they must be: both change, with what
        # they describe, only under the lock.
        self._open: dict[str, Sequence[Element]] = {}
        self._ensured = False
        self._host = asyncio.Lock()

    @property
    def condition(self) -> Condition:
        if self._problem.ready and not self._addresses.networks:
            return Condition(
                ready=False,
                reason="NoPodRange",
                message="cannot attach pods: no pod CIDR is configured; set network.pod_cidrs, or wait for the kubelet",
            )
        return self._problem

    async def recover(self, attached: Sequence[tuple[Pod, Attached]]) -> None:
        """Raises FailedPrecondition for pods that do not fit the ranges, and for a bridge of somebody else's."""
        await asyncio.to_thread(self._bridge.claim)
        self._given = {pod.id: got.addresses for pod, got in attached}
        self._addresses.use(self._addresses.networks, self._given)
        for pod, got in attached:
            self._taken.take(pod.id, pod.ports)
            if pod.ports:
                self._open[pod.id] = _elements(pod, got.addresses)
        await self._probe()
        kept = {self._bridge.port(pod_id) for pod_id in self._given}
        strays = [link.name for link in await asyncio.to_thread(self._bridge.ports) if link.name not in kept]
        await asyncio.gather(*(self._disposal.delete(name) for name in strays))
        if strays:
            log.info("removed links without a pod", extra={"links": strays})
        if not attached:
            await self._clear()
        elif self._problem.ready:
            await self._ensure()
        self._measure()
        self._recovered = True

    async def _probe(self) -> None:
        """Find out whether this host can do what a pod needs, leaving nothing on it."""
        try:
            self._nftables = await asyncio.to_thread(Nftables.load)
        except FailedPrecondition as err:
            self._problem = Condition(ready=False, reason="NftablesMissing", message=str(err))
        else:
            try:
                await asyncio.to_thread(self._nftables.run, self._rules(), check_only=True)
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

    async def configure(self, cidrs: Sequence[str]) -> None:
        """Set the pod ranges. None at all changes nothing: the kubelet says so before its node has one.

        Raises InvalidArgument, or FailedPrecondition where attached pods would not fit.
        """
        networks = parse_ranges(cidrs)
        if not networks:
            return
        async with self._configuring:
            before = self._addresses.networks
            if networks != before:
                self._use(networks)
                try:
                    await self._store.put(Ranges(id="pods", cidrs=tuple(map(str, networks))))
                except BaseException:
                    self._use(before)
                    raise
                log.info("pod ranges changed", extra={"ranges": cidrs})
            if self._open or self._bridge.exists():
                await self._ensure()

    def _use(self, networks: Sequence[Network]) -> None:
        self._addresses.use(networks, self._given)
        self._ensured = False
        self._measure()

    def _measure(self) -> None:
        self._free.clear()
        for version, free in self._addresses.free().items():
            self._free.labels(version).set(free)

    async def _ensure(self) -> Nftables:
        """Bridge and table as they must be; made on first need, and again if somebody removed them."""
        if self._nftables is None or not self._problem.ready:
            raise FailedPrecondition(self._problem.message)
        async with self._host:
            if not (self._ensured and await asyncio.to_thread(self._intact)):
                await asyncio.to_thread(self._bridge.ensure, self._addresses.networks)
                await asyncio.to_thread(self._nftables.run, self._rules())
                self._ensured = True
        return self._nftables

    def _intact(self) -> bool:
        return self._bridge.exists() and nftables.table_exists(ruleset.table(self._bridge.name))

    def _rules(self) -> str:
        present = [element for elements in self._open.values() for element in elements]
        return ruleset.replace(self._bridge.name, self._addresses.networks, present)

    async def attach(self, pod: Pod, netns: Path) -> Attached:
        if not self.condition.ready:
            raise FailedPrecondition(self.condition.message)
        hostports.check(pod.ports, families=frozenset(network.version for network in self._addresses.networks))
        self._taken.take(pod.id, pod.ports)
        try:
            given = self._given[pod.id] = self._addresses.take()
        except BaseException:
            self._taken.give_back(pod.id, pod.ports)
            raise
        self._measure()
        await together(self._store.put(*self._addresses.rotations()), self._connect(pod, given, netns))
        return Attached(POD_INTERFACE, given)

    async def _connect(self, pod: Pod, given: Sequence[Interface], netns: Path) -> None:
        nft = await self._ensure()
        await kernel.in_fresh_thread(partial(self._bridge.connect, pod.id, given, netns))
        if pod.ports:
            async with self._host:
                self._open[pod.id] = _elements(pod, given)
                await asyncio.to_thread(nft.run, ruleset.add(self._bridge.name, self._open[pod.id]))
            await asyncio.to_thread(conntrack.forget, pod.ports)

    async def detach(self, pod: Pod, netns: Path) -> None:
        if pod.id in self._open:
            async with self._host:
                await self._close_ports(pod.id)
        await self._disposal.delete(self._bridge.port(pod.id))
        if pod.id in self._given:
            self._taken.give_back(pod.id, pod.ports)
            self._addresses.give_back(self._given.pop(pod.id))
            self._measure()

    async def _close_ports(self, pod_id: str) -> None:
        assert self._nftables is not None  # it was when the ports were opened
        closed = self._open.pop(pod_id)
        try:
            await asyncio.to_thread(self._nftables.run, ruleset.delete(self._bridge.name, closed))
        except Failed:
            # One of the elements is not there: it was never added, or somebody flushed the rules of the host.
            try:
                await asyncio.to_thread(self._nftables.run, self._rules())
            except BaseException:
                self._open[pod_id] = closed
                raise

    async def counters(self, pods: Mapping[str, Path]) -> Mapping[str, tuple[str, Counters]]:
        return await kernel.in_fresh_thread(partial(_read_counters, pods))

    async def close(self) -> None:
        """The agent ends: pods go on working; without any, the host is as it was."""
        if self._recovered and not self._given:
            await self._clear()
        await self._disposal.finish()
        if self._nftables is not None:
            await asyncio.to_thread(self._nftables.close)

    async def _clear(self) -> None:
        """Take bridge and table away."""
        async with self._host:
            if self._nftables is not None and nftables.table_exists(ruleset.table(self._bridge.name)):
                await asyncio.to_thread(self._nftables.run, ruleset.remove(self._bridge.name))
            await self._disposal.delete(self._bridge.name)
            self._ensured = False


def _elements(pod: Pod, given: Sequence[Interface]) -> Sequence[Element]:
    return tuple(ruleset.elements(pod.ports, [address.ip for address in given]))


def _read_counters(pods: Mapping[str, Path]) -> dict[str, tuple[str, Counters]]:
    """Leaves the thread in the last one's namespace.

    Not by the host's end of the pair, whose counters are the pod's the other way round but for what was dropped.
    """
    found = {}
    for pod_id, place in pods.items():
        # detached meanwhile: no pin, no namespace at it, no interface in that
        with kernel.suppress_errno(errno.ENOENT, errno.EINVAL, errno.ENODEV):
            netns.enter(place)
            with Netlink() as netlink:
                found[pod_id] = (POD_INTERFACE, links.counters(netlink, links.index_of(POD_INTERFACE)))
    return found


@contextlib.asynccontextmanager
async def builtin(
    bridge: Bridge, cidrs: Sequence[str], store: Store, registry: CollectorRegistry
) -> AsyncIterator[Builtin]:
    """The provider, for the pod ranges that the kubelet set before, else for `cidrs`.

    Leaving the block waits for what the kernel still has to tidy up.
    """
    saved = await store.get(Ranges, "pods")
    addresses = Addresses(parse_ranges(saved.cidrs if saved else cidrs), await store.all(Rotation))
    provider = Builtin(bridge, addresses, Disposal(), store, registry)
    try:
        yield provider
    finally:
        await provider.close()
