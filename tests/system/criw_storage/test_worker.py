"""The worker's confinement, and what it does with bytes nobody would call a layer."""

import asyncio
import contextlib
import fcntl
import gzip
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criw import kernel
from criw.errors import DataLoss, InvalidArgument, ResourceExhausted
from criw_storage.unpack import unpack
from criw_storage.worker.removal import remove_tree
from support import images
from support.crew import Crew
from support.images import directory, file, layer, symlink, tar_of
from support.storage import Storage, layer_of, until

IMAGE = "sha256:" + "0" * 64
_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31  # CHOWN … SETFCAP: capabilities(7)


@pytest.fixture(scope="module")
def sparse_gigabyte() -> images.Layer:
    """A layer of a megabyte that unpacks to a gigabyte, which takes the worker a second."""
    info = tarfile.TarInfo("zeros")
    info.size = 1024**3
    return layer_of(info.tobuf() + bytes(info.size + 1024))


async def test_the_worker_has_a_world_of_its_own(storage: Storage, sparse_gigabyte: images.Layer) -> None:
    unpacking = asyncio.create_task(storage.unpack(IMAGE, sparse_gigabyte))
    unfinished = storage.state / "unfinished"
    await until(lambda: any(unfinished.glob("*/zeros")))
    (target,) = unfinished.iterdir()
    proc = Path(f"/proc/{max(storage.workers())}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    for kind in ("CapEff", "CapPrm"):
        assert int(status[kind], 16) == _CAPABILITIES
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["NSpid"].split()[-1] == "1"
    for namespace in ("mnt", "net", "ipc", "pid"):
        assert (proc / "ns" / namespace).readlink() != Path("/proc/self/ns", namespace).readlink()
    assert (proc / "root/.").samefile(target)
    (mounted,) = (proc / "mountinfo").read_text().splitlines()
    assert {"nosuid", "nodev", "noexec"} <= set(mounted.split()[5].split(","))
    limits = (proc / "limits").read_text()
    assert "Max address space         805306368" in limits
    assert "Max open files            128" in limits
    opened = [found for found in (proc / "fd").iterdir() if found.is_dir()]
    assert opened
    assert all(found.samefile(target) for found in opened)
    await unpacking
    await storage.remove_image(IMAGE)


@pytest_asyncio.fixture
async def crowded(tmp_path: Path) -> AsyncIterator[Storage]:
    """An agent whose state is on a file system of 20 MB and 2000 inodes."""
    crew = Crew()
    state = crew.config.state_dir("storage")
    state.mkdir(parents=True)
    kernel.mount("tmpfs", state, fstype="tmpfs", data="size=20m,nr_inodes=2000")
    try:
        await crew.start("storage")
        storage = Storage(crew)
        yield storage
        assert storage.directories() == []
    finally:
        await crew.close()
        kernel.umount2(state)
        remove_tree(crew.directory)


async def test_a_full_disk_is_told_and_left_as_it_was(crowded: Storage, sparse_gigabyte: images.Layer) -> None:
    fits = layer(file("f", os.urandom(1_000_000)))
    too_many = layer(*(file(str(number), "") for number in range(3000)))
    too_large = layer(file("f", os.urandom(30_000_000)))
    implied = layer(*(file(f"{number}/" + "d/" * 100 + "f", "") for number in range(30)))
    before = os.statvfs(crowded.state)
    for wanted in (sparse_gigabyte, too_many, too_large, implied):
        with pytest.raises(ResourceExhausted, match=f"cannot unpack layer {wanted.diff_id}: no space left"):
            await crowded.unpack(IMAGE, wanted)
        after = os.statvfs(crowded.state)
        assert crowded.directories() == []
        assert before.f_bfree - after.f_bfree < 100  # the database may have grown a little
        assert before.f_ffree - after.f_ffree < 5
    async with crowded.mounted(fits) as root:
        assert (root / "f").stat().st_size == 1_000_000
        with pytest.raises(OSError, match="No space left"):
            (root / "full").write_bytes(bytes(30_000_000))
    await crowded.remove_image(IMAGE)


async def test_a_part_of_the_disk_stays_free_whoever_unpacks_at_the_same_time(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    kernel.mount("tmpfs", disk, fstype="tmpfs", data="size=80m")
    lock = os.open(tmp_path, os.O_RDONLY)

    async def unpack_to(name: str) -> None:
        wanted = layer(*(file(str(number), bytes(1_000_000)) for number in range(60)))
        target, source = disk / name, os.memfd_create("blob")
        target.mkdir()
        try:
            os.pwrite(source, wanted.blob, 0)
            await unpack(source, target, wanted.diff_id.partition(":")[2], lock=lock)
        finally:
            os.close(source)

    try:
        outcomes = await asyncio.gather(unpack_to("one"), unpack_to("other"), return_exceptions=True)
        assert any(isinstance(outcome, ResourceExhausted) for outcome in outcomes)
        found = os.statvfs(disk)
        assert found.f_bavail >= found.f_blocks // 20 * 7 // 8  # each looks when a sixteenth of it is written
    finally:
        os.close(lock)
        kernel.umount2(disk)


async def test_a_full_disk_can_be_emptied(crowded: Storage) -> None:
    image_id = await crowded.add(layer(file("f", os.urandom(100_000))))
    rootfs = await crowded.create(image_id)
    with pytest.raises(OSError, match="No space left"):
        (rootfs / "full").write_bytes(bytes(30_000_000))
    with pytest.raises(ResourceExhausted):
        while True:
            await crowded.create(image_id)
    for rootfs_id in await crowded.rootfs():
        await crowded.remove(Path(rootfs_id))
    await crowded.remove_image(image_id)


async def unpacked_or_refused(directory: Path, blob: bytes) -> None:
    target = directory / "target"
    target.mkdir()
    source = os.memfd_create("blob")
    lock = os.open(directory, os.O_RDONLY)
    try:
        os.pwrite(source, blob, 0)  # read from where it stands
        with contextlib.suppress(InvalidArgument, DataLoss, ResourceExhausted):
            await unpack(source, target, "0" * 64, lock=lock)
    finally:
        os.close(source)
        os.close(lock)
    remove_tree(target)
    assert list(directory.iterdir()) == []


SAMPLE = tar_of(
    [directory("d", 0o700), file("d/" + "n" * 120, b"x" * 600), symlink("l", "/etc"), images.whiteout("d/w")]
)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    return st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=8)).map(
        lambda change: whole[: change[0]] + change[1] + whole[change[0] + len(change[1]) :]
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=1000),
        damaged(SAMPLE),
        damaged(gzip.compress(SAMPLE)),
        damaged(zstandard.compress(SAMPLE)),
        damaged(SAMPLE).map(gzip.compress),
    )
)
async def test_any_bytes_are_unpacked_or_refused(tmp_path: Path, blob: bytes) -> None:
    await unpacked_or_refused(tmp_path, blob)


