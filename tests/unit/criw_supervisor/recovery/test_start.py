"""A supervisor starts whatever it finds; what it cannot put in order at once it tells, and does later."""

import errno
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from criw.errors import Failed, Unavailable
from criw.ids import new_id
from criw.store import Store
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.states import ContainerState
from support.fake_handler import FakeHandler
from support.rooms import PARENT, Rooms, container_request, pod_request

EIO = OSError(errno.EIO, "injected")


async def run_container(rooms: Rooms) -> Container:
    pod = await rooms.run_pod()
    container = rooms.ledger.containers.find(await rooms.containers.create(pod, container_request(pod)))
    await rooms.containers.start(container)
    return container


async def recovered(rooms: Rooms) -> None:
    """Nothing is left to do, and the supervisor is as good as new."""
    assert rooms.unfinished.failed == {}
    assert rooms.ledger.unfinished == {}
    assert (await rooms.run_pod()).ready


@pytest.mark.parametrize("place", ["pods", "containers"])
async def test_a_stray_file_among_our_directories_is_removed(rooms: Rooms, place: str) -> None:
    stray = rooms.ledger.places.run / place / secrets.token_hex(32)
    stray.parent.mkdir(parents=True)
    stray.write_text("not a directory")
    await rooms.restart()
    assert not stray.exists()
    await recovered(rooms)


def every_rmtree(patch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise EIO

    patch.setattr(shutil, "rmtree", fail)


def every_cgroup(patch: pytest.MonkeyPatch) -> None:
    def fail(cgroups: Cgroups, cgroup: str) -> None:
        raise NotADirectoryError(errno.ENOTDIR, "injected")

    patch.setattr(Cgroups, "kill", fail)


@pytest.mark.parametrize("broken", [every_rmtree, every_cgroup])
async def test_what_cannot_be_swept_keeps_nobody_from_starting_and_is_swept_later(
    rooms: Rooms, broken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    stray = new_id()
    bundle, cgroup = rooms.ledger.places.bundle(stray), rooms.cgroups.directories(f"{PARENT}/{stray}")[0]
    for directory in (bundle, cgroup):
        directory.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        broken(patch)
        await rooms.restart()
        assert [stray in what for what in rooms.unfinished.failed] == [True]
        assert rooms.unfinished.failures == 1
        assert (await rooms.run_pod()).ready
    await rooms.restart()
    assert not bundle.exists()
    assert not cgroup.exists()
    await recovered(rooms)


@pytest.mark.parametrize("fault", [EIO, TimeoutError(), Unavailable("stuck"), ValueError("a mistake of ours")])
async def test_an_undo_that_fails_keeps_nobody_from_starting(rooms: Rooms, fault: Exception) -> None:
    rooms.handler.fail = {"create": Failed("injected"), "delete": Unavailable("stuck")}
    with pytest.raises(Failed):
        await rooms.pods.run(pod_request())
    rooms.handler.fail = {"delete": fault}
    await rooms.restart()
    assert len(rooms.unfinished.failed) == 1
    await rooms.unfinished.undo_all()
    await recovered(rooms)


@pytest.mark.parametrize("method", ["end_of", "recover"])
async def test_a_container_nobody_can_tell_about_keeps_nobody_from_starting(
    rooms: Rooms, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = await rooms.run_pod()
    await rooms.containers.create(pod, container_request(pod))

    async def fail(self: FakeHandler, task: object) -> None:
        raise EIO

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeHandler, method, fail)
        await rooms.restart()
        assert any("catch up with container" in what for what in rooms.unfinished.failed)


async def test_a_pod_that_has_lost_its_files_is_not_ready(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    shutil.rmtree(rooms.ledger.places.pod(pod.id).directory)
    await rooms.restart()
    assert not rooms.ledger.pods.find(pod.id).ready


async def test_what_was_started_without_an_answer_is_running(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = await rooms.run_pod()
    container_id = await rooms.containers.create(pod, container_request(pod))
    rooms.handler.held[container_id].started = True
    await rooms.restart()
    assert rooms.ledger.containers.find(container_id).record.state is ContainerState.RUNNING


async def test_a_start_that_fails_because_the_container_runs_does_not_kill_it(rooms: Rooms) -> None:
    pod = await rooms.run_pod()
    container = rooms.ledger.containers.find(await rooms.containers.create(pod, container_request(pod)))
    rooms.handler.fail["start"] = Failed("cannot start an already running container")  # it runs all the same
    await rooms.containers.start(container)
    assert container.record.state is ContainerState.RUNNING
    assert rooms.handler.held[container.id].end is None


async def test_what_the_disk_did_not_take_before_a_restart_is_learned_again(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = await run_container(rooms)

    async def full(self: Store, **changes: object) -> None:
        raise Unavailable("the disk fails")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "commit", full)
        await rooms.containers.stop(container, grace_s=0)
    await rooms.restart()
    record = rooms.ledger.containers.find(container.id).record
    assert (record.state, record.exit_code) == (ContainerState.EXITED, 137)
