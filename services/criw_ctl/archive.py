"""Tar streams of `criwctl cp`: files packed for a container, and unpacked from one that may lie.

Both block, use memory for one chunk and the directories, and are run in a thread.
"""

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final, Self

from criw.errors import DataLoss, Failed

Complain = Callable[[str], None]
_CHUNK: Final = 256 * 1024
_HEADER_LIMIT_BYTES: Final = 1024 * 1024  # of a long name; tarfile would take any length into memory
_LONG_HEADERS: Final = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE})
_UNUSUAL_HEADERS: Final = frozenset({tarfile.GNUTYPE_SPARSE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE})
_MODE: Final = 0o1777  # no set-user-id or set-group-id bit comes out of a container
_LAST_TIME_S: Final = 1 << 40


def pack(file: IO[bytes], source: Path, name: str, complain: Complain) -> bool:
    """Write the tree at `source` as `name`, or only what is in it if that is "", without its owners.

    Sockets, devices and the like are told to `complain` and left out; False if there were some.
    """
    complete = True
    # GNU's format: busybox does not read the long names of the POSIX one.
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT, bufsize=_CHUNK) as tar:
        for path, inside, again in _tree(source, name):
            member = tar.gettarinfo(path, inside)
            if not (member and (member.isreg() or member.isdir() or member.issym() or member.islnk())):
                complain(f"cannot copy {str(path)!r}: it is neither a file, a directory nor a link; left out")
                complete = False
                continue
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            if member.isreg():
                with path.open("rb") as content:
                    tar.addfile(member, content)
            else:
                if member.isdir() and not again:
                    member.mode |= stat.S_IRWXU  # until it is full
                tar.addfile(member)
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all, typeshed knows none
    return complete


def _tree(source: Path, name: str) -> Iterator[tuple[Path, str, bool]]:
    """Paths and names in the archive, and whether it is the second time.

    A directory comes before what is in it, and again behind that: busybox sets its mode and time at once.
    """
    if name:
        yield source, name, False
    if name and (source.is_symlink() or not source.is_dir()):
        return
    for path in sorted(source.iterdir()):
        yield from _tree(path, f"{name}/{path.name}" if name else path.name)
    if name:
        yield source, name, True


