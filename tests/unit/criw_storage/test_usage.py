import asyncio
import os
import tracemalloc
from pathlib import Path

import pytest

from criw_storage.usage import Measured, Usage, measure


def test_blocks_and_inodes_are_counted_and_hard_links_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/file").write_bytes(bytes(100_000))
    (tree / "a/b/link").hardlink_to(tree / "a/file")
    (tree / "sparse").touch()
    os.truncate(tree / "sparse", 10**9)
    (tree / "out").symlink_to("/usr")
    os.sync()
    measured = measure(tree)
    counted = [tree, tree / "a", tree / "a/b", tree / "a/file", tree / "sparse", tree / "out"]
    assert measured.inodes == len(counted)
    assert measured.size_bytes == sum(path.lstat().st_blocks * 512 for path in counted)
    assert 100_000 <= measured.size_bytes < 1_000_000
    alone = measure(tree, files=False)
    assert (alone.inodes, alone.size_bytes) == (3, sum(path.lstat().st_blocks * 512 for path in counted[:3]))


def test_what_is_deeper_than_a_path_can_say_is_counted_too(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    file = os.open("hidden", os.O_WRONLY | os.O_CREAT, dir_fd=here)
    os.write(file, bytes(1_000_000))
    os.fsync(file)
    os.close(file)
    os.close(here)
    measured = measure(tmp_path)
    assert measured.inodes == 32
    assert measured.size_bytes > 1_000_000


def test_memory_does_not_grow_with_the_length_of_paths_and_the_number_of_links(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["n" * 250] * 14)
    deep.mkdir(parents=True)
    (deep / "file").touch()
    for number in range(2000):
        (deep / str(number)).mkdir()
        (deep / f"link{number}").hardlink_to(deep / "file")
    tracemalloc.start()
    try:
        assert measure(tmp_path).inodes == 1 + 14 + 2000 + 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2000 * 200, "more than a name each"


def test_a_tree_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        measure(tmp_path / "missing")


async def test_writable_layers_are_measured_again_and_again(tmp_path: Path) -> None:
    usage = Usage()
    for name, directory in {"here": tmp_path, "gone": tmp_path / "gone", "forgotten": tmp_path}.items():
        usage.watch(name, directory)
    usage.watch("measured", tmp_path / "gone", Measured(1, 2, 3))
    usage.forget("forgotten")
    usage.forget("never seen")
    task = asyncio.create_task(usage.keep_measuring(0.001))
    first = last = 0
    while not first or first == last:
        await asyncio.sleep(0.001)
        last = usage.rootfs["here"].timestamp_ns if "here" in usage.rootfs else 0
        first = first or last
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert usage.rootfs.keys() == {"here", "measured"}
    assert usage.rootfs["measured"] == Measured(1, 2, 3)
