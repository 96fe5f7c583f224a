"""What is so on a full disk, and how long an undoing is waited for."""

import asyncio

import pytest

from criw.errors import Failed, ResourceExhausted
from criw.store import Store
from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger import ledger
from criw_supervisor.ledger.records import ContainerRecord, IntentRecord, PodRecord
from criw_supervisor.runtimes.handler import task_of
from support.fake_handler import FakeHandler
from support.rooms import Rooms, container_request


class Disk:
    """The disk of the store."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full = False
        commit = Store.commit

        async def maybe(store: Store, **changes: object) -> None:
            if self.full:
                raise ResourceExhausted("cannot save state: no space left on the device")
            await commit(store, **changes)  # type: ignore[arg-type]

        patch.setattr(Store, "commit", maybe)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_on_a_full_disk_all_can_be_stopped_and_removed(rooms: Rooms, disk: Disk) -> None:
    before = await rooms.contents()
    pod = await rooms.run_pod()
    made = [await rooms.containers.create(pod, container_request(pod))]
    container = rooms.ledger.containers.find(made[0])
    await rooms.containers.start(container)
    disk.full = True
    await rooms.containers.stop(container, grace_s=0)
    assert container.status().exit_code == 137
    await rooms.pods.stop(pod)
    assert pod.state == cri.PodSandboxState.SANDBOX_NOTREADY
    await rooms.containers.remove(container)
    await rooms.pods.remove(pod)
    assert [line for line in await rooms.contents() if not line.startswith("row ")] == before
    disk.full = False
    await rooms.ledger.write_rest()
    assert await rooms.contents() == before
    assert rooms.ledger.unwritten == {}


async def test_an_end_on_a_full_disk_is_told_and_written_when_there_is_room(rooms: Rooms, disk: Disk) -> None:
    pod = await rooms.run_pod()
    container = rooms.ledger.containers.find(await rooms.containers.create(pod, container_request(pod)))
    await rooms.containers.start(container)
    disk.full = True
    await rooms.handler.kill_all(task_of(container.record))
    await asyncio.wait_for(container.exited.wait(), 10)
    assert container.state == cri.ContainerState.CONTAINER_EXITED
    with pytest.raises(ResourceExhausted):
        await rooms.ledger.write_rest()
    disk.full = False
    await rooms.ledger.write_rest()
    stored = await rooms.ledger.store.get(ContainerRecord, container.id)
    assert stored == container.record


async def test_what_is_written_late_does_not_replace_what_came_after_it(rooms: Rooms, disk: Disk) -> None:
    pod = await rooms.run_pod()
    disk.full = True
    await rooms.ledger.save(pod, pod.record.model_copy(update={"hostname": "first"}))
    disk.full = False
    await rooms.ledger.save(pod, pod.record.model_copy(update={"hostname": "second"}))
    await rooms.ledger.write_rest()
    stored = await rooms.ledger.store.get(PodRecord, pod.id)
    assert stored is not None
    assert stored.hostname == "second"


async def test_nothing_is_made_on_a_full_disk(rooms: Rooms, disk: Disk) -> None:
    before = await rooms.contents()
    disk.full = True
    with pytest.raises(ResourceExhausted):
        await rooms.run_pod()
    disk.full = False
    await rooms.unfinished.undo_all()
    assert await rooms.contents() == before


async def test_an_undoing_that_takes_long_is_left_alone_until_it_has_ended(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "UNDO_LIMIT_S", 0.01)
    go, begun, delete = asyncio.Event(), 0, FakeHandler.delete

    async def slow(self: FakeHandler, task: object, *, ended: bool) -> None:
        nonlocal begun
        begun += 1
        await go.wait()
        await delete(self, task, ended=ended)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeHandler, "delete", slow)
    before = await rooms.contents()
    rooms.handler.fail = {"create": Failed("injected")}
    with pytest.raises(Failed, match="injected"):
        await rooms.run_pod()
    (intent,) = rooms.ledger.unfinished.values()
    await rooms.unfinished.undo_all()  # it is not begun a second time beside the first
    assert (rooms.ledger.abandoned(), begun) == ([], 1)
    go.set()
    async with asyncio.timeout(10):
        while rooms.ledger.unfinished:
            await asyncio.sleep(0.005)
    assert await rooms.contents() == before
    assert await rooms.ledger.store.get(IntentRecord, intent.id) is None
