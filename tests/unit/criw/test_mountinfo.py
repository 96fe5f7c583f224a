import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw import kernel
from criw.mountinfo import Mount, mount_of, mounts_below, parse

ODD_NAMES = [
    "plain",
    "with space",
    "tab\there",
    "line\nbreak",
    "back\\slash",
    "looks like \\040 an escape",
    "hash#and'quote\"",
    "ünï—cödé",
    "separator\u2028\x0b\x1c",
    os.fsdecode(b"not \xff utf-8"),
]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[list[Path]]:
    """Mount points below `tmp_path`, in the order they were made; gone afterwards."""
    points: list[Path] = []
    yield points
    for point in reversed(points):
        with kernel.suppress_errno(errno.EINVAL, errno.ENOENT):  # unmounted by the test
            kernel.umount2(point, flags=kernel.MNT_DETACH)


def mount_tmpfs(point: Path, mounted: list[Path]) -> None:
    point.mkdir(parents=True, exist_ok=True)
    kernel.mount("none", point, fstype="tmpfs", data="size=64k")
    mounted.append(point)


@pytest.mark.root
@pytest.mark.parametrize("name", ODD_NAMES)
def test_mounts_with_odd_names_are_found(name: str, tmp_path: Path, mounted: list[Path]) -> None:
    mount_tmpfs(tmp_path / name, mounted)
    mount_tmpfs(tmp_path / name / name, mounted)
    assert mounts_below(tmp_path) == [tmp_path / name / name, tmp_path / name]
    assert mounts_below(tmp_path / name) == [tmp_path / name / name, tmp_path / name]


@pytest.mark.root
def test_only_mounts_below_the_directory_are_found(tmp_path: Path, mounted: list[Path]) -> None:
    for name in ("pod", "pod2", "pod/a"):
        mount_tmpfs(tmp_path / name, mounted)
    assert mounts_below(tmp_path / "pod") == [tmp_path / "pod/a", tmp_path / "pod"]
    assert mounts_below(tmp_path / "nothing") == []
    assert set(mounted) < set(mounts_below(Path("/")))


@pytest.mark.root
def test_mounts_come_in_an_order_they_can_be_unmounted_in(tmp_path: Path, mounted: list[Path]) -> None:
    for name in ("a", "a/b", "a/b/c", "a"):  # the last on top of the first
        mount_tmpfs(tmp_path / name, mounted)
    for point in mounts_below(tmp_path):
        kernel.umount2(point)
    assert mounts_below(tmp_path) == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("flags", "shared", "slave"),
    [
        ([kernel.MS_PRIVATE], False, False),
        ([kernel.MS_SHARED], True, False),
        ([kernel.MS_SHARED, kernel.MS_SLAVE], False, True),
        ([kernel.MS_SHARED, kernel.MS_SLAVE, kernel.MS_SHARED], True, True),
    ],
)
def test_the_peer_groups_of_a_mount_are_told(
    flags: list[int], shared: bool, slave: bool, tmp_path: Path, mounted: list[Path]
) -> None:
    (tmp_path / "peer").mkdir()
    mount_tmpfs(tmp_path / "a", mounted)
    for flag in flags:
        kernel.mount("", tmp_path / "a", flags=flag)
        if not mounted[1:]:  # a slave without a master would be private
            kernel.mount(tmp_path / "a", tmp_path / "peer", flags=kernel.MS_BIND)
            mounted.append(tmp_path / "peer")
    (tmp_path / "a/below").mkdir()
    found = mount_of(tmp_path / "a/below")
    assert (found.point, found.fstype, found.shared, found.slave) == (str(tmp_path / "a"), "tmpfs", shared, slave)


@pytest.mark.root
def test_a_path_is_on_the_uppermost_mount_and_links_are_followed(tmp_path: Path, mounted: list[Path]) -> None:
    for name in ("a", "a/b", "a", "c"):  # the second a hides a/b
        mount_tmpfs(tmp_path / name, mounted)
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "c/link").symlink_to(tmp_path / "a/b/c")
    assert mount_of(tmp_path / "c/link").point == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        mount_of(tmp_path / "c/nothing")


def test_the_parts_of_a_line_are_told_apart() -> None:
    text = (
        rb"36 35 98:0 /mnt1 /mnt2\040\134x rw,noatime master:1 - ext3 /dev/root rw,errors=continue" + b"\n"
        rb"37 36 0:4 / /x rw shared:2 master:3 propagate_from:1 - cgroup  rw,cpu,cpuacct" + b"\n"  # without a source
        rb"38 36 0:5 / / rw - fuse.x a\040-\040b rw" + b"\n"
    )
    assert list(parse(text)) == [
        Mount(36, "/mnt2 \\x", shared=False, slave=True, fstype="ext3", options="rw,errors=continue"),
        Mount(37, "/x", shared=True, slave=True, fstype="cgroup", options="rw,cpu,cpuacct"),
        Mount(38, "/", shared=False, slave=False, fstype="fuse.x", options="rw"),
    ]


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_every_name_the_kernel_escapes_is_read_back(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)
    (mount,) = parse(b"1 1 0:1 / /" + escaped + b" rw - tmpfs none rw\n")
    assert os.fsencode(mount.point) == b"/" + name
