"""`criwctl cp`: files into and out of a container, through tar in it as kubectl does."""

import asyncio
import os
import posixpath
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeVar

from criw.errors import Failed, InvalidArgument, NotFound
from criw_ctl import archive
from criw_ctl.archive import Complain
from criw_ctl.door import Door
from criw_ctl.interruptions import Interruption, interruptions
from criw_ctl.names import take_inventory
from criw_ctl.sessions import run_command
from criw_ctl.streams import NotRun, Streams

T = TypeVar("T")
STREAM: Final = "-"
_CONTENTS: Final = frozenset({"", ".", ".."})  # last components of a path that name no entry of a directory
_NO_PROGRAM: Final = 127


@dataclass(frozen=True)
class Place:
    """A path on this host if `container` is "", else one in that container."""

    container: str
    path: str


def parse_place(text: str) -> Place:
    """NAME:PATH is in a container, but for what begins with / or a dot. Raises InvalidArgument."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")):
        if not text:
            raise InvalidArgument("cannot copy from or to nothing: give a path, NAME:PATH or -")
        return Place("", text)
    if not name or not path:
        raise InvalidArgument(f"cannot tell which path {text} is: write NAME:PATH, or ./{text} for one of this host")
    return Place(name, path)


def parse_places(source: str, target: str) -> tuple[Place, Place]:
    """Where from and where to, one of which is in a container. Raises InvalidArgument."""
    places = parse_place(source), parse_place(target)
    if bool(places[0].container) == bool(places[1].container):
        raise InvalidArgument(
            f"cannot copy from {source} to {target}: exactly one of them must be in a container, written NAME:PATH"
        )
    return places


async def copy(door: Door, source: Place, target: Place, complain: Complain) -> bool:
    """Copy a file or a tree; False if something was left out, which `complain` was told. Raises Interrupted, Fault."""
    with interruptions() as interrupted:
        there = await _Tar.find(door, source.container or target.container, interrupted)
        if source.container:
            return await _download(there, source.path, target.path, complain)
        return await _upload(there, source.path, target.path, complain)


class _Tar:
    """The tar in a container."""

    def __init__(self, door: Door, name: str, container_id: str, interrupted: Interruption) -> None:
        self._door = door
        self._name = name
        self._id = container_id
        self._interrupted = interrupted

    @classmethod
    async def find(cls, door: Door, name: str, interrupted: Interruption) -> "_Tar":
        return cls(door, name, (await take_inventory(door)).target(name).id, interrupted)

    async def run(self, *options: str, stdin: int | None = None, stdout: int | None = None) -> None:
        """Raises Failed unless it ends well; what it complains about goes to our stderr."""
        code = await self._code(["tar", *options], Streams(stdin, stdout, 2))
        if code == _NO_PROGRAM:
            raise NotFound(
                f"cannot copy: there is no tar in {self._name}; criwctl exec {self._name} cat may do instead"
            )
        if code:
            raise Failed(f"cannot copy: tar in {self._name} ended with exit code {code}")

    async def is_directory(self, path: str) -> bool:
        """Also False where there is no test(1)."""
        return not await self._code(["test", "-d", path], Streams(stderr=2))

    async def _code(self, command: Sequence[str], streams: Streams) -> int:
        try:
            return await run_command(self._door, self._id, command, streams, self._interrupted)
        except NotRun as err:
            if err.exit_code != _NO_PROGRAM:
                raise
            return _NO_PROGRAM


async def _download(tar: _Tar, source: str, target: str, complain: Complain) -> bool:
    parent, base = posixpath.split(source.rstrip("/"))
    whole = base not in _CONTENTS
    # As ./NAME, which no option looks like.
    options = ("-c", "-f", "-", "-C", parent or ("." if whole else "/"), f"./{base}")
    if not whole:
        options = ("-c", "-f", "-", "-C", source, ".")
    if target == STREAM:
        await tar.run(*options, stdout=1)
        return True
    directory, name = _local_target(Path(target), base if whole else "", must_exist=target.endswith("/") and whole)
    top = (base, name) if whole else None

    def unpack(file: IO[bytes]) -> bool:
        return archive.unpack(file, directory, top=top, complain=complain)

    return await _piped(unpack, "rb", lambda descriptor: tar.run(*options, stdout=descriptor))


def _local_target(target: Path, name: str, *, must_exist: bool) -> tuple[Path, str]:
    """The directory to unpack into, and the name there. Raises NotFound."""
    if not name:
        target.mkdir(exist_ok=True)
        return target, ""
    if target.is_dir():
        return target, name
    if must_exist or not target.parent.is_dir():
        raise NotFound(f"cannot copy to {target}: there is no such directory; make it first")
    return target.parent, target.name


async def _upload(tar: _Tar, source: str, target: str, complain: Complain) -> bool:
    if source == STREAM:
        await tar.run("-x", "-o", "-p", "-f", "-", "-C", target, stdin=0)
        return True
    path = Path(source)
    if not path.exists() and not path.is_symlink():
        raise NotFound(f"cannot copy {source}: there is no such file or directory")
    base = "" if posixpath.basename(source.rstrip("/")) in _CONTENTS else path.name
    directory, name = target, base
    if not await tar.is_directory(target):
        if target.endswith("/"):
            raise NotFound(f"cannot copy to {target}: there is no such directory in the container; make it first")
        parent, name = posixpath.split(target)
        directory = parent or "."

    def pack(file: IO[bytes]) -> bool:
        return archive.pack(file, path, name, complain)

    # -o: what is copied belongs to the container's user.
    options = ("-x", "-o", "-p", "-f", "-", "-C", directory)
    return await _piped(pack, "wb", lambda descriptor: tar.run(*options, stdin=descriptor))


async def _piped(work: Callable[[IO[bytes]], T], mode: str, run: Callable[[int], Coroutine[object, object, None]]) -> T:
    """Run `work` in a thread on one end of a pipe, beside a session that has the other; the result of `work`.

    Of two failures the first is raised; the other one follows from it.
    """
    reading, writing = os.pipe()
    ours, theirs = (reading, writing) if mode == "rb" else (writing, reading)

    def in_thread() -> T:
        with os.fdopen(ours, mode) as file:
            return work(file)

    async def session() -> None:
        try:
            await run(theirs)
        finally:
            os.close(theirs)  # which ends the thread, too

    working = asyncio.create_task(asyncio.to_thread(in_thread), name="archive")
    running = asyncio.create_task(session(), name="tar in the container")
    try:
        await asyncio.wait({working, running}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done() and not isinstance(working.exception(), BrokenPipeError | None):
            working.result()
        await asyncio.wait({running})
        if not isinstance(running.exception(), BrokenPipeError):
            running.result()
        return await working
    except BrokenPipeError as err:
        raise Failed("cannot copy: tar in the container ended before it had everything") from err
    except OSError as err:
        raise Failed(f"cannot copy {err.filename or ''}: {err.strerror or err}".replace(" :", ":")) from err
    finally:
        running.cancel()
        await asyncio.gather(running, working, return_exceptions=True)
