"""The pods in the network: how one is attached and detached, whatever happens meanwhile, and what is known of all."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Gauge, Histogram

from criw import namespaces
from criw.errors import Fault, InvalidArgument
from criw.ids import is_id
from criw.kernel import in_fresh_thread
from criw.locks import KeyedLocks
from criw.operations import Operations, run_to_end
from criw.retrying import Retrying, Step
from criw.store import Record, Store
from criw_network import netns
from criw_network.netlink.links import Counters
from criw_network.pod import Pod
from criw_network.provider import Attached, Provider

log = logging.getLogger(__name__)

_STEP_LIMIT_S: Final = 60.0  # for what the kernel does in milliseconds: beyond it, it hangs
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_NOT_SAVED: Final = (Fault, OSError)
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
        self._pods: dict[str, Pod] = {}  # all of which there is anything
        self._left: dict[str, str] = {}  # those an undoing failed for, and why
        self._rows: set[str] = set()  # those of which nothing is left but the row
        self._retrying = Retrying(self._again, first_pause_s=_FIRST_PAUSE_S, longest_pause_s=_LONGEST_PAUSE_S)
        self._operations = Operations()
        self._locks = KeyedLocks()
        Gauge("criw_network_attached_pods", "Pods attached.", registry=registry).set_function(
            lambda: len(self._attached)
        )
        Gauge("criw_network_unfinished", "Pods whose network could not be undone yet.", registry=registry).set_function(
            lambda: len(self._left) + len(self._rows)
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

    def known(self) -> Collection[str]:
        """All pods of which there is anything: with those being attached, and those whose undoing failed."""
        return self._pods.keys()

    def lost(self) -> Collection[str]:
        """The attached pods whose namespace is gone. Their addresses and ports stay theirs until they are detached."""
        return [pod_id for pod_id in self._attached if not namespaces.is_pinned(self.pin(pod_id))]

    @property
    def trouble(self) -> str:
        """A sentence about what could not be undone; empty if there is nothing."""
        for pod_id, reason in self._left.items():
            return f"cannot undo the network of {len(self._left)} pods, trying again; {pod_id}: {reason}"
        return ""

    async def recover(self) -> None:
        """Keep the pods that were attached; whatever else there is goes, now or later: see `keep_undoing`."""
        self._pins.mkdir(mode=0o711, parents=True, exist_ok=True)
        records = await self._store.all(Attachment)
        self._pods = {record.id: record.pod for record in records}
        self._attached = {record.id: record.attached for record in records if record.attached}
        remains = await self._provider.recover(
            [(self._pods[pod_id], attached) for pod_id, attached in self._attached.items()]
        )
        half = [pod_id for pod_id in self._pods if pod_id not in self._attached]
        for pod_id in {*remains, *(pin.name for pin in self._pins.iterdir())} - self._pods.keys():
            if is_id(pod_id):
                self._pods[pod_id] = Pod(id=pod_id)
                half.append(pod_id)
            else:
                log.warning("something that is no pod's is among the namespaces", extra={"file": pod_id})
        if half:
            log.warning("undoing what was half attached or has no record", extra={"pods": half})
        self._left = dict.fromkeys(half, "the agent was interrupted")
        await self.undo_left()
        if lost := self.lost():
            log.warning("pods have lost their namespace", extra={"pods": lost})

    async def attach(self, pod: Pod) -> Attached:
        """Attach a pod, or answer what it got before. Raises what `Network.Attach` says."""
        if not is_id(pod.id):
            raise InvalidArgument(f"cannot attach pod {pod.id!r}: not an id of 64 hex digits")
        netns.check_sysctls(pod.sysctls)
        return await self._operations.run(f"attach {pod.id}", partial(self._attach, pod))

    async def _attach(self, pod: Pod) -> Attached:
        async with self._locks.hold(pod.id):
            if pod.id in self._attached and namespaces.is_pinned(self.pin(pod.id)):
                return self._attached[pod.id]
            if pod.id in self._pods:  # an earlier undoing failed, or it lost its namespace
                await run_to_end(self._undo(self._pods[pod.id]), limit_s=_STEP_LIMIT_S)
            with self._seconds.time():
                self._pods[pod.id] = pod
                try:
                    await self._intend(pod)
                    # To its end even if cancelled: the threads cannot be stopped, and undoing must not race with them.
                    await run_to_end(self._make(pod), limit_s=_STEP_LIMIT_S)
                except BaseException:
                    await run_to_end(self._undo(pod), limit_s=_STEP_LIMIT_S)
                    raise
            attached = self._attached[pod.id]
            log.info("attached", extra={"pod": pod.id, "addresses": [str(address) for address in attached.addresses]})
            return attached

    async def _intend(self, pod: Pod) -> None:
        """Write the intent; with it go rows of pods of which nothing else is left, for theirs is what it may get."""
        rows = tuple(self._rows - {pod.id})
        gone = [Attachment(id=pod_id, pod=Pod(id=pod_id)) for pod_id in rows]
        await self._store.commit(put=[Attachment(id=pod.id, pod=pod)], delete=gone)
        self._rows -= {*rows, pod.id}

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
        """Take away what there is of a pod, however far it came. May be repeated.

        The row comes last, and the pod does not wait for it: a full disk must not keep what would free it.
        """
        self._attached.pop(pod.id, None)
        try:
            await self._provider.detach(pod, self.pin(pod.id))
            await in_fresh_thread(partial(namespaces.unpin, self.pin(pod.id)))
        except BaseException as err:
            self._left[pod.id] = str(err) or type(err).__name__
            self._retrying.wake()
            raise
        self._left.pop(pod.id, None)
        del self._pods[pod.id]
        self._rows.add(pod.id)
        try:
            await self._store.delete(Attachment(id=pod.id, pod=pod))
        except _NOT_SAVED as err:
            log.warning("cannot delete the record of a pod that is detached", extra={"pod": pod.id, "error": str(err)})
            self._retrying.wake()
        else:
            self._rows.discard(pod.id)

    async def detach(self, pod_id: str) -> None:
        """Detach a pod; one that is not attached is a success."""
        await self._operations.run(f"detach {pod_id}", partial(self._detach, pod_id))

    async def _detach(self, pod_id: str) -> None:
        async with self._locks.hold(pod_id):
            pod = self._pods.get(pod_id)
            if pod is None:
                return
            try:
                await self._store.put(Attachment(id=pod_id, pod=pod))
            except _NOT_SAVED as err:  # killed now, the next agent would find an attached pod: to be detached again
                log.warning("cannot note that a pod is being detached", extra={"pod": pod_id, "error": str(err)})
            await run_to_end(self._undo(pod), limit_s=_STEP_LIMIT_S)
            log.info("detached", extra={"pod": pod_id})

    async def keep_undoing(self) -> None:
        """Try again what could not be undone, each pod with growing pauses of its own, for ever."""
        await self._retrying.run()

    def _again(self) -> dict[str, Step]:
        again: dict[str, Step] = {pod_id: partial(self._try_to_undo, pod_id) for pod_id in self._left}
        return again | ({"rows": self._delete_rows} if self._rows else {})

    async def undo_left(self) -> None:
        """Try once to undo what is left of pods, side by side; one that fails or hangs does not keep the others."""
        await asyncio.gather(*(self._try_to_undo(pod_id) for pod_id in self._left))
        await self._delete_rows()

    async def _delete_rows(self) -> None:
        rows = tuple(self._rows)
        try:
            await self._store.delete(*(Attachment(id=pod_id, pod=Pod(id=pod_id)) for pod_id in rows))
        except _NOT_SAVED as err:
            log.warning("cannot delete the records of detached pods yet", extra={"error": str(err)})
        else:
            self._rows -= {*rows}

    async def _try_to_undo(self, pod_id: str) -> None:
        try:
            async with asyncio.timeout(_STEP_LIMIT_S):
                await self._operations.run(f"undo {pod_id}", partial(self._undo_left, pod_id))
        except Exception as err:  # noqa: BLE001 — whatever it is, the other pods do not wait for it
            log.warning("cannot undo the network of a pod yet", extra={"pod": pod_id, "error": repr(err)})

    async def _undo_left(self, pod_id: str) -> None:
        async with self._locks.hold(pod_id):
            if pod_id in self._left:  # nobody else did it meanwhile, or attached the pod anew
                await run_to_end(self._undo(self._pods[pod_id]), limit_s=_STEP_LIMIT_S)

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
