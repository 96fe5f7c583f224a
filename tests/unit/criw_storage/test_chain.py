import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from criw.errors import Failed, InvalidArgument
from criw_storage import chain
from criw_storage.chain import Patch
from criw_storage.view import Steps, is_opaque, make_opaque
from criw_storage.worker.program import unpack
from criw_storage.worker.removal import remove_tree
from criw_storage.worker.stream import Stream
from criw_storage.worker.tree import Tree
from support.images import Entry, directory, file, hard_link, opaque, symlink, tar_of, whiteout

pytestmark = pytest.mark.root  # whiteouts are devices, and the marks of opaque directories are the kernel's


class Chain:
    """Layers and the patches between them, made as the agent makes them."""

    def __init__(self, place: Path) -> None:
        self.stack: list[Path] = []
        self.steps = Steps(200_000)
        self._place = place

    def add(self, *entries: Entry, max_inodes: int = 1000) -> Patch:
        """Put a layer on top, and what its patch is."""
        layer = self._new("layer")
        descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY)
        tree = Tree(descriptor, max_inodes=max_inodes)
        try:
            unpack(Stream(iter([tar_of(entries)]), limit=2**30), tree)
        finally:
            tree.close()
            os.close(descriptor)
        made = list(tree.top.all())
        for path in (path for path, found in made if found.opaque):
            marked = os.open(os.fsencode(layer) + b"/" + path, os.O_RDONLY)
            make_opaque(marked)
            os.close(marked)
        implied, whited = ([path for path, at in made if at.implied], [path for path, at in made if at.whited])
        return self.put(layer, implied, whited)

    def put(self, layer: Path, implied: Sequence[bytes], whited: Sequence[bytes] = ()) -> Patch:
        patch = chain.plan(self.stack, layer, implied, whited, self.steps)
        self.stack.append(layer)
        if patch:
            target = self._new("patch")
            chain.build(target, patch)
            self.stack.append(target)
        return patch

    @property
    def top(self) -> Path:
        return self.stack[-1]

    def _new(self, kind: str) -> Path:
        path = self._place / f"{kind}-{len(self.stack)}"
        path.mkdir()
        return path


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Chain]:
    """Nothing in `tmp_path` may be changed by them but what begins with `layer-` and `patch-`."""
    yield Chain(tmp_path)
    for layer in tmp_path.glob("layer-*"):
        remove_tree(layer)  # pytest cannot, if it is deep


def contents(root: Path) -> dict[str, str]:
    """What there is by path: the text of a file, where a link leads, or one character for the others."""
    found = {}
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        name = os.fspath(path.relative_to(root))
        if stat.S_ISLNK(mode):
            found[name] = f"-> {path.readlink()}"
        elif stat.S_ISDIR(mode):
            found[name] = "opaque" if is_opaque(path) else "/"
        else:
            found[name] = "whiteout" if stat.S_ISCHR(mode) else path.read_text()
    return found


USR_MERGED = (directory("usr"), directory("usr/bin", 0o711), file("usr/bin/sh", "sh"), symlink("bin", "usr/bin"))


def test_an_implied_directory_is_the_one_a_link_leads_to(layers: Chain) -> None:
    layers.add(*USR_MERGED)
    layers.add(file("bin/tool", "tool"), symlink("bin/alias", "tool"), hard_link("bin/other", "bin/tool"))
    layer, patch = layers.stack[-2:]
    assert contents(patch) == {
        "bin": "-> usr/bin",
        "usr": "/",
        "usr/bin": "/",
        "usr/bin/tool": "tool",
        "usr/bin/other": "tool",
        "usr/bin/alias": "-> tool",
    }
    assert (patch / "usr/bin/tool").samefile(layer / "bin/tool")
    assert (patch / "usr/bin/other").samefile(layer / "bin/tool")
    assert stat.S_IMODE((patch / "usr/bin").stat().st_mode) == 0o711
    assert (patch / "usr/bin").stat().st_mtime == 0


@pytest.mark.parametrize("target", ["/usr/bin", "../../../usr/bin", "usr/./share/..//bin/", "first", "/first/"])
def test_links_lead_inside_the_root(layers: Chain, target: str) -> None:
    layers.add(directory("usr/bin"), directory("usr/share"), symlink("first", "/second"), symlink("second", "usr/bin"),
               symlink("bin", target))  # fmt: skip
    layers.add(file("bin/tool", "tool"))
    found = contents(layers.top)
    assert (found["usr/bin/tool"], found["bin"].rstrip("/")) == ("tool", f"-> {Path(target)}")


