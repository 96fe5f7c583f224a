"""CreateContainer when each of its steps fails once, in turn: nothing is left, and the same request works then."""

import asyncio
import errno
from collections.abc import Callable

import pytest

from criw.errors import Failed, FailedPrecondition, Fault, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from criw.store import Store
from criw_supervisor.containers import create
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.oci import document
from criw_supervisor.runtimes.bundle import Bundle
from support.rooms import Rooms, container_request, pod_request

INJECTED = "injected"
Break = Callable[[Rooms, pytest.MonkeyPatch], None]


def disk(call: int) -> Break:
    def broken(rooms: Rooms, patch: pytest.MonkeyPatch) -> None:
        real, calls = Store.commit, 0

        async def commit(store: Store, **records: object) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                raise ResourceExhausted(INJECTED)
            await real(store, **records)  # type: ignore[arg-type]  # as they came

        patch.setattr(Store, "commit", commit)

    return broken


def specification(rooms: Rooms, patch: pytest.MonkeyPatch) -> None:
    real, broken = document.build, [InvalidArgument(INJECTED)]

    def build(*arguments: object, **named: object) -> object:
        if broken:
            raise broken.pop()
        return real(*arguments, **named)  # type: ignore[arg-type]  # as they came

    patch.setattr(create, "build", build)


STEPS: dict[str, Break] = {
    "the intent is written": disk(1),
    "the image is asked for": lambda rooms, _: rooms.agents.images.fail.update(inspect=NotFound(INJECTED)),
    "the root filesystem is asked for": lambda rooms, _: rooms.agents.storage.fail.update(
        create_rootfs=ResourceExhausted(INJECTED)
    ),
    "the root filesystem is answered": lambda rooms, _: rooms.agents.storage.fail.update(
        created_rootfs=Failed(INJECTED)
    ),
    "the configuration is built": specification,
    "the task is created": lambda rooms, _: rooms.handler.fail.update(create=Failed(INJECTED)),
    "the task's bundle is written": lambda rooms, _: rooms.handler.fail.update(create=OSError(errno.EIO, INJECTED)),
    "the record is written": disk(2),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails_leaves_nothing_and_the_same_request_works_then(
    rooms: Rooms, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = await rooms.run_pod()
    before = await rooms.contents()
    STEPS[step](rooms, monkeypatch)
    with pytest.raises((Fault, OSError), match=INJECTED):
        await rooms.containers.create(pod, container_request(pod))
    assert await rooms.contents() == before
    container = rooms.ledger.containers.find(await rooms.containers.create(pod, container_request(pod)))
    assert container.record.state is ContainerState.CREATED
    await rooms.containers.remove(container)
    assert await rooms.contents() == before


async def test_a_root_filesystem_that_cannot_be_given_back_at_once_is_no_reason_to_fail(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    compared = asyncio.Event()
    rooms.ledger.listen(compared.set)
    rooms.handler.fail["create"] = Failed(INJECTED)
    rooms.agents.storage.fail["remove_rootfs"] = FailedPrecondition("busy")
    with pytest.raises(Failed, match=INJECTED):
        await rooms.containers.create(pod, container_request(pod))
    assert rooms.ledger.unfinished == {}
    assert compared.is_set()  # Reconcile listens, and removes what nobody knows


async def test_what_cannot_be_undone_at_once_is_kept_and_undone_later(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    before = await rooms.contents()
    rooms.handler.fail = {"create": Failed(INJECTED), "delete": Unavailable("stuck in I/O")}
    with pytest.raises(Failed, match=INJECTED):
        await rooms.containers.create(pod, container_request(pod))
    assert len(rooms.ledger.abandoned()) == 1
    await rooms.unfinished.undo_all()
    assert await rooms.contents() == before


async def test_a_containers_hostname_is_the_pods_whatever_its_files_say(rooms: Rooms) -> None:
    pod = rooms.ledger.pods.find(await rooms.pods.run(pod_request(lambda config: setattr(config, "hostname", "web-0"))))
    with pod.files.etc("hostname").open("wb") as file:  # containers may write it
        file.truncate(2**40)
    container_id = await rooms.containers.create(pod, container_request(pod))
    process = Bundle(rooms.ledger.places.bundle(container_id)).read()["process"]
    assert isinstance(process, dict)
    assert "HOSTNAME=web-0" in process["env"]
