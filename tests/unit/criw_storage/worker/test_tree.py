import contextlib
import errno
import os
import resource
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw_storage.worker.program import unpack
from criw_storage.worker.removal import remove_tree
from criw_storage.worker.stream import Refused, Stream
from criw_storage.worker.tree import Tree
from support.images import Entry, directory, file, hard_link, opaque, symlink, tar_of, whiteout

pytestmark = pytest.mark.root  # everything is given its owner

SECRET = "not of this layer\n"
CASES = Path(__file__).with_name("cases")


@pytest.fixture(autouse=True)
def as_in_the_worker() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The directory of a layer; beside it is one that no layer may reach."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text(SECRET)
    (tmp_path / "root").mkdir()
    yield tmp_path / "root"
    remove_tree(tmp_path / "root")  # pytest cannot, if it is deep


class Made(NamedTuple):
    """What is reported of a layer: paths by what is said of them, and names of attributes."""

    implied: set[bytes]
    opaque: set[bytes]
    whited: set[bytes]
    ignored: set[bytes]


def apply(root: Path, *entries: Entry, max_inodes: int = 1000) -> Made:
    return apply_tar(root, tar_of(entries), max_inodes=max_inodes)


def apply_tar(root: Path, archive: bytes, *, max_inodes: int = 1000) -> Made:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    tree = Tree(descriptor, max_inodes=max_inodes)
    try:
        unpack(Stream(iter([archive]), limit=2**30), tree)
    finally:
        tree.close()
        os.close(descriptor)
    assert not list(root.parent.glob("[!ro]*")), "something was made beside the root"
    assert (root.parent / "outside/secret").read_text() == SECRET
    assert names(root.parent / "outside") == ["secret"]
    made = list(tree.top.all())
    return Made(
        {path for path, found in made if found.implied},
        {path for path, found in made if found.opaque},
        {path for path, found in made if found.whited},
        tree.ignored,
    )


def names(path: Path) -> list[str]:
    return [found.name for found in path.iterdir()]


def contents(root: Path) -> set[str]:
    return {os.fspath(path.relative_to(root)) for path in root.rglob("*")}


# What entries make


def test_files_directories_and_links(root: Path) -> None:
    tree = apply(
        root,
        directory("."),
        directory("usr/", 0o2755),
        file("usr/program", b"\x7fELF" * 5000, 0o755),
        file("./usr/empty", b"", 0o600),
        hard_link("usr/same", "usr/program"),
        symlink("usr/dangling", "../../../nowhere"),
        Entry("usr/fifo", tarfile.FIFOTYPE, 0o622),
    )
    assert contents(root) == {"usr"} | {f"usr/{name}" for name in ("program", "empty", "same", "dangling", "fifo")}
    assert (root / "usr/program").read_bytes() == b"\x7fELF" * 5000
    assert (root / "usr/program").stat().st_ino == (root / "usr/same").stat().st_ino
    assert (root / "usr/dangling").readlink() == Path("../../../nowhere")
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in (root / "usr").iterdir()}
    assert modes == {"program": 0o755, "same": 0o755, "empty": 0o600, "dangling": 0o777, "fifo": 0o622}
    assert stat.S_IMODE((root / "usr").stat().st_mode) == 0o2755
    assert {path.lstat().st_mtime for path in root.rglob("*")} == {0}  # directories, too
    assert root.stat().st_mtime == 0
    assert tree == Made(set(), set(), set(), set())


def test_a_name_that_is_not_listed_is_reported(root: Path) -> None:
    tree = apply(root, file("a/b/c/file", "x"), directory("a/b"), file("/absolute", "x"))
    assert tree.implied == {b"", b"a", b"a/b/c"}
    assert (root / "absolute").is_file()