NAMES = st.sampled_from(["a", "a/b", "a/b/c", "b", "l/x", "../x", "a/../b", "/etc/x", ".wh.a", "a/.wh..wh..opq",
                         ".wh..wh.plnk/1", "n" * 300, "d/" * 300 + "f", "."])  # fmt: skip
TARGETS = st.sampled_from(
    ["a", "/a/b", "..", "../../outside", "/", "l", "b", ".wh..wh.plnk/1", "a/../b", "/proc/self/root"]
)
ENTRIES = st.one_of(
    st.builds(file, NAMES, st.binary(max_size=600), st.integers(0, 0o7777)),
    st.builds(directory, NAMES, st.integers(0, 0o7777)),
    st.builds(symlink, NAMES, TARGETS),
    st.builds(images.hard_link, NAMES, TARGETS),
    st.builds(images.Entry, NAMES, st.sampled_from([tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])),
)
FUZZED = int(os.environ.get("CRIW_FUZZED_LAYERS", "80"))  # more by hand


@settings(max_examples=FUZZED, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ENTRIES, max_size=30).map(tar_of), st.data())
async def test_any_archive_is_unpacked_or_refused_and_reaches_nothing_outside(
    tmp_path: Path, archive: bytes, data: st.DataObject
) -> None:
    """No other answer, as of a worker that broke, and not a byte beside the target."""
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "x").write_text("kept")
    inner = tmp_path / "inner"
    inner.mkdir(exist_ok=True)
    await unpacked_or_refused(inner, data.draw(st.one_of(st.just(archive), damaged(archive))))
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"x": "kept"}
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "inner"}


async def test_a_worker_dies_with_whoever_waits_for_it(tmp_path: Path, sparse_gigabyte: images.Layer) -> None:
    """When `unpack` is cancelled, nothing runs and nothing holds the lock as soon as it returns."""
    target = tmp_path / "target"
    target.mkdir()
    lock = os.open(tmp_path / "lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (tmp_path / "blob").write_bytes(sparse_gigabyte.blob)
    source = os.open(tmp_path / "blob", os.O_RDONLY)
    task = asyncio.create_task(unpack(source, target, "0" * 64, lock=lock))
    zeros = target / "zeros"
    await until(lambda: zeros.exists() and zeros.stat().st_size > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for descriptor in (source, lock):
        os.close(descriptor)
    again = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(again)
    assert zeros.stat().st_size < 1024**3
