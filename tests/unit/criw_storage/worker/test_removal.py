import errno
import os
import subprocess
from pathlib import Path

import pytest

from criw import kernel
from criw_storage.worker.removal import remove_tree


def test_a_tree_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/c").write_text("x")
    (root / "a/closed").mkdir(mode=0)
    (root / "link").symlink_to(tmp_path / "outside")
    if os.geteuid():
        (root / "a/closed").chmod(0o700)
    remove_tree(root)
    assert [found.name for found in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside/secret").read_text() == "secret"
    remove_tree(root)  # it is not there: no error
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "link")


def test_a_tree_deeper_than_paths_and_stacks_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(root)
    assert not root.exists()


@pytest.mark.root
@pytest.mark.parametrize("flag", ["+i", "+a"])
def test_what_is_immutable_or_append_only_is_removed_too(tmp_path: Path, flag: str) -> None:
    root = tmp_path / "root"
    for directory in (root / "marked/below", root / "holds"):
        directory.mkdir(parents=True)
        (directory / "file").write_text("x")
    (root / "holds/link").symlink_to("file")
    marked = [root / "holds/file", root / "holds", root / "marked/below/file", root / "marked", root]
    subprocess.run(["chattr", flag, *marked], check=True)
    try:
        remove_tree(root)
        assert not root.exists()
    finally:
        subprocess.run(["chattr", "-i", "-a", *(path for path in marked if path.exists())], check=root.exists())


@pytest.mark.root
def test_what_is_mounted_in_a_tree_is_left_alone(tmp_path: Path) -> None:
    mounted = tmp_path / "root/mounted"
    mounted.mkdir(parents=True)
    kernel.mount("tmpfs", mounted, fstype="tmpfs")
    try:
        (mounted / "file").write_text("x")
        with pytest.raises(OSError, match="mounted in it") as caught:
            remove_tree(tmp_path / "root")
        assert caught.value.errno == errno.EXDEV
        assert (mounted / "file").read_text() == "x"
    finally:
        kernel.umount2(mounted)
