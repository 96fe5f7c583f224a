"""How the builtin provider attaches a pod, and how it leaves the host."""

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from criw import kernel
from criw.errors import FailedPrecondition, Fault
from criw.operations import together
from criw.store import Store
from criw_network import netns
from criw_network.builtin import conntrack, hostports, ruleset
from criw_network.builtin.addresses import Addresses, Network, Ranges, Rotation, parse_ranges
from criw_network.builtin.bridge import POD_INTERFACE, Bridge
from criw_network.builtin.disposal import Disposal
from criw_network.builtin.host import Host
from criw_network.builtin.hostports import Taken
from criw_network.builtin.ruleset import Element
from criw_network.netlink import links
from criw_network.netlink.links import Counters, Interface
from criw_network.netlink.socket import Netlink
from criw_network.pod import Pod
from criw_network.provider import Attached, Condition

log = logging.getLogger(__name__)


class Builtin:
    """Use `builtin()`, and run `keep()` in a task as long as it is used."""

    def __init__(
        self, bridge: Bridge, addresses: Addresses, disposal: Disposal, store: Store, registry: CollectorRegistry
    ) -> None:
        self._bridge = bridge
        self._addresses = addresses
        self._disposal = disposal
        self._store = store
        self._free = Gauge("criw_network_free_addresses", "Addresses left for pods.", ["ip_version"], registry=registry)
        self._taken = Taken()
        self._host = Host(bridge, addresses, disposal, registry)
        self._recovered = False
        self._configuring = asyncio.Lock()

    @property
    def condition(self) -> Condition:
        if self._host.condition.ready and not self._addresses.networks:
            return Condition(
                ready=False,
                reason="NoPodRange",
                message="cannot attach pods: no pod CIDR is configured; set network.pod_cidrs, or wait for the kubelet",
            )
        return self._host.condition

    async def recover(self, attached: Sequence[tuple[Pod, Attached]]) -> Collection[str]:
        """Raises FailedPrecondition for a bridge of somebody else's."""
        await asyncio.to_thread(self._bridge.claim)
        for pod, got in attached:
            self._addresses.hold(pod.id, got.addresses)
            self._taken.take(pod.id, pod.ports)
            if pod.ports:
                self._host.note_ports(pod.id, _elements(pod, got.addresses))
        await self._host.probe()
        kept = {self._bridge.port(pod_id) for pod_id in self._addresses.held()}
        strays = [link for link in await asyncio.to_thread(self._bridge.ports) if link.name not in kept]
        outcomes = await asyncio.gather(*(self._disposal.delete(link.name) for link in strays), return_exceptions=True)
        if strays:
            log.info("removed links without a pod", extra={"links": [link.name for link in strays]})
        try:
            if not attached:
                await self._host.clear()
            elif self._host.condition.ready:
                await self._host.ensure()
        except (Fault, OSError) as err:  # `keep` and the next pod try again
            log.warning("cannot put bridge and rules in order yet", extra={"error": str(err)})
        self._measure()
        self._recovered = True
        return [link.alias for link, outcome in zip(strays, outcomes, strict=True) if outcome is not None]

    async def keep(self) -> None:
        """Keep bridge and rules as they must be, for ever."""
        await self._host.keep()

    async def configure(self, cidrs: Sequence[str]) -> None:
        """Set the ranges of new pods. None at all changes nothing: the kubelet says so before its node has one.

        Raises InvalidArgument, or FailedPrecondition where a range is another link's or a pod has its gateway.
        """
        networks = parse_ranges(cidrs)
        if not networks:
            return
        async with self._configuring:
            before = self._addresses.networks
            if networks != before:
                try:
                    self._use(networks)
                    self._addresses.check()
                    await self._store.put(Ranges(id="pods", cidrs=tuple(map(str, networks))))
                except BaseException:
                    self._use(before)
                    raise
                log.info("pod ranges changed", extra={"ranges": cidrs})
            if self._host.has_ports or self._bridge.exists():
                await self._host.ensure()

    def _use(self, networks: Sequence[Network]) -> None:
        self._addresses.use(networks)
        self._host.ranges_changed()
        self._measure()

    def _measure(self) -> None:
        self._free.clear()
        for version, free in self._addresses.free().items():
            self._free.labels(version).set(free)

    async def attach(self, pod: Pod, netns: Path) -> Attached:
        if not self.condition.ready:
            raise FailedPrecondition(self.condition.message)
        hostports.check(pod.ports, families=frozenset(network.version for network in self._addresses.networks))
        self._taken.take(pod.id, pod.ports)
        try:
            given = self._addresses.take(pod.id)
        except BaseException:
            self._taken.give_back(pod.id, pod.ports)
            raise
        self._measure()
        await together(self._store.put(*self._addresses.rotations()), self._connect(pod, given, netns))
        return Attached(POD_INTERFACE, given)

    async def _connect(self, pod: Pod, given: Sequence[Interface], netns: Path) -> None:
        await self._host.ensure()
        await kernel.in_fresh_thread(partial(self._bridge.connect, pod.id, given, netns))
        if pod.ports:
            await self._host.open_ports(pod.id, _elements(pod, given))
            await kernel.in_fresh_thread(partial(conntrack.forget, pod.ports))

    async def detach(self, pod: Pod, netns: Path) -> None:
        await self._host.close_ports(pod.id)
        await self._disposal.delete(self._bridge.port(pod.id))
        if pod.id in self._addresses.held():
            self._taken.give_back(pod.id, pod.ports)
            before = self._addresses.in_force
            self._addresses.give_back(pod.id)
            if self._addresses.in_force != before:  # the last one of an earlier range
                self._host.ranges_changed()
            self._measure()

    async def counters(self, pods: Mapping[str, Path]) -> Mapping[str, tuple[str, Counters]]:
        return await kernel.in_fresh_thread(partial(_read_counters, pods))

    async def close(self) -> None:
        """The agent ends: pods go on working; without any, the host is as it was."""
        if self._recovered and not self._addresses.held():
            await self._host.clear()
        await self._disposal.finish()
        await self._host.close()


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
