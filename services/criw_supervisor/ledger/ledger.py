"""What there is: pods and containers, in the store and in memory as a copy of it. Nothing else writes either."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Final, Protocol, TypeVar

from criw.errors import Fault, ResourceExhausted, Unavailable
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
REMOTE_UNDO_LIMIT_S: Final = 10.0  # for another agent to give back its part; else it is reconciled later

R = TypeVar("R", bound=Record, contravariant=True)
Undo = Callable[[IntentRecord], Awaitable[None]]


class _Kept(Protocol[R]):
    """A pod or a container."""

    def update(self, record: R) -> None: ...


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})


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
        self.unwritten: dict[str, Callable[[], Awaitable[None]]] = {}  # changes a full disk has not taken yet
        self._writing = KeyedLocks()
        self._making: set[str] = set()
        self._undoing: set[asyncio.Task[None]] = set()
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
            if making.committed:
                del self.unfinished[intent.id]
                self._making.discard(intent.id)
            else:
                await self._undo_within_limit(intent, undo)

    async def _undo_within_limit(self, intent: IntentRecord, undo: Undo) -> None:
        """Wait for the undoing, not for ever; it goes on, and nobody else works on it before it has ended."""
        undoing = asyncio.create_task(self._undo(intent, undo), name=f"undo {intent.id}")
        self._undoing.add(undoing)
        undoing.add_done_callback(self._undoing.discard)
        try:
            await run_to_end(_end_of(undoing), limit_s=UNDO_LIMIT_S)
        except TimeoutError:  # the cause of the undoing is what the caller must read
            log.warning("undoing takes long", extra={"what": intent.what, "id": intent.id})

    async def _undo(self, intent: IntentRecord, undo: Undo) -> None:
        try:
            await self.undone(intent, undo)
        except (Fault, OSError) as err:  # as above; it is tried again
            log.warning(
                "cannot undo what was not finished yet",
                extra={"what": intent.what, "id": intent.id, "error": str(err)},
            )
        finally:
            self._making.discard(intent.id)
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    async def undone(self, intent: IntentRecord, undo: Undo) -> None:
        """Undo what was not finished, and forget it once it is."""
        try:
            await undo(intent)
            await self.store.delete(intent)
            self.unfinished.pop(intent.id, None)
        finally:
            self._tell()  # also when all is undone here: another agent may not have answered

    def abandoned(self) -> list[IntentRecord]:
        """What is neither being made nor undone yet."""
        return [intent for intent in self.unfinished.values() if intent.id not in self._making]

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when something was not finished or written; another agent may hold a part of it."""
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
        """Replace the record of a pod or container. It is so from now on, also while a full disk does not take it."""
        item.update(record)
        await self._write(record, partial(self.store.put, record))

    async def forget(self, item: Pod | Container) -> None:
        """Delete the record of a pod or container of which nothing is left; as `save` on a full disk."""
        await self._write(item.record, partial(self.store.delete, item.record))
        if isinstance(item, Pod):
            self.pods.discard(item.id)
        elif item.record.infra:
            self.infra.pop(item.record.pod_id, None)
        else:
            self.containers.discard(item.id)

    async def _write(self, record: Record, write: Callable[[], Awaitable[None]]) -> None:
        key = f"{record.kind} {record.id}"
        async with self._writing.hold(key):  # what is written later must not be written over by what came before
            try:
                await write()
            except (ResourceExhausted, Unavailable) as err:
                log.warning(
                    "cannot save yet what is so", extra={"what": record.kind, "id": record.id, "error": str(err)}
                )
                self.unwritten[key] = write
            else:
                self.unwritten.pop(key, None)
        if key in self.unwritten:
            self._tell()

    async def write_rest(self) -> None:
        """Write what could not be written yet. Raises the fault of what still cannot, having tried the rest."""
        failed: Fault | None = None
        for key in list(self.unwritten):
            async with self._writing.hold(key):
                if (write := self.unwritten.get(key)) is not None:
                    try:
                        await write()
                    except (ResourceExhausted, Unavailable) as err:
                        failed = err
                    else:
                        del self.unwritten[key]
        if failed is not None:
            raise failed

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
