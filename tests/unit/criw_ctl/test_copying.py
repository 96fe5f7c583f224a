"""criwctl cp as a process, against a runtime that runs the tar it asks for: GNU's and busybox's."""

import asyncio
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criw.errors import InvalidArgument
from criw_ctl.copying import Place, parse_place, parse_places
from support.fake_streaming import Ended, Peer, Streaming, criwctl, running_in, start, streaming

GNU = {"tar": ["tar"], "test": ["test"]}
BUSYBOX = {"tar": ["busybox", "tar"], "test": ["busybox", "test"]}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc", Place("web", "/etc")),
        ("web/nginx:etc", Place("web/nginx", "etc")),
        ("web:a:b", Place("web", "a:b")),
        ("./web:a", Place("", "./web:a")),
        ("/web:a", Place("", "/web:a")),
        ("file", Place("", "file")),
        ("-", Place("", "-")),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", ":", "web:", ":/etc"])
def test_no_places(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_place(text)


@pytest.mark.parametrize("texts", [("a", "b"), ("a:b", "c:d"), ("-", "-")])
def test_one_place_is_in_a_container(texts: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="exactly one of them must be in a container"):
        parse_places(*texts)


class Both:
    """A host's directory and a container's."""

    def __init__(self, server: Streaming, directory: Path) -> None:
        self.server = server
        self.here, self.there = directory / "here", directory / "there"
        self.here.mkdir()
        self.there.mkdir()

    async def cp(self, *argv: str) -> Ended:
        return await criwctl(self.server, "cp", *argv)

    async def ok(self, *argv: str) -> None:
        assert await self.cp(*argv) == Ended(0, b"", "")


@pytest_asyncio.fixture(params=[GNU, BUSYBOX], ids=["gnu", "busybox"])
async def both(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Both]:
    async with streaming(tmp_path) as server:
        both = Both(server, tmp_path)
        server.script = running_in(both.there, request.param)
        yield both


def make_tree(tree: Path) -> None:
    deep = tree / ("long" * 30) / ("name" * 30)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(os.urandom(3_000_000))
    (deep / "f").chmod(0o640)
    os.utime(deep / "f", (1, 1_234_567_890))
    (tree / "empty").mkdir(mode=0o750)
    (tree / "link").symlink_to("empty")
    (tree / "-x y\n").write_text("odd")
    os.utime(tree / "empty", (1, 1_234_567_891))


def described(tree: Path) -> dict[str, tuple[int, int, str]]:
    found = {}
    for path in [tree, *tree.rglob("*")]:
        about = path.lstat()
        content = os.fspath(path.readlink()) if path.is_symlink() else ""
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        mode = 0 if path.is_symlink() else stat.S_IMODE(about.st_mode)
        time = 0 if path.is_symlink() else int(about.st_mtime)
        found[os.fspath(path.relative_to(tree))] = (mode, time, content)
    return found


async def test_a_tree_goes_in_and_comes_out_as_it_was(both: Both) -> None:
    make_tree(both.here / "tree")
    await both.ok(f"{both.here}/tree", "web:tree")  # is not there: the new name
    assert described(both.there / "tree") == described(both.here / "tree")
    await both.ok("web:tree", f"{both.here}/back")
    assert described(both.here / "back") == described(both.here / "tree")
    await both.ok("web:tree", str(both.here / "back"))  # is there: it goes into it
    assert described(both.here / "back" / "tree") == described(both.here / "tree")
    await both.ok(f"{both.here}/tree", "web:tree")
    assert described(both.there / "tree" / "tree") == described(both.here / "tree")


async def test_the_contents_of_a_directory_are_copied_with_a_dot(both: Both) -> None:
    make_tree(both.here / "tree")
    expected = {name: about for name, about in described(both.here / "tree").items() if name != "."}
    await both.ok(f"{both.here}/tree/.", f"web:{both.there}")
    assert {name: about for name, about in described(both.there).items() if name != "."} == expected
    await both.ok(f"web:{both.there}/.", f"{both.here}/new")
    assert {name: about for name, about in described(both.here / "new").items() if name != "."} == expected


async def test_a_file_gets_the_name_it_is_given(both: Both) -> None:
    (both.here / "a").write_text("text")
    await both.ok(f"{both.here}/a", "web:b")
    assert (both.there / "b").read_text() == "text"
    await both.ok(f"{both.here}/a", f"web:{both.there}")
    assert (both.there / "a").read_text() == "text"
    (both.there / "b").write_text("other")
    await both.ok("web:b", f"{both.here}/a")
    assert (both.here / "a").read_text() == "other"
    await both.ok("web:b", f"{both.here}/")
    assert (both.here / "b").read_text() == "other"


async def test_a_stream_of_tar_goes_either_way(both: Both) -> None:
    (both.there / "d").mkdir()
    (both.there / "d" / "f").write_text("text")
    out = await both.cp("web:d", "-")
    assert (out.code, out.err) == (0, "")
    with tarfile.open(fileobj=io.BytesIO(out.out)) as tar:
        assert {name.removeprefix("./") for name in tar.getnames()} == {"d", "d/f"}
    (both.there / "new").mkdir()
    assert await criwctl(both.server, "cp", "-", "web:new", stdin=out.out) == Ended(0, b"", "")
    assert (both.there / "new" / "d" / "f").read_text() == "text"


async def test_what_is_not_there_is_told(both: Both) -> None:
    for argv, words in (
        (("web:nothing", str(both.here)), "tar in web ended with exit code"),
        ((f"{both.here}/nothing", "web:x"), "there is no such file or directory"),
        ((f"{both.here}", "web:no/such/x"), "tar in web ended with exit code"),
        ((f"{both.here}", "web:no/"), "there is no such directory in the container"),
        (("web:x", f"{both.here}/no/such/x"), "there is no such directory; make it first"),
        (("web:x", f"{both.here}/no/"), "there is no such directory; make it first"),
    ):
        done = await both.cp(*argv)
        assert (done.code, done.out) == (1, b""), argv
        assert words in done.err.splitlines()[-1]
    assert list(both.here.iterdir()) == []


async def test_a_container_without_tar_is_told(both: Both) -> None:
    both.server.script = running_in(both.there, {})
    for argv in (("web:x", str(both.here)), (str(both.here), "web:x")):
        done = await both.cp(*argv)
        assert done.code == 1
        (line,) = done.err.splitlines()
        assert line.startswith("criwctl: cannot copy: there is no tar in web; ")


async def test_a_link_out_of_a_tree_is_left_out_and_told(both: Both) -> None:
    (both.there / "d").mkdir()
    (both.there / "d" / "time").symlink_to("/etc/localtime")
    (both.there / "d" / "f").write_text("text")
    done = await both.cp("web:d", str(both.here))
    assert done.code == 1
    assert done.err == (
        "criwctl: cannot copy './d/time': it is a link to '/etc/localtime', outside of what is copied; left out\n"
    )
    assert [path.name for path in (both.here / "d").iterdir()] == ["f"]


async def test_a_runtime_that_vanishes_is_told_and_nothing_hangs(both: Both) -> None:
    begun = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.say(1, tarfile.TarInfo("./d").tobuf(tarfile.GNU_FORMAT))
        begun.set()
        assert peer.websocket._req is not None
        transport = peer.websocket._req.transport
        assert transport is not None
        transport.abort()

    both.server.script = script
    done = await both.cp("web:d", str(both.here))
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "the streaming server went away" in line


async def test_ctrl_c_ends_a_copy(both: Both) -> None:
    begun = asyncio.Event()

    async def script(peer: Peer) -> None:
        begun.set()
        while await peer.hear():
            pass

    both.server.script = script
    process = await start(both.server, "cp", "web:d", str(both.here))
    await asyncio.wait_for(begun.wait(), 30)
    process.send_signal(2)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, out, err) == (130, b"", b"")
