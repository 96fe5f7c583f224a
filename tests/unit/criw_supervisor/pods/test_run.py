"""RunPodSandbox when each of its steps fails once, in turn: nothing is left, and the same request works then."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from criw.errors import AlreadyExists, Failed, Fault, ResourceExhausted, Unavailable
from criw.store import Store
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.pods import etc
from criw_supervisor.runtimes.bundle import Bundle
from support.rooms import Rooms, pod_request

INJECTED = "injected"
Break = Callable[[Rooms, pytest.MonkeyPatch], None]


def once(patch: pytest.MonkeyPatch, owner: object, name: str, fault: Exception, *, call: int = 1) -> None:
    """Have one call of a method or function fail, the first or a later one."""
    real = getattr(owner, name)
    calls = 0

    def broken(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise fault
        return real(*arguments, **named)

    patch.setattr(owner, name, broken)


def disk(call: int) -> Break:
    full = ResourceExhausted(INJECTED)
    return lambda rooms, patch: once(patch, Store, "commit", full, call=call)


def network(method: str) -> Break:
    return lambda rooms, _: rooms.agents.network.fail.update({method: Failed(INJECTED)})


def kernel(call: str) -> Break:
    return lambda rooms, _: rooms.kernel.fail.update({call: OSError(errno.EIO, INJECTED)})


def handler(method: str) -> Break:
    return lambda rooms, _: rooms.handler.fail.update({method: Failed(INJECTED)})


STEPS: dict[str, Break] = {
    "the intent is written": disk(1),
    "the network is asked": network("attach"),
    "the network answers": network("attached"),
    "the cgroup is made": lambda _, patch: once(patch, Cgroups, "create", OSError(errno.ENOSPC, INJECTED)),
    "the namespaces are made": kernel("unshare"),
    "the hostname is set": kernel("sethostname"),
    "a namespace is pinned": kernel("mount"),
    "the files are written": lambda _, patch: once(patch, etc, "write", OSError(errno.ENOSPC, INJECTED)),
    "the pod's addresses are written": lambda _, patch: once(
        patch, etc, "add_addresses", OSError(errno.ENOSPC, INJECTED)
    ),
    "the infra container is created": handler("create"),
    "the infra container is started": handler("start"),
    "the record is written": disk(2),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails_leaves_nothing_and_the_same_request_works_then(
    rooms: Rooms, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await rooms.contents()
    STEPS[step](rooms, monkeypatch)
    with pytest.raises((Fault, OSError), match=INJECTED):
        await rooms.run_pod()
    assert await rooms.contents() == before
    pod = await rooms.run_pod()
    assert pod.ready
    await rooms.pods.remove(pod)
    assert await rooms.contents() == before


async def test_what_cannot_be_undone_at_once_is_kept_and_undone_later(rooms: Rooms) -> None:
    before = await rooms.contents()
    rooms.handler.fail = {"create": Failed(INJECTED), "delete": Unavailable("stuck in I/O")}
    with pytest.raises(Failed, match=INJECTED):  # the cause, not what became of the undoing
        await rooms.run_pod()
    (intent,) = rooms.ledger.abandoned()
    assert rooms.ledger.knows(intent.id)  # so that nobody takes away what is still being used
    assert await rooms.contents() != before
    await rooms.unfinished.undo_all()
    assert rooms.unfinished.failed == {}
    assert await rooms.contents() == before


async def test_an_undo_that_fails_does_not_keep_the_others(rooms: Rooms) -> None:
    before = await rooms.contents()
    for name in ("one", "two"):
        rooms.handler.fail = {"create": Failed(INJECTED), "delete": Unavailable("stuck in I/O")}
        request = pod_request(lambda config, name=name: setattr(config.metadata, "name", name))  # type: ignore[misc]
        with pytest.raises(Failed):
            await rooms.pods.run(request)
    rooms.handler.fail = {"delete": OSError(errno.EIO, "still stuck")}
    await rooms.unfinished.undo_all()
    assert len(rooms.ledger.abandoned()) == 1
    assert list(rooms.unfinished.failed.values()) == ["[Errno 5] still stuck"]
    await rooms.unfinished.undo_all()
    assert await rooms.contents() == before


async def test_the_same_request_is_joined_and_another_of_that_name_is_refused(rooms: Rooms) -> None:
    def other(config: cri.PodSandboxConfig) -> None:
        config.labels = {"another": "request"}

    one, same, refused = await asyncio.gather(
        rooms.pods.run(pod_request()),
        rooms.pods.run(pod_request()),
        rooms.pods.run(pod_request(other)),
        return_exceptions=True,
    )
    assert isinstance(one, str)
    assert same == one
    assert isinstance(refused, AlreadyExists)
    assert await rooms.pods.run(pod_request()) == one
    with pytest.raises(AlreadyExists, match="remove it or raise"):
        await rooms.pods.run(pod_request(other))
    await rooms.pods.remove(rooms.ledger.pods.find(one))


async def test_a_pods_life_leaves_nothing(rooms: Rooms) -> None:
    before = await rooms.contents()
    pod = await rooms.run_pod()
    assert rooms.agents.network.requests[pod.id].name == "web"
    await rooms.pods.stop(pod)
    assert pod.state == cri.PodSandboxState.SANDBOX_NOTREADY
    assert rooms.kernel.mounts == set()
    assert rooms.agents.network.attached == {}
    assert rooms.handler.held == {}
    for _ in range(2):
        await rooms.pods.remove(pod)
    assert await rooms.contents() == before


async def test_the_infra_process_outlives_the_containers_when_memory_is_short(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    process = Bundle(rooms.ledger.places.bundle(pod.id)).read()["process"]
    assert isinstance(process, dict)
    assert process["oomScoreAdj"] == max(-998, int(Path("/proc/self/oom_score_adj").read_text()))