def test_owners_and_set_id_bits(root: Path) -> None:
    apply(
        root,
        directory("d", 0o2770, uid=5, gid=6),
        file("d/program", "x", 0o6755, uid=1000, gid=2_000_000_000),
        Entry("d/link", tarfile.SYMTYPE, target="x", uid=7, gid=8),
        file("d/roots", "x"),
    )
    found = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in root.rglob("*")}
    assert found == {"d": (5, 6), "program": (1000, 2_000_000_000), "link": (7, 8), "roots": (0, 0)}
    assert stat.S_IMODE((root / "d/program").stat().st_mode) == 0o6755
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o2770


UNPACK = """
import os, sys
from criw_storage.worker.program import unpack
from criw_storage.worker.stream import Stream
from criw_storage.worker.tree import Tree

assert os.geteuid() == os.getegid() == 64999
os.umask(0)
tree = Tree(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY), max_inodes=1000)
unpack(Stream(iter([sys.stdin.buffer.read()]), limit=2**30), tree)
"""


def test_owners_are_the_archive_s_whoever_unpacks_it(root: Path) -> None:
    capabilities = ",".join(f"+{name}" for name in ("chown", "dac_override", "fowner", "fsetid", "mknod", "setfcap"))
    user = ["--reuid", "64999", "--regid", "64999", "--clear-groups", "--inh-caps", capabilities]
    argv = ["setpriv", *user, "--ambient-caps", capabilities, sys.executable, "-c", UNPACK, os.fspath(root)]
    entries = [
        file("implied/file", "x", 0o4755),
        directory("of-another", 0o700, uid=1000, gid=1001),
        file("of-another/of-root", "x", 0o600),
        file("of-the-unpacking-one", "x", uid=64999, gid=64999),
        symlink("of-another/link", "x"),
        Entry("of-another/fifo", tarfile.FIFOTYPE, 0o640),
    ]
    root.parent.chmod(0o755)
    python_path = os.pathsep.join(path for path in sys.path if path)
    subprocess.run(argv, check=True, input=tar_of(entries), env={"PYTHONPATH": python_path})
    made = {os.fspath(path.relative_to(root)): path.lstat() for path in root.rglob("*")}
    found = {name: (status.st_uid, status.st_gid) for name, status in made.items()}
    assert found.pop("of-another") == (1000, 1001)
    assert found.pop("of-the-unpacking-one") == (64999, 64999)
    assert set(found) == {"implied", "implied/file", "of-another/of-root", "of-another/link", "of-another/fifo"}
    assert set(found.values()) == {(0, 0)}
    assert stat.S_IMODE(made["implied/file"].st_mode) == 0o4755


def test_extended_attributes(root: Path) -> None:
    tree = apply(
        root,
        Entry("d", tarfile.DIRTYPE, 0o755, xattrs={"user.of": "directory"}),
        Entry("d/f", data=b"x", xattrs={"user.of": "file", "security.selinux": "label", "trusted.own": "x"}),
    )
    assert os.getxattr(root / "d", "user.of") == b"directory"
    assert os.getxattr(root / "d/f", "user.of") == b"file"
    assert tree.ignored == {b"security.selinux", b"trusted.own"}
    with pytest.raises(Refused, match="overlayfs"):
        apply(root, Entry("e", tarfile.DIRTYPE, xattrs={"trusted.overlay.redirect": "/etc"}))


def test_a_later_entry_replaces_an_earlier_one(root: Path) -> None:
    tree = apply(
        root,
        directory("was-directory"),
        file("was-directory/in/it", "x"),
        opaque("was-directory/in"),
        file("was-directory", "now a file"),
        file("was-file", "x"),
        directory("was-file"),
        file("was-file/in", "it"),
        symlink("was-link", "was-file"),
        file("was-link/through", "x"),
        directory("was-link"),
        file("was-link/own", "x"),
        file("twice", "long before"),
        file("twice", "after"),
        file("parent", "x"),
        file("parent/child", "x"),
        directory("same"),
        file("same/kept", "x"),
        directory("same", 0o700),
    )
    assert contents(root) == {
        "was-directory", "was-file", "was-file/in", "was-file/through", "was-link", "was-link/own", "twice",
        "parent", "parent/child", "same", "same/kept",
    }  # fmt: skip
    assert (root / "twice").read_text() == "after"
    assert stat.S_IMODE((root / "same").stat().st_mode) == 0o700
    assert tree.implied == {b""}
    # What a directory replaces hid what lower layers have there; so it must not be merged with that.
    assert tree.opaque == {b"was-file", b"was-link", b"parent"}


