"""The statistics of containers while an agent is away."""

from criw.errors import Unavailable
from support.rooms import Rooms, container_request


async def test_a_storage_agent_that_is_away_costs_the_disk_figures_only(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    container = rooms.ledger.containers.find(await rooms.containers.create(pod, container_request(pod)))
    await rooms.containers.start(container)
    (whole,) = await rooms.stats.of([container])
    assert whole.cpu is not None
    assert whole.writable_layer is not None
    rooms.agents.storage.fail["usage"] = Unavailable("cannot reach criw-storage")
    (known,) = await rooms.stats.of([container])
    assert known.cpu is not None
    assert known.writable_layer is None
    await rooms.pods.remove(pod)
