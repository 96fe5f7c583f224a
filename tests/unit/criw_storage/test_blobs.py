"""What the image agent, taken over, might put into its blob directory to have it read by storage."""

import fcntl
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from criw import kernel
from criw.errors import InvalidArgument, NotFound
from criw_storage.blobs import Blobs

OWNER: Final = 64999  # nobody's number
SECRET: Final = "root:x:0:0"

pytestmark = pytest.mark.root  # files of other users are made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The image agent's blob directory, its blob `pull/0`, and a file of root's beside it, `secret`."""
    directory = tmp_path / "image/blobs"
    (directory / "pull").mkdir(parents=True)
    (directory / "pull/0").write_text("a blob")
    for path in (tmp_path / "image", directory, directory / "pull", directory / "pull/0"):
        os.chown(path, OWNER, OWNER)
        path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "image/image.db").write_text("the agent's own, but no blob")
    os.chown(tmp_path / "image/image.db", OWNER, OWNER)
    return directory


def read(directory: Path, name: str) -> str:
    with Blobs(directory, owner=OWNER).opened(name) as blob:
        return os.read(blob, 100).decode()


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_blob_is_opened_to_be_read_only_and_closed_again(directory: Path) -> None:
    before = descriptors()
    with Blobs(directory, owner=OWNER).opened("pull/0") as blob:
        assert os.read(blob, 100) == b"a blob"
        assert fcntl.fcntl(blob, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(blob)
        assert len(descriptors()) == len(before) + 1
    assert descriptors() == before


@pytest.mark.parametrize("name", ["pull/1", "pushed/0", "pull/0/0"])
def test_a_blob_that_is_not_there_is_not_found(directory: Path, name: str) -> None:
    before = descriptors()
    with pytest.raises(NotFound, match=f"cannot read blob '{name}'"):
        read(directory, name)
    assert descriptors() == before


def test_an_agent_that_never_ran_has_no_blobs(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read(tmp_path / "image/blobs", "pull/0")


def link_to_a_file(path: Path) -> None:
    path.symlink_to(path.parents[2] / "secret")


def link_to_a_blob(path: Path) -> None:
    path.symlink_to("pull/0")


def magic_link(path: Path) -> None:
    path.symlink_to(f"/proc/{os.getpid()}/exe")


def hard_link_to_a_file_of_root(path: Path) -> None:
    path.hardlink_to(path.parents[2] / "secret")


def file_of_root(path: Path) -> None:
    path.write_text(SECRET)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def block_device(path: Path) -> None:
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(1, 0))


def listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(path))


def subdirectory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make",
    [
        link_to_a_file,
        link_to_a_blob,
        magic_link,
        hard_link_to_a_file_of_root,
        file_of_root,
        fifo,
        device,
        block_device,
        listening_socket,
        subdirectory,
    ],
)
def test_only_a_file_of_the_agent_s_own_is_a_blob(directory: Path, make: Callable[[Path], None]) -> None:
    before = descriptors()
    make(directory / "made")
    if make is not hard_link_to_a_file_of_root and make is not file_of_root:
        os.chown(directory / "made", OWNER, OWNER, follow_symlinks=False)
    with pytest.raises(InvalidArgument, match="cannot read blob 'made'") as caught:
        read(directory, "made")
    assert SECRET not in str(caught.value)
    assert descriptors() == before


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "/",
        "..",
        "../image.db",
        "pull/../../image.db",
        "../../secret",
        "{directory}/pull/0",
        "pull/0\0",
        "pull/0\0.gz",
        "n" * 256,
        "pull/" * 1000 + "0",
    ],
)
def test_no_name_leads_out_of_the_directory(directory: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot read blob") as caught:
        read(directory, name.format(directory=directory))
    assert len(str(caught.value)) < 1000


def test_a_link_on_the_way_is_not_followed(directory: Path) -> None:
    (directory / "way").symlink_to("pull")
    with pytest.raises(InvalidArgument):
        read(directory, "way/0")


def test_a_mount_on_the_way_is_not_entered(directory: Path) -> None:
    kernel.mount("/proc", directory / "pull", flags=kernel.MS_BIND)
    try:
        with pytest.raises(InvalidArgument):
            read(directory, "pull/uptime")
    finally:
        kernel.umount2(directory / "pull")


def test_the_directory_itself_may_not_have_become_a_link(directory: Path) -> None:
    elsewhere = directory.parent / "elsewhere"
    shutil.move(directory, elsewhere)
    directory.symlink_to(elsewhere)
    with pytest.raises(InvalidArgument):
        read(directory, "pull/0")


def test_a_lease_on_a_blob_does_not_make_others_wait(directory: Path) -> None:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the holder is told that somebody waits
    try:
        with (directory / "pull/0").open("r+b") as leased:
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with pytest.raises(InvalidArgument):
                read(directory, "pull/0")
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        signal.signal(signal.SIGIO, before)
    assert read(directory, "pull/0") == "a blob"
