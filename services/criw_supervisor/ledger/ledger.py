"""What there is: pods and containers, in the store and in memory as a copy of it. Nothing else writes either."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, Protocol, TypeVar

from criw.errors import Fault
from criw.locks import KeyedLocks
from criw.operations import run_to_end
from criw.store import Record, Store
from criw_supervisor.ledger.container import Container, ContainerName
from criw_supervisor.ledger.index import Index
from criw_supervisor.ledger.places import Places
from criw_supervisor.ledger.pod import Pod, PodName
from criw_supervisor.ledger.records import ContainerRecord, IntentRecord, PodRecord

log = logging.getLogger(__name__)
UNDO_LIMIT_S: Final = 60.0

R = TypeVar("R", bound=Record, contravariant=True)
Undo = Callable[[IntentRecord], Awaitable[None]]


class _Kept(Protocol[R]):
    """A pod or a container."""

    def update(self, record: R) -> None: ...


class Making:
    """A pod or container that is being made, until it is committed."""

    def __init__(self, ledger: "Ledger", intent: IntentRecord) -> None:
        self._ledger = ledger
        self._intent = intent
        self.committed = False

    async def commit(self, *records: PodRecord | ContainerRecord) -> None:
        """Have the records in place of the intent, in one transaction: from here on they own what was made."""
        await self._ledger.store.commit(delete=[self._intent], create=records)
        self.committed = True
        for record in records:
            self._ledger.add(record)


class Ledger:
    """Pods, containers, and the infra containers of pods with a shared PID namespace (by pod id; never listed)."""

    def __init__(self, store: Store, places: Places) -> None:
        self.store = store
        self.places = places
        self.pods: Index[Pod] = Index("pod sandbox")
        self.containers: Index[Container] = Index("container")
        self.infra: dict[str, Container] = {}
        self.unfinished: dict[str, IntentRecord] = {}  # being made, or not undone yet
        self.names = KeyedLocks()  # of what is being made
        self.pod_locks = KeyedLocks()  # taken before any container's
        self.container_locks = KeyedLocks()
        self._making: set[str] = set()
        self._listeners: list[Callable[[], None]] = []

    # --- what is made

    @contextlib.asynccontextmanager
    async def making(self, intent: IntentRecord, undo: Undo) -> AsyncIterator[Making]:
        """Make a pod or container inside the block and `commit()` it; else all of it is undone when the block is left.

        The intent is there before the first side effect, and until the record is, or until everything is undone.
        """
        making = Making(self, intent)
        self.unfinished[intent.id] = intent
        self._making.add(intent.id)
        try:
            await self.store.commit(create=[intent])
            yield making
        finally:
            if not making.committed:
                await self._undo(intent, undo)
            else:
                del self.unfinished[intent.id]
            self._making.discard(intent.id)

    async def _undo(self, intent: IntentRecord, undo: Undo) -> None:
        try:
            await run_to_end(self.undone(intent, undo), limit_s=UNDO_LIMIT_S)
        except (Fault, OSError) as err:  # the cause of the undoing is what the caller must read
            log.warning(
                "cannot undo what was not finished yet",
                extra={"what": intent.what, "id": intent.id, "error": str(err)},
            )
        for listener in self._listeners:
            listener()

    async def undone(self, intent: IntentRecord, undo: Undo) -> None:
        """Undo what was not finished, and forget it once it is."""
        await undo(intent)
        await self.store.delete(intent)
        self.unfinished.pop(intent.id, None)

    def abandoned(self) -> list[IntentRecord]:
        """What is neither being made nor undone yet."""
        return [intent for intent in self.unfinished.values() if intent.id not in self._making]

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever something was not finished: another agent may hold a part of it."""
        self._listeners.append(listener)

    # --- what is there

    async def load(self) -> None:
        """Read the store, at start."""
        for record in sorted(await self.store.all(PodRecord), key=lambda one: one.created_at_ns):
            self.add(record)
        for container in sorted(await self.store.all(ContainerRecord), key=lambda one: one.created_at_ns):
            self.add(container)
        self.unfinished.update({intent.id: intent for intent in await self.store.all(IntentRecord)})

    def add(self, record: PodRecord | ContainerRecord) -> None:
        """Have what is recorded in memory too (an infra container with its pod)."""
        if isinstance(record, PodRecord):
            self.pods.add(Pod(record, self.places.pod(record.id)))
        elif record.infra:
            self.infra[record.pod_id] = Container(record)
        else:
            self.containers.add(Container(record))

    async def save(self, item: _Kept[R], record: R) -> None:
        """Replace the record of a pod or container."""
        await self.store.put(record)
        item.update(record)

    async def forget(self, item: Pod | Container) -> None:
        """Delete the record of a pod or container of which nothing is left."""
        await self.store.delete(item.record)
        if isinstance(item, Pod):
            self.pods.discard(item.id)
        elif item.record.infra:
            self.infra.pop(item.record.pod_id, None)
        else:
            self.containers.discard(item.id)

    # --- what is found

    def pod_named(self, name: PodName) -> Pod | None:
        return next((pod for pod in self.pods if pod.name == name), None)

    def container_named(self, pod_id: str, name: ContainerName) -> Container | None:
        return next((one for one in self.containers_of(pod_id) if one.name == name), None)

    def containers_of(self, pod_id: str) -> Iterator[Container]:
        """The pod's containers, the infra container not among them."""
        return (container for container in self.containers if container.record.pod_id == pod_id)

    def container(self, container_id: str) -> Container | None:
        """A container by its full id, infra containers included: those have their pod's."""
        return self.containers.get(container_id) or self.infra.get(container_id)

    def all_containers(self) -> list[Container]:
        """All containers, infra containers included."""
        return [*self.containers, *self.infra.values()]

    def knows(self, item_id: str) -> bool:
        """Whether a pod or container is there or being made or undone."""
        return self.pods.get(item_id) is not None or self.container(item_id) is not None or item_id in self.unfinished
