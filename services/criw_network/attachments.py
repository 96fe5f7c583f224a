"""The pods in the network: how one is attached and detached, whatever happens meanwhile, and what is known of all."""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Gauge, Histogram

from criw.errors import InvalidArgument
from criw.ids import is_id
from criw.kernel import in_fresh_thread
from criw.locks import KeyedLocks
from criw.operations import Operations, run_to_end
from criw.store import Record, Store
from criw_network import netns
from criw_network.addresses import parse_ranges
from criw_network.hostports import HostPort
from criw_network.links import Counters
from criw_network.provider import Attachment, Condition, Provider

log = logging.getLogger(__name__)

_STEP_LIMIT_S: Final = 60.0  # for what the kernel does in milliseconds: beyond it, it hangs
_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class Ranges(Record):
    """The pod ranges the kubelet set, which override the configuration. There is one, `id` "pods"."""

    kind: ClassVar[str] = "ranges"
    cidrs: tuple[str, ...]


class Attachments:
    """`pins` is the directory of the pinned namespaces. Call `recover()` before anything else, `close()` at the end."""

    def __init__(self, store: Store, provider: Provider, pins: Path, registry: CollectorRegistry) -> None:
        self._store = store
        self._provider = provider
        self._pins = pins
        self._all: dict[str, Attachment] = {}
        self._operations = Operations()
        self._locks = KeyedLocks()
        self._configuring = asyncio.Lock()
        self._count = Gauge("criw_network_attached_pods", "Pods attached.", registry=registry)
        self._free = Gauge("criw_network_free_addresses", "Addresses left for pods.", ["ip_version"], registry=registry)
        self._seconds = Histogram(
            "criw_network_attach_seconds", "Time to attach a pod.", buckets=_BUCKETS, registry=registry
        )

    def _measure(self) -> None:
        self._count.set(len(self.ids()))
        self._free.clear()
        for version, free in self._provider.free_addresses().items():
            self._free.labels(version).set(free)

    def pin(self, pod_id: str) -> Path:
        """Where the pod's namespace is pinned."""
        return self._pins / pod_id

    def ids(self) -> Collection[str]:
        """The attached pods."""
        return [pod_id for pod_id, attachment in self._all.items() if attachment.state == "attached"]

    @property
    def condition(self) -> Condition:
        return self._provider.condition

    async def recover(self) -> None:
        """Keep the pods that were attached and still have their namespace; whatever else there is goes."""
        self._pins.mkdir(mode=0o711, parents=True, exist_ok=True)
        records = await self._store.all(Attachment)
        kept = [record for record in records if record.state == "attached" and netns.is_pinned(self.pin(record.id))]
        self._all = {record.id: record for record in kept}
        lost = [record for record in records if record.id not in self._all]
        for pin in self._pins.iterdir():
            if pin.name not in self._all:
                netns.remove(pin)
        await self._provider.recover(kept)
        await self._store.delete(*lost)
        self._measure()
        if lost:
            log.warning(
                "dropped pods that were half attached or lost their namespace", extra={"pods": [r.id for r in lost]}
            )

    async def attach(self, pod_id: str, ports: Sequence[HostPort], sysctls: Mapping[str, str]) -> Attachment:
        """Attach a pod, or answer what it got before. Raises what `Network.Attach` says."""
        if not is_id(pod_id):
            raise InvalidArgument(f"cannot attach pod {pod_id!r}: not an id of 64 hex digits")
        netns.check_sysctls(sysctls)
        return await self._operations.run(f"attach {pod_id}", partial(self._attach, pod_id, ports, sysctls))

    async def _attach(self, pod_id: str, ports: Sequence[HostPort], sysctls: Mapping[str, str]) -> Attachment:
        async with self._locks.hold(pod_id):
            found = self._all.get(pod_id)
            if found is not None and found.state == "attached":
                return found
            if found is not None:  # an earlier undoing failed
                await self._undo(found)
            with self._seconds.time():
                planned, rows = self._provider.reserve(pod_id, ports)
                self._all[pod_id] = planned
                try:
                    await self._store.put(planned, *rows)
                    # To its end even if cancelled: the threads cannot be stopped, and undoing must not race with them.
                    await run_to_end(self._make(planned, sysctls), limit_s=_STEP_LIMIT_S)
                    attached = planned.model_copy(update={"state": "attached"})
                    await self._store.put(attached)
                except BaseException:
                    await run_to_end(self._undo(planned), limit_s=_STEP_LIMIT_S)
                    raise
            self._all[pod_id] = attached
            self._measure()
            log.info("attached", extra={"pod": pod_id, "addresses": attached.addresses})
            return attached

    async def _make(self, planned: Attachment, sysctls: Mapping[str, str]) -> None:
        pin = self.pin(planned.id)
        await in_fresh_thread(partial(netns.create, pin))
        await self._provider.connect(planned, pin)
        if sysctls:
            # Last, as with other runtimes: what a pod says about its interfaces finds them there.
            await in_fresh_thread(partial(_write_sysctls, pin, sysctls))

    async def _undo(self, attachment: Attachment) -> None:
        """Take away what there is of an attachment, however far it came. May be repeated."""
        await asyncio.to_thread(netns.remove, self.pin(attachment.id))
        await self._provider.disconnect(attachment)
        await self._store.delete(attachment)
        self._provider.release(attachment)
        del self._all[attachment.id]
        self._measure()

    async def detach(self, pod_id: str) -> None:
        """Detach a pod; one that is not attached is a success."""
        await self._operations.run(f"detach {pod_id}", partial(self._detach, pod_id))

    async def _detach(self, pod_id: str) -> None:
        async with self._locks.hold(pod_id):
            found = self._all.get(pod_id)
            if found is None:
                return
            detaching = found.model_copy(update={"state": "detaching"})
            await self._store.put(detaching)
            self._all[pod_id] = detaching
            await run_to_end(self._undo(detaching), limit_s=_STEP_LIMIT_S)
            log.info("detached", extra={"pod": pod_id})

    async def configure(self, cidrs: Sequence[str]) -> None:
        """Set the pod ranges. None at all changes nothing: the kubelet says so before its node has one.

        Raises InvalidArgument, or FailedPrecondition where attached pods would not fit.
        """
        networks = parse_ranges(cidrs)
        if not networks:
            return
        async with self._configuring:
            before = self._provider.networks
            if tuple(networks) != tuple(before):
                self._provider.use(networks, self._all.values())
                try:
                    await self._store.put(Ranges(id="pods", cidrs=tuple(map(str, networks))))
                except BaseException:
                    self._provider.use(before, self._all.values())
                    raise
                log.info("pod ranges changed", extra={"ranges": cidrs})
            await self._provider.refresh()
            self._measure()

    async def counters(self, pod_ids: Collection[str]) -> Mapping[str, tuple[str, Counters]]:
        """Name and counters of each pod's interface; of all pods if none is named. Unknown pods are left out."""
        attached = self.ids()
        return await self._provider.counters([i for i in attached if i in pod_ids] if pod_ids else list(attached))

    async def close(self) -> None:
        """Wait for what is under way. With no pod attached the host is as it was; otherwise pods go on working."""
        await self._operations.drain()
        await self._provider.close(idle=not self._all)


def _write_sysctls(pin: Path, sysctls: Mapping[str, str]) -> None:
    netns.enter(pin)
    netns.write_sysctls(sysctls)
