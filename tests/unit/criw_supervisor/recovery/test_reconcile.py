"""What the other agents hold for nobody is given back; a pod whose network is gone is not ready any more."""

import asyncio

import pytest

from criw.errors import Failed, Unavailable
from criw.ids import new_id
from criw_proto.criw.network.v1 import AttachRequest, AttachResponse
from criw_supervisor.recovery import reconcile
from support.rooms import Rooms, container_request


async def until_detached(rooms: Rooms, pod_id: str) -> None:
    async with asyncio.timeout(10):
        while pod_id in rooms.agents.network.attached:
            await asyncio.sleep(0.005)


async def test_a_network_that_comes_late_is_given_back_without_a_restart(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_INTERVAL_S", 0.02)
    running = asyncio.create_task(rooms.reconcile.run())
    kept = await rooms.run_pod()
    for _ in range(2):  # an attach that a supervisor asked for before it was killed, and that was slow
        late = new_id()
        await rooms.agents.network.attach(AttachRequest(pod_id=late))
        await until_detached(rooms, late)
    assert list(rooms.agents.network.attached) == [kept.id]
    assert kept.ready
    running.cancel()


async def test_a_pod_whose_attachment_is_gone_is_not_ready(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    await rooms.reconcile.compare()
    assert pod.ready
    del rooms.agents.network.attached[pod.id]
    await rooms.reconcile.compare()
    assert not pod.ready


async def test_a_pod_whose_namespace_is_gone_is_not_ready(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    rooms.kernel.gone.add(pod.record.netns)
    await rooms.reconcile.compare()
    assert not pod.ready


async def test_an_agent_that_is_away_does_not_keep_the_other_from_being_compared(rooms: Rooms) -> None:
    stray = new_id()
    rooms.agents.network.attached[stray] = AttachResponse()
    rooms.agents.storage.fail["list_rootfs"] = Unavailable("away")
    with pytest.raises(Unavailable):
        await rooms.reconcile.compare()
    assert rooms.agents.network.attached == {}


async def test_what_is_still_being_undone_is_not_taken_away_from_under_it(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    rooms.handler.fail = {"create": Failed("injected"), "delete": Unavailable("stuck in I/O")}
    with pytest.raises(Failed):
        await rooms.containers.create(pod, container_request(pod))
    await rooms.reconcile.compare()
    assert list(rooms.agents.storage.rootfs) == list(rooms.ledger.unfinished)
    await rooms.unfinished.undo_all()
    assert rooms.agents.storage.rootfs == {}
