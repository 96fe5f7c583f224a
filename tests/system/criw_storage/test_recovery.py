"""What a start finds: after a stop, a kill, a reboot, and among things nobody knows."""

import asyncio
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw import kernel
from criw.errors import Failed
from criw.ids import new_id
from criw.mountinfo import mounts_below
from criw_storage import overlay
from support.images import directory, file, layer
from support.storage import Storage, running_storage, until

IMAGE = "sha256:" + "0" * 64
BIG = layer(*(file(f"{number}/file", b"x" * 3000) for number in range(4000)))


@pytest_asyncio.fixture
async def storage() -> AsyncIterator[Storage]:
    """An agent of the test's own, whose directories it may take away."""
    async with running_storage() as storage:
        yield storage
        assert storage.directories() == []


async def test_a_restart_keeps_images_mounts_and_what_was_written(storage: Storage) -> None:
    image_id = await storage.add(layer(directory("d", 0o700)), layer(file("d/file", "x")))
    rootfs = await storage.create(image_id)
    (rootfs / "written").write_text("kept")
    with (rootfs / "d/file").open() as opened:
        for end in (storage.crew.stop, storage.crew.kill):
            await end("storage")
            assert opened.read() == "x"  # a container goes on
            opened.seek(0)
            await storage.crew.start("storage")
            assert await storage.images() == {image_id}
            assert await storage.rootfs() == {rootfs.name}
            assert await storage.create(image_id, rootfs.name) == rootfs
            assert (rootfs / "written").read_text() == "kept"
    assert (await storage.usage()).images.inodes_used > 0  # type: ignore[union-attr]
    await storage.remove_all()


async def test_a_pull_that_was_not_committed_is_forgotten(storage: Storage) -> None:
    kept = layer(file("f", "kept"))
    image_id = await storage.add(kept)
    await storage.unpack(IMAGE, kept)
    await storage.unpack(IMAGE, layer(file("f", "forgotten")))
    await storage.crew.stop("storage")
    await storage.crew.start("storage")
    assert [Path(path).name for path in storage.directories()] == [kept.diff_id.removeprefix("sha256:")]
    await storage.remove_image(image_id)