@pytest.mark.parametrize("target", ["nowhere", "bin", "loop", "usr/file", "usr/file/..", "n" * 300, "gone"])
def test_a_link_that_leads_to_no_directory_is_replaced(layers: Chain, target: str) -> None:
    layers.add(directory("usr"), file("usr/file", "x"), directory("gone"), symlink("loop", "bin"))
    layers.add(symlink("bin", target), whiteout("gone"))
    assert not layers.add(file("bin/tool", "tool"))


def test_a_listed_directory_replaces_a_link(layers: Chain) -> None:
    layers.add(*USR_MERGED)
    assert not layers.add(directory("bin"), file("bin/tool", "tool"), file("bin/deep/tool", "tool"))


def test_a_hidden_link_is_not_followed(layers: Chain) -> None:
    layers.add(directory("a"), directory("b"), symlink("a/link", "/b"))
    assert not layers.add(directory("a"), opaque("a"), file("a/link/x", "x"))
    layers.add(whiteout("a"))
    assert not layers.add(file("a/link/x", "x"))


def test_links_below_links(layers: Chain) -> None:
    layers.add(
        directory("opt/real"), directory("usr/lib"), symlink("lib", "usr/lib"), symlink("usr/lib/app", "/opt/link"),
        symlink("opt/link", "real"), directory("d"), symlink("d/lib", "../lib"),
    )  # fmt: skip
    layers.add(file("lib/app/one", "1"), file("d/lib/app/two", "2"), file("d/lib/new/three", "3"), file("d/own", "4"))
    assert contents(layers.top) == {
        "d": "/",
        "d/lib": "-> ../lib",
        "lib": "-> usr/lib",
        "opt": "/",
        "opt/real": "/",
        "opt/real/one": "1",
        "opt/real/two": "2",
        "usr": "/",
        "usr/lib": "/",
        "usr/lib/new": "/",
        "usr/lib/new/three": "3",
    }


def test_directories_below_a_link_keep_or_inherit_their_attributes(layers: Chain) -> None:
    layers.add(
        directory("usr/share", 0o700, uid=5), directory("usr/share/old", 0o2750, gid=6), symlink("s", "usr/share")
    )
    layers.add(file("s/old/x", "x"), directory("s/listed", 0o770, gid=7), directory("s/old/listed", 0o1777))
    modes = {
        os.fspath(path.relative_to(layers.top)): (path.stat().st_uid, path.stat().st_gid, f"{path.stat().st_mode:o}")
        for path in (layers.top / "usr/share").rglob("*") if path.is_dir()
    }  # fmt: skip
    assert modes == {
        "usr/share/old": (0, 6, "42750"),
        "usr/share/old/listed": (0, 0, "41777"),
        "usr/share/listed": (0, 7, "40770"),
    }
    assert ((layers.top / "usr/share").stat().st_uid, f"{(layers.top / 'usr/share').stat().st_mode:o}") == (5, "40700")


def test_whiteouts_below_a_link_go_where_they_hide_something(layers: Chain) -> None:
    layers.add(*USR_MERGED, file("usr/bin/tool", "old"))
    layers.add(
        whiteout("bin/tool"), whiteout("bin/nothing"), whiteout("bin/new/nothing"), file("bin/new/x", "x"),
        whiteout("bin/both"), file("usr/bin/both", "of the same layer"),
    )  # fmt: skip
    found = contents(layers.top)
    assert found["usr/bin/tool"] == "whiteout"
    assert found["usr/bin/new/x"] == "x"
    assert {"usr/bin/new/nothing", "usr/bin/both"}.isdisjoint(found)


def test_an_opaque_directory_below_a_link_hides_lower_layers_only(layers: Chain) -> None:
    layers.add(*USR_MERGED)
    layers.add(opaque("bin"), file("bin/x", "x"), whiteout("bin/sh"), file("usr/bin/deep/own", "own"))
    assert contents(layers.top) == {
        "bin": "-> usr/bin",
        "usr": "/",
        "usr/bin": "opaque",
        "usr/bin/x": "x",
        "usr/bin/deep": "/",
        "usr/bin/deep/own": "own",
    }
    assert stat.S_IMODE((layers.top / "usr/bin").stat().st_mode) == 0o711


