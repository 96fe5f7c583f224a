import asyncio
import os
from pathlib import Path

import pytest

from criw import kernel
from criw.errors import AlreadyExists, Failed, FailedPrecondition, InvalidArgument, NotFound
from criw.ids import new_id
from criw.mountinfo import mounts_below
from criw_storage import overlay
from support.images import directory, file, layer
from support.storage import Storage, running_storage, until

IMAGE = "sha256:" + "0" * 64


async def test_root_filesystems_do_not_see_each_other(storage: Storage) -> None:
    image_id = await storage.add(layer(directory("d"), file("d/file", "from the image")))
    one, other = await asyncio.gather(storage.create(image_id), storage.create(image_id))
    (one / "d/file").write_text("changed")
    (one / "new").touch()
    assert (other / "d/file").read_text() == "from the image"
    assert not (other / "new").exists()
    assert await storage.rootfs() == {one.name, other.name}
    assert os.statvfs(storage.mounts.parent).f_fsid != os.statvfs(one).f_fsid
    await storage.remove(one)
    assert await storage.rootfs() == {other.name}
    assert not one.exists()
    await storage.remove(other)
    await storage.remove_image(image_id)


async def test_creating_and_removing_again_is_the_same(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")))
    rootfs = await storage.create(image_id)
    (rootfs / "written").touch()
    assert {*await asyncio.gather(*(storage.create(image_id, rootfs.name) for _ in range(10)))} == {rootfs}
    assert (rootfs / "written").exists()
    assert [str(point) for point in mounts_below(storage.mounts)] == [str(rootfs)]
    await asyncio.gather(*(storage.remove(rootfs) for _ in range(10)))
    await storage.remove(rootfs)
    await storage.remove(Path("never seen"))
    await storage.remove_image(image_id)
    await storage.remove_image(image_id)


async def test_creating_and_removing_at_once_ends_in_one_of_both(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")))
    rootfs_id = new_id()
    for _ in range(10):
        await asyncio.gather(
            storage.create(image_id, rootfs_id), storage.remove(Path(rootfs_id)), storage.create(image_id, rootfs_id)
        )
        here = await storage.rootfs() == {rootfs_id}
        assert [point.name for point in mounts_below(storage.mounts)] == ([rootfs_id] if here else [])
    await storage.remove(Path(rootfs_id))
    await storage.remove_image(image_id)


async def test_bad_requests(storage: Storage) -> None:
    made = layer(file("f", "x"))
    image_id = await storage.add(made)
    other_id = await storage.add(made, layer(file("g", "x")))
    with pytest.raises(NotFound, match=IMAGE):
        await storage.create(IMAGE)
    for bad in ("x", "../../etc", "A" * 64):
        with pytest.raises(InvalidArgument, match="64 hex"):
            await storage.create(image_id, bad)
    rootfs = await storage.create(image_id)
    with pytest.raises(AlreadyExists, match=rootfs.name):
        await storage.create(other_id, rootfs.name)
    with pytest.raises(FailedPrecondition, match="not unpacked"):
        await storage.commit(IMAGE, [made, layer(file("h", "x"))])
    assert await storage.images() == {image_id, other_id}
    await storage.remove_all()


async def test_an_image_in_use_keeps_its_layers_until_the_last_root_filesystem_is_gone(storage: Storage) -> None:
    image_id = await storage.add(layer(file("f", "x")))
    rootfs = await storage.create(image_id)
    await storage.remove_image(image_id)
    assert (rootfs / "f").read_text() == "x"
    with pytest.raises(NotFound):
        await storage.create(image_id)
    await storage.remove(rootfs)
    assert storage.directories() == []


async def test_committing_again_and_pulls_that_were_given_up(storage: Storage) -> None:
    kept, dropped = layer(file("f", "kept")), layer(file("f", "dropped"))
    sizes = [await storage.unpack(IMAGE, made) for made in (kept, dropped)]
    assert await storage.images() == set()
    assert await storage.commit(IMAGE, [kept]) == sizes[0]  # what it does not name is not its own any more
    assert [Path(path).name for path in storage.directories()] == [kept.diff_id.removeprefix("sha256:")]
    assert await storage.commit(IMAGE, [kept]) == sizes[0]
    await storage.unpack("sha256:another", dropped)
    await storage.remove_image("sha256:another")  # never committed
    await storage.remove_image(IMAGE)


async def test_removing_an_image_while_it_is_unpacked(storage: Storage) -> None:
    big = layer(*(file(str(number), b"x" * 2000) for number in range(3000)))
    unpacking = asyncio.create_task(storage.unpack(IMAGE, big))
    await until(lambda: bool(storage.workers()))
    await storage.remove_image(IMAGE)
    assert storage.workers() == []
    with pytest.raises(Failed, match="given up"):
        await unpacking
    assert storage.directories() == []
    with pytest.raises(FailedPrecondition):
        await storage.commit(IMAGE, [big])


async def test_usage_tells_what_is_written_and_what_was_freed() -> None:
    async with running_storage("storage.usage_interval_s = 0.02") as storage:
        before = await storage.usage()
        assert (before.images.used_bytes, before.images.inodes_used, before.rootfs) == (0, 0, [])  # type: ignore[union-attr]
        image_id = await storage.add(layer(file("big", os.urandom(3_000_000))))
        filled = await storage.usage()
        assert filled.images is not None
        assert filled.mountpoint == os.fspath(storage.state)
        assert 3_000_000 < filled.images.used_bytes < 3_100_000
        assert filled.images.inodes_used == 2
        rootfs = await storage.create(image_id)
        (at_first,) = (await storage.usage()).rootfs
        assert (at_first.rootfs_id, at_first.writable.inodes_used) == (rootfs.name, 1)  # type: ignore[union-attr]
        (rootfs / "written").write_bytes(os.urandom(1_000_000))
        os.sync()
        measured = at_first.writable
        while measured.used_bytes < 1_000_000:  # type: ignore[union-attr]
            ((at_last),) = (await storage.usage()).rootfs
            measured = at_last.writable
        assert measured is not None
        assert measured.inodes_used == 2
        assert measured.timestamp_ns > at_first.writable.timestamp_ns  # type: ignore[union-attr]
        await storage.remove(rootfs)
        assert (await storage.usage()).rootfs == []
        free = os.statvfs(storage.state).f_bfree
        await storage.remove_image(image_id)
        after = await storage.usage()
        assert (after.images.used_bytes, after.images.inodes_used) == (0, 0)  # type: ignore[union-attr]
        assert after.images.timestamp_ns > filled.images.timestamp_ns  # type: ignore[union-attr]
        assert os.statvfs(storage.state).f_bfree > free


@pytest.mark.parametrize("by_options", [False, True])
@pytest.mark.parametrize("count", [1, 127])
def test_both_ways_to_mount(tmp_path: Path, by_options: bool, count: int) -> None:
    mount = overlay.mount_by_options if by_options else overlay.mount_by_descriptor
    strange = tmp_path / "a, b:c\\d"
    strange.mkdir()
    names = [f"{number:064}" for number in range(count)]
    for name in (*names, "upper", "work", "target"):
        (strange / name).mkdir()
    for name in names:
        (strange / name / name).write_text(name)
        (strange / name / "top").write_text(name)
    mount(
        strange / "target",
        [strange / name for name in names],
        upper=strange / "upper",
        work=strange / "work",
    )
    try:
        assert (strange / "target/top").read_text() == names[-1]
        assert len(list((strange / "target").iterdir())) == count + 1
        (strange / "target/new").touch()
        assert (strange / "upper/new").exists()
    finally:
        kernel.umount2(strange / "target")


def test_a_mount_that_cannot_be_says_why(tmp_path: Path) -> None:
    for name in ("upper", "work", "target"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError):
        overlay.mount(tmp_path / "target", [tmp_path / "missing"], upper=tmp_path / "upper", work=tmp_path / "work")
    assert mounts_below(tmp_path) == []
