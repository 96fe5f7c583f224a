"""What a container's tar may say, and what comes of it: nothing outside of the target, whatever it is."""

import contextlib
import io
import os
import stat
import tarfile
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import DataLoss, Failed
from criw_ctl.archive import pack, unpack


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, mtime: float = 1e9
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, mtime
    return info


def archive(*members: tarfile.TarInfo, content: bytes = b"text") -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for each in members:
            if each.isreg():
                each.size = len(content)
            tar.addfile(each, io.BytesIO(content) if each.isreg() else None)
    file.seek(0)
    return file


class Place:
    """`inside` is the target; what is `outside` must stay as it is."""

    def __init__(self, directory: Path) -> None:
        self.inside, self.outside = directory / "inside", directory / "outside"
        self.inside.mkdir()
        self.outside.mkdir()
        (self.outside / "secret").write_text("secret")
        self.said: list[str] = []

    def unpack(self, *members: tarfile.TarInfo, top: tuple[str, str] | None = None) -> bool:
        return unpack(archive(*members), self.inside, top=top, complain=self.said.append)

    @property
    def untouched(self) -> bool:
        return [(path.name, path.read_text()) for path in self.outside.iterdir()] == [("secret", "secret")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside/x")],
        [member("a/../../outside/x")],
        [member("..", tarfile.DIRTYPE)],
        [member("x", tarfile.LNKTYPE, "../outside/secret")],
        [member("a", tarfile.DIRTYPE), member("a/x", tarfile.LNKTYPE, "a/../../outside/secret")],
        [member("")],
        [member("a", tarfile.LNKTYPE, "")],
    ],
)
def test_a_name_that_leads_out_is_refused(place: Place, members: Sequence[tarfile.TarInfo]) -> None:
    with pytest.raises(DataLoss, match="cannot unpack"):
        place.unpack(*members)
    assert place.untouched


def test_an_absolute_name_is_one_below_the_target(place: Place) -> None:
    assert place.unpack(member("/etc/passwd"))
    assert (place.inside / "etc/passwd").read_text() == "text"


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("x", "/etc"),
        ("x", "../outside"),
        ("a/b/x", "../../../outside"),
        ("a/x", "b/../../.."),  # b may be a link to where it is
        ("x", ".."),
        ("x", "./.."),
    ],
)
def test_a_link_that_leads_out_is_left_out_and_told(place: Place, name: str, link: str) -> None:
    assert not place.unpack(member(name, tarfile.SYMTYPE, link), member("y"))
    (line,) = place.said
    assert line.startswith(f"cannot copy {name!r}: it is a link to {link!r}")
    assert not os.path.lexists(place.inside / name)
    assert (place.inside / "y").read_text() == "text"


@pytest.mark.parametrize(("name", "link"), [("x", "y"), ("a/b/x", "../../y"), ("a/x", ".."), ("x", "a//b/./c")])
def test_a_link_that_stays_within_is_made(place: Place, name: str, link: str) -> None:
    assert place.unpack(member(name, tarfile.SYMTYPE, link))
    assert (place.inside / name).readlink() == Path(link)


def test_what_is_copied_is_all_a_link_may_lead_to(place: Place) -> None:
    assert not place.unpack(
        member("etc/x", tarfile.SYMTYPE, "../y"), member("etc/a/x", tarfile.SYMTYPE, "../x"), top=("etc", "copy")
    )
    assert sorted(path.name for path in (place.inside / "copy").rglob("*")) == ["a", "x"]
    assert (place.inside / "copy/a/x").readlink() == Path("../x")


@pytest.mark.parametrize("name", ["out/x", "out"])
def test_no_link_is_followed(place: Place, name: str) -> None:
    (place.inside / "out").symlink_to(place.outside)
    if name == "out":
        assert place.unpack(member(name))
        assert not (place.inside / "out").is_symlink()
    else:
        with pytest.raises(Failed, match="cannot write 'out/x'"):
            place.unpack(member(name))
    assert place.untouched


def test_a_file_is_replaced_and_not_written_through_a_link(place: Place) -> None:
    (place.inside / "secret").symlink_to(place.outside / "secret")
    os.link(place.outside / "secret", place.inside / "other")
    assert place.unpack(member("secret"), member("other"))
    assert place.untouched


def test_modes_and_times_are_kept_but_no_set_user_id(place: Place) -> None:
    assert place.unpack(
        member("d", tarfile.DIRTYPE, mode=0o500, mtime=1_000_000_001),
        member("d/f", mode=0o6751, mtime=1_000_000_002.5),
        member("tmp", tarfile.DIRTYPE, mode=0o1777),
    )
    found = [
        (stat.S_IMODE(each.stat().st_mode), each.stat().st_mtime) for each in (place.inside / "d", place.inside / "d/f")
    ]
    assert found == [(0o500, 1_000_000_001), (0o751, 1_000_000_002.5)]
    assert stat.S_IMODE((place.inside / "tmp").stat().st_mode) == 0o1777


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_device_is_left_out(place: Place, kind: bytes) -> None:
    assert not place.unpack(member("dev/x", kind))
    assert "neither a file, a directory nor a link" in place.said[0]
    assert not (place.inside / "dev/x").exists()


