"""StopContainer of many at once."""

import asyncio
from collections.abc import Sequence

import pytest
import pytest_asyncio

from criw_proto.runtime import v1 as cri
from criw_supervisor.containers.stop import KILLS_AT_ONCE
from criw_supervisor.ledger.container import Container
from criw_supervisor.runtimes.handler import Task
from support.rooms import Rooms, container_request, pod_request

MANY = 3 * KILLS_AT_ONCE


@pytest_asyncio.fixture
async def running(rooms: Rooms) -> Sequence[Container]:
    """Containers that run, each in a pod of its own."""
    made = []
    for number in range(MANY):

        def rename(config: cri.PodSandboxConfig, name: str = f"web-{number}") -> None:
            config.metadata = cri.PodSandboxMetadata(name=name, namespace="default", uid="u")

        pod_id = await rooms.pods.run(pod_request(rename))
        pod = rooms.ledger.pods.find(pod_id)
        container = rooms.ledger.containers.find(await rooms.containers.create(pod, container_request(pod)))
        await rooms.containers.start(container)
        made.append(container)
    return made


async def test_a_few_are_killed_at_a_time_and_one_that_does_not_die_keeps_no_other(
    rooms: Rooms, running: Sequence[Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, killed = rooms.handler.kill, list[str]()

    async def kill(task: Task, number: int) -> bool:
        killed.append(task.id)
        return True

    monkeypatch.setattr(rooms.handler, "kill", kill)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for container in running:
            tasks.create_task(rooms.containers.stop(container, grace_s=0))
        while len(killed) < KILLS_AT_ONCE:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(killed) == KILLS_AT_ONCE
        while len(killed) < MANY:  # though none of them has died
            await asyncio.sleep(0.01)
        monkeypatch.setattr(rooms.handler, "kill", real)
        for container in running:
            await rooms.handler.kill(rooms.handler.held[container.id].task, 9)
    assert all(container.exited.is_set() for container in running)