class _Member(tarfile.TarInfo):
    """A member whose headers cannot take all memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _UNUSUAL_HEADERS or (member.type in _LONG_HEADERS and member.size > _HEADER_LIMIT_BYTES):
            raise tarfile.ReadError(f"a header of type {member.type!r} and {member.size} bytes")
        return member

    def _proc_gnusparse_10(self, *_: object) -> None:
        """tarfile calls it for a map of any length. No tar writes one unasked."""
        raise tarfile.ReadError("a sparse file")


def unpack(file: IO[bytes], target: Path, *, top: tuple[str, str] | None, complain: Complain) -> bool:
    """Unpack into the directory `target`, and read `file` to its end.

    Every name begins with `top[0]`, which becomes `top[1]`. Nothing is written outside `target`, whatever the archive
    says: no link is followed, and none is made that leads out of what is copied. What is left out is told to
    `complain`; False if something was. Files belong to us. Raises DataLoss, Failed.
    """
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_Member, bufsize=_CHUNK) as tar:
            unpacker = _Unpacker(root, top, complain)
            while (member := tar.next()) is not None:
                unpacker.add(tar, member)
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all, typeshed knows none
            unpacker.finish()
        while file.read(_CHUNK):
            pass
        return unpacker.complete
    except (tarfile.TarError, ValueError, EOFError) as err:
        raise DataLoss(f"cannot read what tar in the container writes: {err}") from err
    finally:
        os.close(root)


class _Unpacker:
    """Makes members below the directory `root`, entering every directory on the way without following a link."""

    def __init__(self, root: int, top: tuple[str, str] | None, complain: Complain) -> None:
        self._root = root
        self._top = top
        self._complain = complain
        self._directories: list[tuple[list[str], tarfile.TarInfo]] = []
        self.complete = True

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = self._parts(member.name)
        if member.issparse():  # its few bytes could stand for any number
            raise DataLoss(f"cannot unpack {member.name!r}: it is a sparse file")
        try:
            if member.isdir():
                with self._entered(parts):
                    self._directories.append((parts, member))
            elif not parts:
                raise DataLoss("cannot unpack an archive whose own name is no directory's")
            elif member.isreg():
                self._make_file(tar, member, parts)
            elif member.issym():
                self._make_link(member, parts)
            elif member.islnk():
                self._make_hard_link(member, parts)
            else:
                self._leave_out(member, "it is neither a file, a directory nor a link")
        except OSError as err:
            raise Failed(f"cannot write {'/'.join(parts)!r}: {err.strerror or err}") from err

    def finish(self) -> None:
        """Give directories their modes and times, which what was put into them has changed, innermost first."""
        for parts, member in reversed(self._directories):
            if parts:  # the target's own is not ours to change
                with self._entered(parts, make=False) as directory:
                    _dress(directory, member)

    def _leave_out(self, member: tarfile.TarInfo, why: str) -> None:
        self._complain(f"cannot copy {member.name!r}: {why}; left out")
        self.complete = False

    def _parts(self, name: str) -> list[str]:
        """The components of a name below the target. Raises DataLoss if it leads out of it."""
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if ".." in parts or (self._top and parts[:1] != [self._top[0]]):
            raise DataLoss(f"cannot unpack {name!r}: it is not below what was asked for")
        return [self._top[1], *parts[1:]] if self._top else parts

    @contextlib.contextmanager
    def _entered(self, parts: Sequence[str], *, make: bool = True) -> Iterator[int]:
        """A descriptor of the directory. OSError if a part is a link or a file."""
        directory = os.dup(self._root)
        try:
            for part in parts:
                inner = _enter(directory, part, make=make)
                os.close(directory)
                directory = inner
            yield directory
        finally:
            os.close(directory)

    def _make_file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, parts: Sequence[str]) -> None:
        content = tar.extractfile(member)
        assert content is not None
        with self._entered(parts[:-1]) as parent:
            _make_room(parent, parts[-1])
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(parts[-1], flags, 0o600, dir_fd=parent)
            with os.fdopen(descriptor, "wb", buffering=0) as out:
                shutil.copyfileobj(content, out, _CHUNK)
                _dress(descriptor, member)

    def _make_link(self, member: tarfile.TarInfo, parts: Sequence[str]) -> None:
        """A relative one, which may climb only at its beginning and within what is copied.

        Then no chain of such links leads out either: each climbs from the real directory it is in.
        """
        steps = member.linkname.split("/")
        climbs = next((number for number, step in enumerate(steps) if step != ".."), len(steps))
        depth = len(parts) - 1 - (1 if self._top else 0)
        if member.linkname.startswith("/") or ".." in steps[climbs:] or climbs > max(depth, 0):
            self._leave_out(member, f"it is a link to {member.linkname!r}, outside of what is copied")
            return
        with self._entered(parts[:-1]) as parent:
            _make_room(parent, parts[-1])
            os.symlink(member.linkname, parts[-1], dir_fd=parent)
            os.utime(parts[-1], ns=_times(member), dir_fd=parent, follow_symlinks=False)

    def _make_hard_link(self, member: tarfile.TarInfo, parts: Sequence[str]) -> None:
        original = self._parts(member.linkname)
        if not original:
            raise DataLoss(f"cannot unpack {member.name!r}: it is a link to nothing")
        with self._entered(original[:-1], make=False) as there, self._entered(parts[:-1]) as parent:
            if not stat.S_ISREG(os.stat(original[-1], dir_fd=there, follow_symlinks=False).st_mode):
                self._leave_out(member, "it is another name of a link")  # which from here might lead out
                return
            _make_room(parent, parts[-1])
            os.link(original[-1], parts[-1], src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)


def _enter(directory: int, name: str, *, make: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        if not make:
            raise
    os.mkdir(name, 0o700, dir_fd=directory)
    return os.open(name, flags, dir_fd=directory)


def _make_room(directory: int, name: str) -> None:
    """Remove the file or link that is to be replaced. FileExistsError if it is something else, a device say."""
    try:
        kind = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
        raise FileExistsError("there is something else than a file")
    os.unlink(name, dir_fd=directory)


def _dress(descriptor: int, member: tarfile.TarInfo) -> None:
    os.fchmod(descriptor, member.mode & _MODE)
    os.utime(descriptor, ns=_times(member))


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    seconds = min(max(member.mtime, 0), _LAST_TIME_S)
    return int(seconds * 1_000_000_000), int(seconds * 1_000_000_000)