def test_a_hard_link_is_one(place: Place) -> None:
    assert place.unpack(member("top/a"), member("top/b/c", tarfile.LNKTYPE, "top/a"), top=("top", "new"))
    assert (place.inside / "new/a").samefile(place.inside / "new/b/c")


def test_a_link_is_not_moved_to_where_it_leads_out(place: Place) -> None:
    assert not place.unpack(member("a/b/x", tarfile.SYMTYPE, "../../y"), member("x", tarfile.LNKTYPE, "a/b/x"))
    assert not os.path.lexists(place.inside / "x")


def test_no_device_of_ours_is_replaced(place: Place) -> None:
    os.mkfifo(place.inside / "x")
    with pytest.raises(Failed, match=r"cannot write 'x': .*something else"):
        place.unpack(member("x"))


def test_another_name_than_asked_for_is_refused(place: Place) -> None:
    with pytest.raises(DataLoss, match="not below what was asked for"):
        place.unpack(member("passwd"), top=("etc", "etc"))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_cannot_take_all_memory(place: Place, kind: bytes) -> None:
    info = member("x", kind)
    info.size = 1 << 40
    with pytest.raises(DataLoss, match="cannot read what tar in the container writes"):
        unpack(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT)), place.inside, top=None, complain=place.said.append)


def test_a_sparse_file_is_refused(place: Place) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = member("x")
        info.pax_headers = {"GNU.sparse.size": str(1 << 50), "GNU.sparse.numblocks": "0"}
        tar.addfile(info)
    file.seek(0)
    with pytest.raises(DataLoss, match="sparse"):
        unpack(file, place.inside, top=None, complain=place.said.append)


@pytest.mark.parametrize("text", [b"", b"x", b"x" * 5000, b"\x1f\x8b" + b"x" * 5000])
def test_what_is_no_archive_is_told(place: Place, text: bytes) -> None:
    with pytest.raises(DataLoss, match="cannot read what tar in the container writes"):
        unpack(io.BytesIO(text), place.inside, top=None, complain=place.said.append)


def test_a_cut_off_file_is_told(place: Place) -> None:
    whole = archive(member("x"), content=b"y" * 5000).getvalue()
    with pytest.raises(DataLoss, match="unexpected end of data"):
        unpack(io.BytesIO(whole[:3000]), place.inside, top=None, complain=place.said.append)


names = st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), max_size=5).map("/".join)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])


@given(st.lists(st.builds(member, names, kinds, names), max_size=8))
def test_no_archive_reaches_outside(tmp_path_factory: pytest.TempPathFactory, members: list[tarfile.TarInfo]) -> None:
    place = Place(tmp_path_factory.mktemp("place"))
    with contextlib.suppress(DataLoss, Failed):
        place.unpack(*members)
    assert place.untouched
    assert {path.name for path in place.inside.parent.iterdir()} == {"inside", "outside"}
    for path in place.inside.rglob("*"):
        if path.is_symlink():
            try:
                resolved = path.resolve(strict=True)
            except (OSError, RuntimeError):  # it leads nowhere
                continue
            assert resolved.is_relative_to(place.inside)


def test_a_tree_survives_the_journey(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    deep = tree / ("long" * 40) / ("name" * 40)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(os.urandom(300_000))
    (deep / "f").chmod(0o640)
    os.utime(deep / "f", (1, 1_234_567_890))
    (tree / "empty").mkdir(mode=0o711)
    (tree / "link").symlink_to("empty")
    os.link(deep / "f", tree / "g")
    file = io.BytesIO()
    assert pack(file, tree, "tree", place.said.append)
    file.seek(0)
    assert unpack(file, place.inside, top=("tree", "copy"), complain=place.said.append)
    copied = place.inside / "copy"
    assert described(copied) == described(tree)
    assert (copied / "g").samefile(copied / deep.relative_to(tree) / "f")


def described(tree: Path) -> dict[str, tuple[int, int, object]]:
    return {
        os.fspath(path.relative_to(tree)): (
            path.lstat().st_mode,
            int(path.lstat().st_mtime),
            path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in [tree, *tree.rglob("*")]
    }


def test_owners_stay_at_home_and_sockets_are_left_out(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "fifo")
    (tree / "f").write_text("text")
    file = io.BytesIO()
    assert not pack(file, tree, "tree", place.said.append)
    assert "fifo" in place.said[0]
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        assert [(each.name, each.uid, each.gid, each.uname) for each in tar] == [
            ("tree", 0, 0, ""),
            ("tree/f", 0, 0, ""),
            ("tree", 0, 0, ""),
        ]


def test_a_large_file_takes_no_memory(place: Place, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as large:
        large.truncate(300_000_000)
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            pack(file, tmp_path / "large", "large", place.said.append)

    thread = threading.Thread(target=write)
    tracemalloc.start()
    try:
        thread.start()
        with os.fdopen(reading, "rb") as file:
            assert unpack(file, place.inside, top=("large", "copy"), complain=place.said.append)
        thread.join()
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert (place.inside / "copy").stat().st_size == 300_000_000
