"""The pods in the network: how one is attached and detached, whatever happens meanwhile, and what is known of all."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Gauge, Histogram

from criw import namespaces
from criw.errors import InvalidArgument
from criw.ids import is_id
from criw.kernel import in_fresh_thread
from criw.locks import KeyedLocks
from criw.operations import Operations, run_to_end
from criw.store import Record, Store
from criw_network import netns
from criw_network.netlink.links import Counters
from criw_network.pod import Pod
from criw_network.provider import Attached, Provider

log = logging.getLogger(__name__)

_STEP_LIMIT_S: Final = 60.0  # for what the kernel does in milliseconds: beyond it, it hangs
_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class Attachment(Record):
    """A pod in the network. Without `attached` it is an intent: something of it may exist, and it is to be undone."""

    kind: ClassVar[str] = "attachment"
    pod: Pod
    attached: Attached | None = None


class Attachments:
    """`pins` is the directory of the pinned namespaces. Call `recover()` before anything else, `drain()` at the end."""

    def __init__(self, store: Store, provider: Provider, pins: Path, registry: CollectorRegistry) -> None:
        self._store = store
        self._provider = provider
        self._pins = pins
        self._attached: dict[str, Attached] = {}
        self._pods: dict[str, Pod] = {}  # with those that an undoing failed for
        self._operations = Operations()
        self._locks = KeyedLocks()
        Gauge("criw_network_attached_pods", "Pods attached.", registry=registry).set_function(
            lambda: len(self._attached)
        )
        self._seconds = Histogram(
            "criw_network_attach_seconds", "Time to attach a pod.", buckets=_BUCKETS, registry=registry
        )

    def pin(self, pod_id: str) -> Path:
        """Where the pod's namespace is pinned."""
        return self._pins / pod_id

    def ids(self) -> Collection[str]:
        """The attached pods."""
        return self._attached.keys()

    async def recover(self) -> None:
        """Keep the pods that were attached and still have their namespace; whatever else there is goes."""
        self._pins.mkdir(mode=0o711, parents=True, exist_ok=True)
        records = await self._store.all(Attachment)
        self._pods = {record.id: record.pod for record in records}
        self._attached = {
            record.id: record.attached
            for record in records
            if record.attached and namespaces.is_pinned(self.pin(record.id))
        }
        await self._provider.recover([(self._pods[pod_id], attached) for pod_id, attached in self._attached.items()])
        lost = [pod for pod_id, pod in self._pods.items() if pod_id not in self._attached]
        for pod in lost:
            await self._undo(pod)
        for pin in self._pins.iterdir():
            if pin.name not in self._attached:
                namespaces.unpin(pin)
        if lost:
            log.warning(
                "dropped pods that were half attached or lost their namespace", extra={"pods": [pod.id for pod in lost]}
            )

    async def attach(self, pod: Pod) -> Attached:
        """Attach a pod, or answer what it got before. Raises what `Network.Attach` says."""
        if not is_id(pod.id):
            raise InvalidArgument(f"cannot attach pod {pod.id!r}: not an id of 64 hex digits")
        netns.check_sysctls(pod.sysctls)
        return await self._operations.run(f"attach {pod.id}", partial(self._attach, pod))

    async def _attach(self, pod: Pod) -> Attached:
        async with self._locks.hold(pod.id):
            if pod.id in self._attached:
                return self._attached[pod.id]
            if pod.id in self._pods:  # an earlier undoing failed
                await self._undo(self._pods[pod.id])
            with self._seconds.time():
                self._pods[pod.id] = pod
                try:
                    await self._store.put(Attachment(id=pod.id, pod=pod))
                    # To its end even if cancelled: the threads cannot be stopped, and undoing must not race with them.
                    await run_to_end(self._make(pod), limit_s=_STEP_LIMIT_S)
                except BaseException:
                    await run_to_end(self._undo(pod), limit_s=_STEP_LIMIT_S)
                    raise
            attached = self._attached[pod.id]
            log.info("attached", extra={"pod": pod.id, "addresses": [str(address) for address in attached.addresses]})
            return attached

    async def _make(self, pod: Pod) -> None:
        pin = self.pin(pod.id)
        await in_fresh_thread(partial(netns.create, pin))
        attached = await self._provider.attach(pod, pin)
        if pod.sysctls:
            # After the wiring, as with other runtimes: what a pod says about its interfaces finds them there.
            await in_fresh_thread(partial(_write_sysctls, pin, pod.sysctls))
        await self._store.put(Attachment(id=pod.id, pod=pod, attached=attached))
        self._attached[pod.id] = attached

    async def _undo(self, pod: Pod) -> None:
        """Take away what there is of a pod, however far it came. May be repeated."""
        self._attached.pop(pod.id, None)
        await self._provider.detach(pod, self.pin(pod.id))
        await asyncio.to_thread(namespaces.unpin, self.pin(pod.id))
        await self._store.delete(Attachment(id=pod.id, pod=pod))
        del self._pods[pod.id]

    async def detach(self, pod_id: str) -> None:
        """Detach a pod; one that is not attached is a success."""
        await self._operations.run(f"detach {pod_id}", partial(self._detach, pod_id))

    async def _detach(self, pod_id: str) -> None:
        async with self._locks.hold(pod_id):
            pod = self._pods.get(pod_id)
            if pod is None:
                return
            await self._store.put(Attachment(id=pod_id, pod=pod))
            await run_to_end(self._undo(pod), limit_s=_STEP_LIMIT_S)
            log.info("detached", extra={"pod": pod_id})

    async def counters(self, pod_ids: Collection[str]) -> Mapping[str, tuple[str, Counters]]:
        """Name and counters of each pod's interface; of all pods if none is named. Unknown pods are left out."""
        wanted = [pod_id for pod_id in self._attached if pod_id in pod_ids or not pod_ids]
        return await self._provider.counters({pod_id: self.pin(pod_id) for pod_id in wanted})

    async def drain(self) -> None:
        """Wait for what is under way."""
        await self._operations.drain()


def _write_sysctls(pin: Path, sysctls: Mapping[str, str]) -> None:
    netns.enter(pin)
    netns.write_sysctls(sysctls)