async def test_after_a_reboot_what_was_written_is_mounted_again_or_removed(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")))
    one, other = await storage.create(image_id), await storage.create(image_id)
    (one / "written").write_text("kept")
    await storage.crew.stop("storage")
    for rootfs in (one, other):
        kernel.umount2(rootfs)
    shutil.rmtree(storage.crew.config.run)
    await storage.crew.start("storage")
    assert await storage.rootfs() == {one.name, other.name}
    assert mounts_below(storage.mounts) == []
    assert await storage.create(image_id, one.name) == one
    assert (one / "written").read_text() == "kept"
    await storage.remove(other)
    await storage.remove(one)
    await storage.remove_image(image_id)


async def test_what_no_record_knows_is_removed(storage: Storage) -> None:
    await storage.crew.stop("storage")
    run = storage.crew.config.run
    run.rename(run.with_name("real"))
    run.symlink_to("real")  # as /var/run is one
    await storage.crew.start("storage")
    image_id = await storage.add(layer(file("f", "x")))
    rootfs = await storage.create(image_id)
    await storage.crew.stop("storage")
    stray = storage.state / "rootfs" / new_id()
    for name in ("upper", "work"):
        (stray / name).mkdir(parents=True)
    target = storage.mounts / stray.name
    target.mkdir()
    overlay.mount(target, [storage.state / "empty"], upper=stray / "upper", work=stray / "work")
    (target / "inner").mkdir()
    kernel.mount(storage.blobs, target / "inner", flags=kernel.MS_BIND)
    (storage.mounts / "not mounted").mkdir()
    (storage.state / "layers" / ("f" * 64)).mkdir()
    (storage.state / "unfinished" / ("e" * 64) / "half").mkdir(parents=True)
    await storage.crew.start("storage")
    assert mounts_below(storage.mounts.resolve()) == [rootfs.resolve()]
    assert len(storage.directories()) == 3  # the layer, the writable layer, the mount
    assert list(storage.blobs.iterdir()), "the sweep went through a mount"
    await storage.remove_all()


async def test_a_start_does_not_depend_on_what_cannot_be_removed(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")))
    rootfs = await storage.create(image_id)
    half = await storage.create(image_id)
    await storage.crew.stop("storage")
    upper = storage.state / "rootfs" / half.name / "upper"
    (upper / "holds").mkdir()
    stuck = storage.state / "unfinished" / "stuck"
    for target in (upper / "holds", stuck):  # what is mounted in it is nothing to delete
        target.mkdir(exist_ok=True)
        kernel.mount("tmpfs", target, fstype="tmpfs")
    for stray in (storage.state / "layers" / "file", storage.state / "unfinished" / "file", storage.mounts / "file"):
        stray.touch()
    (storage.state / "rootfs" / "link").symlink_to("/etc")
    await storage.crew.start("storage")
    assert await storage.metric("criw_storage_leftovers") == 1
    await storage.remove(half)
    assert await storage.rootfs() == {rootfs.name}
    assert await storage.metric("criw_storage_leftovers") == 2
    for mounted in mounts_below(storage.state):
        kernel.umount2(mounted)
    await until(lambda: len(storage.directories()) == 3)  # the layer, the writable layer, the mount
    assert (rootfs / "f").read_text() == "x"
    await storage.remove_all()


async def test_immutable_files_of_a_container_go_with_it(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")))
    for ready in (True, False):
        rootfs = await storage.create(image_id)
        (rootfs / "d").mkdir()
        (rootfs / "d/file").touch()
        subprocess.run(["chattr", "+i", rootfs / "d/file", rootfs / "d", rootfs], check=True)
        if ready:
            await storage.remove(rootfs)
        else:
            await storage.crew.stop("storage")
            (storage.state / "rootfs" / rootfs.name).rename(storage.state / "unfinished/x")
            await storage.crew.start("storage")
        assert await storage.rootfs() == set()
        assert [Path(path).parent.name for path in storage.directories()] == ["layers"]
    await storage.remove_all()


async def test_a_volume_below_the_state_is_no_reason_to_remove_nothing(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")))
    await storage.crew.stop("storage")
    kernel.mount("tmpfs", storage.state / "rootfs", fstype="tmpfs")
    try:
        await storage.crew.start("storage")
        rootfs = await storage.create(image_id)
        await storage.remove(rootfs)
        assert [Path(path).parent.name for path in storage.directories()] == ["layers"]
        await storage.crew.stop("storage")
    finally:
        kernel.umount2(storage.state / "rootfs")
    await storage.crew.start("storage")
    await storage.remove_all()


async def test_an_image_that_lost_a_layer_is_forgotten(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")), layer(file("g", "x")))
    await storage.crew.stop("storage")
    shutil.rmtree(min((storage.state / "layers").iterdir()))
    await storage.crew.start("storage")
    assert await storage.images() == set()
    assert storage.directories() == []
    assert await storage.add(layer(file("f", "x")), layer(file("g", "x"))) == image_id
    await storage.remove_image(image_id)


async def unpacking_half_done(storage: Storage) -> asyncio.Task[int]:
    task = asyncio.create_task(storage.unpack(IMAGE, BIG))
    await until(lambda: len(list((storage.state / "unfinished").glob("*/*"))) > 10)
    assert storage.workers()
    return task


async def test_a_kill_during_an_unpacking_leaves_nothing(storage: Storage) -> None:
    unpacking = await unpacking_half_done(storage)
    await storage.crew.kill("storage")
    unpacking.cancel()
    assert storage.directories()
    await storage.crew.start("storage")
    assert storage.workers() == []
    assert storage.directories() == []


async def test_a_start_waits_for_a_worker_of_the_killed_agent(storage: Storage) -> None:
    await storage.crew.stop("storage")
    with (storage.state / "unpack.lock").open() as held:  # as such a worker holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        starting = asyncio.create_task(storage.crew.start("storage"))
        inode = os.fstat(held.fileno()).st_ino
        await until(lambda: re.search(f"-> FLOCK .*:{inode} ", Path("/proc/locks").read_text()) is not None)
        assert not starting.done()
    await starting


async def test_a_worker_nobody_waits_for_any_more_is_ended(storage: Storage) -> None:
    unpacking = await unpacking_half_done(storage)
    unpacking.cancel()
    await until(lambda: not storage.workers())
    await storage.remove_image(IMAGE)
    assert storage.directories() == []


async def test_a_client_whose_agent_is_killed_gets_its_layer_from_the_next(storage: Storage) -> None:
    unpacking = await unpacking_half_done(storage)
    await storage.crew.kill("storage")
    await storage.crew.start("storage")
    assert await unpacking > 4000 * 4096
    assert len(storage.directories()) == 1
    await storage.remove_image(IMAGE)


async def test_a_stop_that_cannot_wait_gives_the_unpacking_up() -> None:
    async with running_storage("drain_timeout_s = 0.01") as storage:
        unpacking = await unpacking_half_done(storage)
        await storage.crew.stop("storage")
        assert storage.workers() == []
        assert storage.directories() == []
        unpacking.cancel()


async def test_a_killed_worker_is_an_error_and_not_the_end(storage: Storage) -> None:
    unpacking = await unpacking_half_done(storage)
    os.kill(max(storage.workers()), signal.SIGKILL)
    with pytest.raises(Failed, match=f"{BIG.diff_id}: the worker was killed"):
        await unpacking
    assert storage.directories() == []
    await storage.unpack(IMAGE, BIG)
    await storage.remove_image(IMAGE)


class Client:
    """Makes and removes things until cancelled, and knows what was acknowledged."""

    def __init__(self, storage: Storage, image_id: str, seed: int) -> None:
        self.acknowledged: set[str] = set()
        self.uncertain: set[str] = set()
        self._storage = storage
        self._image_id = image_id
        self._random = random.Random(seed)

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            if self.acknowledged and self._random.random() < 0.5:
                rootfs_id = self.acknowledged.pop()
                self.uncertain.add(rootfs_id)
                await self._storage.remove(Path(rootfs_id))
            else:
                rootfs_id = new_id()
                self.uncertain.add(rootfs_id)
                await self._storage.create(self._image_id, rootfs_id)
                self.acknowledged.add(rootfs_id)
            self.uncertain.discard(rootfs_id)
            if number % 3 == 0:
                other = f"sha256:{self._random.getrandbits(200):064}"
                await self._storage.unpack(other, layer(file("f", other)))
                await self._storage.remove_image(other)


async def test_kills_at_any_moment_lose_nothing_acknowledged_and_leave_nothing_else(storage: Storage) -> None:
    image_id = await storage.add(layer(directory("d", 0o700)), layer(file("d/f", "x")))
    layers = len(list((storage.state / "layers").iterdir()))
    clients = [Client(storage, image_id, seed) for seed in range(3)]
    moments = random.Random(0)
    for _ in range(12):
        tasks = [asyncio.create_task(client.run()) for client in clients]
        await asyncio.sleep(moments.uniform(0.01, 0.15))  # not to wait for anything: the moment of the kill
        await storage.crew.kill("storage")
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
        await storage.crew.start("storage")
        listed = await storage.rootfs()
        acknowledged = set().union(*(client.acknowledged for client in clients))
        uncertain = set().union(*(client.uncertain for client in clients))
        assert acknowledged <= listed <= acknowledged | uncertain
        assert {point.name for point in mounts_below(storage.mounts)} == listed
        assert len(list((storage.state / "layers").iterdir())) == layers
        assert len(storage.directories()) == layers + 2 * len(listed)
        for client in clients:
            client.acknowledged |= listed & client.uncertain
            client.uncertain.clear()
    await storage.remove_all()