def test_whiteouts(root: Path) -> None:
    tree = apply(
        root,
        directory("d"),
        whiteout("d/gone"),
        opaque("d/e"),
        file("d/.wh..wh.plnk", "of AUFS"),
        directory("kept"),
        whiteout("kept"),
        whiteout("renewed"),
        directory("renewed"),
        whiteout("implied-anew"),
        file("implied-anew/file", "x"),
        whiteout("file"),
        file("file", "x"),
        whiteout("file"),
    )
    gone = (root / "d/gone").stat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert contents(root) == {"d", "d/gone", "d/e", "kept", "renewed", "implied-anew", "implied-anew/file", "file"}
    assert tree.opaque == {b"d/e", b"kept", b"renewed", b"implied-anew"}
    assert tree.whited == {b"d", b""}
    assert tree.implied == {b"", b"d/e"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh.."])
def test_whiteouts_of_nothing_are_refused(root: Path, name: str) -> None:
    with pytest.raises(Refused, match="removes nothing"):
        apply(root, Entry(name))


def test_what_aufs_keeps_for_itself_is_no_content(root: Path) -> None:
    made = apply_tar(root, (CASES / "aufs-plnk.tar").read_bytes())
    assert contents(root) == {"seen"}
    assert made == Made({b""}, set(), set(), set())
    apply(
        root,
        file("d/.wh..wh.orph/f", "x"),
        directory("d/.wh..wh.aufs"),
        symlink(".wh..wh.plnk", "/etc"),
        file(".wh..wh.plnk/d/f", "x"),
        file(".wh..wh.plnk/.wh..wh.f", "x"),
        opaque(".wh..wh.plnk"),
    )
    assert contents(root) == {"seen"}


def test_a_hard_link_to_a_file_that_aufs_keeps_is_that_file(root: Path) -> None:
    made = apply(root, directory("."), file(".wh..wh.plnk/1.2", "both"), hard_link("a", "/.wh..wh.plnk/1.2"),
                 directory("d"), hard_link("d/b", ".wh..wh.plnk/1.2"))  # fmt: skip
    assert contents(root) == {"a", "d", "d/b"}
    assert (root / "a").read_text() == "both"
    assert (root / "a").samefile(root / "d/b")
    assert (root / "a").stat().st_nlink == 2
    assert made.implied == set()


@pytest.mark.parametrize(
    ("case", "made"),
    [
        ("no-padding", {"end": "x"}),
        ("trailing-bytes", {"end": "x"}),
        ("two-archives", {"first": "x"}),
        ("signed-checksum", {"caf\udce9": "1"}),
        ("dotdot-name", {"a": None, "bb": "x"}),
        ("dotdot-link", {"a": None, "t": "x", "u": "x"}),
    ],
)
def test_archives_as_other_programs_write_them(root: Path, case: str, made: dict[str, str | None]) -> None:
    apply_tar(root, (CASES / f"{case}.tar").read_bytes())
    assert {path.name: path.read_text() if path.is_file() else None for path in root.iterdir()} == made


def test_dots_in_names_are_taken_as_they_are_written(root: Path) -> None:
    apply(root, symlink("link", "far/away"), file("link/../beside", "x"), directory("a/b/../.."), file("d/./e/..", "x"))
    assert contents(root) == {"link", "beside", "d"}
    assert (root / "d").read_text() == "x"


# What entries must not reach


@pytest.mark.parametrize(
    "entry",
    [
        file("../outside/secret", "overwritten"),
        file("a/../../outside/secret", "overwritten"),
        file("..", "x"),
        directory("../outside", 0o777),
        symlink("d/../../outside/link", "x"),
        hard_link("stolen", "../outside/secret"),
        hard_link("stolen", "d/../../outside/secret"),
        hard_link("../outside/stolen", "f"),
        whiteout("../outside/secret"),
        opaque("../outside"),
    ],
    ids=lambda entry: entry.name,
)
def test_dots_lead_nowhere(root: Path, entry: Entry) -> None:
    with pytest.raises(Refused, match="leads out of the layer"):
        apply(root, directory("d"), file("f", "x"), entry)


@pytest.mark.parametrize("target", ["../outside", "{outside}", "../../../../../../..{outside}", "d/../../outside"])
def test_symbolic_links_are_followed_inside_the_root_only(root: Path, target: str) -> None:
    target = target.format(outside=root.parent / "outside")
    apply(root, directory("d"), symlink("link", target), file("link/secret", "inside"), file("link/deep/er", "inside"))
    inside = [path for path in root.rglob("secret") if not path.is_symlink()]
    assert [path.read_text() for path in inside] == ["inside"]


def test_links_among_parents_lead_where_they_would_in_a_container(root: Path) -> None:
    apply(
        root,
        directory("d"),
        symlink("d/absolute", "/one"),
        file("d/absolute/file", "x"),
        symlink("d/relative", "two"),
        file("d/relative/file", "x"),
        symlink("d/above", "../../three"),
        file("d/above/file", "x"),
        symlink("d/twice", "relative/../absolute/."),
        file("d/twice/again", "x"),
    )
    made = {"one", "one/file", "one/again", "d/two", "d/two/file", "three", "three/file"}
    assert contents(root) == made | {"d", "d/absolute", "d/relative", "d/above", "d/twice"}


def test_a_link_in_the_place_of_a_file_is_replaced_not_written_through(root: Path) -> None:
    outside = os.fspath(root.parent / "outside/secret")
    apply(
        root,
        symlink("link", outside),
        file("link", "mine"),
        symlink("other", outside),
        Entry("other", tarfile.FIFOTYPE),
    )
    assert not (root / "link").is_symlink()
    assert (root / "link").read_text() == "mine"


@pytest.mark.parametrize("target", ["{outside}/secret", "link/secret", "/etc/passwd", "missing", "d", "l", "/", ""])
def test_hard_links_are_to_files_of_the_layer_only(root: Path, target: str) -> None:
    outside = root.parent / "outside"
    with pytest.raises(Refused):
        apply(
            root,
            directory("d"),
            symlink("link", os.fspath(outside)),
            hard_link("stolen", target.format(outside=outside)),
        )


def test_a_hard_link_to_a_symbolic_link_is_one_to_the_link(root: Path) -> None:
    apply(root, symlink("link", os.fspath(root.parent / "outside/secret")), hard_link("same", "link"))
    assert (root / "same").is_symlink()
    assert (root / "same").lstat().st_nlink == 2


def test_circles_of_links_are_refused(root: Path) -> None:
    with pytest.raises(Refused, match="too many symbolic links"):
        apply(root, symlink("a", "b"), symlink("b", "a"), file("a/file", "x"))


def test_the_root_stays_a_directory(root: Path) -> None:
    for entry in (file("./", "x"), symlink(".", "/etc"), hard_link("/", "f")):
        with pytest.raises(Refused):
            apply(root, file("f", "x"), entry)


def test_too_many_inodes_are_a_full_disk(root: Path) -> None:
    with pytest.raises(OSError) as caught:
        apply(root, file("a/b/c/d", "x"), max_inodes=3)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("name", ["n" * 300, f"{'n' * 200}/" * 25 + "f"])
def test_names_the_kernel_does_not_take_are_refused(root: Path, name: str) -> None:
    with pytest.raises(Refused, match="cannot be made"):
        apply(root, file(name, "x"))


def test_more_directories_than_may_be_open(root: Path) -> None:
    apply(
        root,
        *(file(f"{number}/file", "x") for number in range(200)),
        *(file(f"{number}/b", "x") for number in range(200)),
    )
    assert len(contents(root)) == 600


def work(root: Path, archive: bytes) -> int:
    """Functions called for an archive, the interpreter's own among them; what it made is gone again."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        apply_tar(root, archive, max_inodes=10**6)
    finally:
        sys.setprofile(None)
    remove_tree(root)
    root.mkdir()
    return calls


def replaced(count: int) -> bytes:
    """Directories that are all known when each of them is replaced."""
    made = (directory(f"d{number}") for number in range(count))
    again = (file(f"d{number}", "") for number in range(count))
    return tar_of([*made, *again])


def deep(count: int) -> bytes:
    return tar_of([*(directory("/".join("d" * depth)) for depth in range(1, count)), file("d/" * count + "f", "x")])


def scattered(count: int) -> bytes:
    """More directories than may be open at once, each of them needed again and again."""
    return tar_of([file(f"{number % 500}/f{number}", "") for number in range(count)])


@pytest.mark.parametrize(
    ("archive", "count", "growth"),
    [(replaced, 100, 4), (scattered, 600, 4), (deep, 100, 16)],  # the last: all its names together
    ids=["replaced", "scattered", "deep"],
)
def test_work_grows_as_the_archive_does(root: Path, archive: Callable[[int], bytes], count: int, growth: int) -> None:
    small, large = archive(count), archive(4 * count)
    assert work(root, large) < 1.5 * growth * work(root, small)


@pytest.fixture
def few_files() -> Iterator[None]:
    """As many open files as the worker may have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_what_no_program_could_name_is_refused(root: Path) -> None:
    apply(root, file("d/" * 2047 + "f", "x"), max_inodes=3000)
    remove_tree(root / "d")
    with pytest.raises(Refused, match="cannot be made: File name too long"):
        apply(root, file("d/" * 2049 + "f", "x"), max_inodes=3000)


def test_links_that_lead_through_endless_directories_are_refused(root: Path) -> None:
    entries: list[Entry] = [file("d/" * 1000 + "f", "x"), symlink("a", "d/" * 800 + "../" * 800)]
    entries += [symlink(f"b{number}", "a/" * 39) for number in range(100)]
    entries += [file(f"b{number}/f", "x") for number in range(100)]
    with pytest.raises(Refused, match="through too many directories"):
        apply(root, *entries, max_inodes=3000)


NAMES = st.sampled_from(
    [
        "a",
        "b",
        "a/b",
        "b/a",
        "a/b/a",
        "./a",
        "/b",
        ".",
        "..",
        "a/..",
        "../outside/x",
        ".wh.a",
        "a/.wh.b",
        "b/.wh..wh..opq",
        "a/.wh..",
        ".wh..wh..opq",
    ]
)
TARGETS = st.sampled_from(["a", "b", "/a", "..", "../..", "../outside", "a/b", "/", "."])
ENTRIES = st.one_of(
    st.builds(file, NAMES, st.binary(max_size=5), st.integers(0, 0o7777)),
    st.builds(directory, NAMES, st.integers(0, 0o7777)),
    st.builds(symlink, NAMES, TARGETS),
    st.builds(hard_link, NAMES, TARGETS),
    st.builds(Entry, NAMES, st.just(tarfile.FIFOTYPE)),
)


@given(st.lists(ENTRIES, max_size=12))
def test_any_entries_stay_inside_and_what_is_reported_is_there(entries: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "outside").mkdir()
        (Path(name) / "outside/secret").write_text(SECRET)
        root = Path(name) / "root"
        root.mkdir()
        with contextlib.suppress(Refused):
            tree = apply(root, *entries)
            for path in tree.implied | tree.opaque | tree.whited:
                walked = root
                for part in os.fsdecode(path).split("/") if path else ():
                    walked /= part
                    assert not walked.is_symlink()
                    assert walked.is_dir()
        remove_tree(root)
        assert names(Path(name)) == ["outside"]