def test_what_one_place_gets_by_several_names(layers: Chain) -> None:
    layers.add(directory("usr/bin"), symlink("bin", "usr/bin"), symlink("u", "usr"), symlink("usr/sub", "bin"))
    layers.add(
        file("bin/one", "1"), file("u/bin/two", "2"), file("u/sub/three", "3"), whiteout("u/bin/one"),
        directory("u/bin/three"), file("usr/sub/four", "4"),
    )  # fmt: skip
    found = contents(layers.top)
    assert {path: what for path, what in found.items() if what != "/"} == {
        "bin": "-> usr/bin", "u": "-> usr", "usr/sub": "-> bin",
        "usr/bin/one": "1", "usr/bin/two": "2", "usr/bin/four": "4",
    }  # fmt: skip
    assert found["usr/bin/three"] == "/"


def test_a_link_to_the_root(layers: Chain) -> None:
    layers.add(symlink("here", "."), symlink("up", "../.."), file("f", "x"))
    layers.add(file("here/one", "1"), file("up/two/three", "3"), whiteout("here/f"), opaque("up"))
    assert contents(layers.top) == {
        "here": "-> .", "up": "-> ../..", "one": "1", "two": "/", "two/three": "3", "f": "whiteout",
    }  # fmt: skip
    assert not is_opaque(layers.top)


def test_later_layers_see_the_patch(layers: Chain) -> None:
    layers.add(*USR_MERGED)
    layers.add(file("bin/tool", "tool"))
    layers.add(file("bin/data/file", "x"))
    layers.add(whiteout("bin/tool"), directory("bin/data", 0o700))
    assert contents(layers.top) == {
        "bin": "-> usr/bin", "usr": "/", "usr/bin": "/", "usr/bin/tool": "whiteout", "usr/bin/data": "/",
    }  # fmt: skip


def test_nothing_outside_is_reached(layers: Chain, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    layers.add(symlink("abs", os.fspath(outside)), symlink("up", "../outside"), symlink("self", "/proc/self/cwd"))
    assert not layers.add(file("abs/secret", "x"), file("up/new", "x"), file("self/new", "x"))
    layers.add(directory(f".{outside}"), directory("outside"), whiteout("abs"))
    layers.add(symlink("abs", os.fspath(outside)), symlink("up", "../outside"))
    layers.add(file("abs/secret", "x"), file("up/new", "x"))
    assert (Path(f"{layers.top}{outside}") / "secret").read_text() == "x"
    assert (layers.top / "outside/new").read_text() == "x"
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"secret": "secret"}


@pytest.mark.parametrize("claimed", ["link", "link/d", "d/link", "nothing", "file"])
def test_a_worker_that_tells_of_directories_which_are_none(layers: Chain, tmp_path: Path, claimed: str) -> None:
    (tmp_path / "outside/d").mkdir(parents=True)
    layers.add(directory("link/d"), directory("d/link"), directory("nothing"), directory("file"))
    layer = tmp_path / "claimed"
    (layer / "d").mkdir(parents=True)
    (layer / "file").touch()
    (layer / "link").symlink_to(tmp_path / "outside")
    (layer / "d/link").symlink_to(tmp_path / "outside")
    for implied, whited in (([claimed.encode()], []), ([], [claimed.encode()])):
        with pytest.raises(Failed, match="there is no directory"):
            layers.put(layer, implied, whited)


def test_links_that_take_too_long_to_follow(layers: Chain) -> None:
    layers.add(directory("d"), *(symlink(f"l{number}", "d/../" * 800 + "d") for number in range(200)))
    with pytest.raises(InvalidArgument, match="too many symbolic links"):
        layers.add(*(file(f"l{number}/x", "x") for number in range(200)))


def test_a_file_with_as_many_names_as_it_may_have(layers: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_names: object, **_options: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    layers.add(*USR_MERGED)
    monkeypatch.setattr(os, "link", refuse)  # ext4 allows 65,000
    with pytest.raises(InvalidArgument, match="as many names"):
        layers.add(file("bin/tool", "tool"))


def test_the_work_for_an_image_is_bounded_however_it_is_shared_among_layers(layers: Chain) -> None:
    layers.steps = Steps(10_000)
    with pytest.raises(InvalidArgument, match="imply too many directories"):
        for number in range(40):
            layers.add(*(file(f"{name}/{number}", "") for name in range(40)))
    assert 5 < len(layers.stack) < 40


def test_a_path_that_is_too_long_below_the_agent_s_own_is_refused(layers: Chain) -> None:
    layers.add(directory("d"))
    with pytest.raises(InvalidArgument, match="too long a path"):
        layers.add(file("d/" * 2030 + "f", "x"), max_inodes=3000)
