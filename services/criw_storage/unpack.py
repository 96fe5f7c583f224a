"""Running the confined worker on one blob, and judging what it reports: it met bytes made by strangers."""

import asyncio
import contextlib
import functools
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import DataLoss, DeadlineExceeded, Failed, InvalidArgument, ResourceExhausted
from criw.operations import run_to_end
from criw_storage.view import make_opaque
from criw_storage.worker import program

log = logging.getLogger(__name__)
_START: Final = "import sys; n = int(sys.argv[1]); sys.path[:0] = sys.argv[2 : 2 + n]; " + (
    "from criw_storage.worker.program import main; main(sys.argv[2 + n :])"
)
_REPORT_LIMIT: Final = 32 * 1024 * 1024  # bytes: the names of a few hundred thousand directories
# What a layer may take: some for a small one on a busy machine, more by the size of its blob.
_LIMIT_S: Final = 120.0
_LEAST_BYTES_PER_S: Final = 512 * 1024
_END_LIMIT_S: Final = 60.0
_UNLIMITED: Final = 2**62
# Of the file system: a twentieth, but no more than this.
_KEPT_SHARE: Final = 20
_KEPT_BYTES: Final = 1024**3
_KEPT_INODES: Final = 10_000


@dataclass(frozen=True)
class Unpacked:
    """What matters of a layer besides its files: directories by their paths in it, "" being its root."""

    implied: tuple[bytes, ...]  # no entry describes them
    whited: tuple[bytes, ...]  # there are whiteouts in them
    ignored: tuple[str, ...]  # names of extended attributes that were not kept


async def unpack(blob: int, target: Path, diff_id: str, *, lock: int) -> Unpacked:
    """Unpack an open blob into an empty directory. The worker holds `lock` as long as it lives.

    Raises InvalidArgument if the blob is not a layer, DataLoss if its uncompressed bytes do not have the digest
    `diff_id` (hex), DeadlineExceeded if it takes longer than its size allows, ResourceExhausted
    if the disk has no room, Failed if the worker was killed or broke.
    """
    room = await asyncio.to_thread(_room, target)
    paths = _import_paths()
    arguments = [str(len(paths)), *paths, str(blob), os.fspath(target), *map(str, room)]
    limit_s = _LIMIT_S + os.fstat(blob).st_size / _LEAST_BYTES_PER_S
    try:
        async with asyncio.timeout(limit_s):
            code, report = await _run([sys.executable, "-I", "-S", "-c", _START, *arguments], (blob, lock))
    except TimeoutError as err:
        raise DeadlineExceeded(
            f"cannot unpack layer sha256:{diff_id}: it takes longer than {limit_s:.0f} s, which is what a layer of its "
            "size may take; is the disk slow, or the image made to be?"
        ) from err
    found: dict[bytes, list[bytes]] = {}
    for message in report.split(b"\0")[:-1]:
        found.setdefault(message[:1], []).append(message[1:])
    if (reasons := found.get(program.REFUSED)) is not None:
        raise InvalidArgument(
            f"cannot unpack layer sha256:{diff_id}: {reasons[0].decode(errors='replace')}; the image must be rebuilt"
        )
    if program.NO_SPACE in found:
        raise ResourceExhausted(f"cannot unpack layer sha256:{diff_id}: no space left; free some and try again")
    if code or program.DIGEST not in found:
        raise _broken(code, diff_id)
    digest = found[program.DIGEST][0].decode(errors="replace")
    if digest != diff_id:
        # For the log only: whoever sent the blob need not be able to read it.
        log.warning("a layer has another digest", extra={"layer": diff_id, "digest": digest})
        raise DataLoss(f"cannot unpack layer sha256:{diff_id}: its bytes have another digest; pull the image again")
    await asyncio.to_thread(_make_opaque, target, _inside(found.get(program.OPAQUE, [])))
    return Unpacked(
        _inside(found.get(program.IMPLIED, [])),
        _inside(found.get(program.WHITED, [])),
        tuple(name.decode(errors="replace") for name in found.get(program.IGNORED, [])),
    )


@functools.cache
def _import_paths() -> Sequence[str]:
    """Where the worker, which has neither site-packages nor our sys.path, finds what it imports."""
    found = []
    for name in ("criw_storage", "isal", "zstandard"):
        spec = importlib.util.find_spec(name)  # finds without importing: this process needs neither library
        assert spec is not None, name
        assert spec.origin is not None, name
        found.append(os.fspath(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(found))


def _room(directory: Path) -> tuple[int, int, int, int]:
    """Bytes and inodes that a layer may take, and those that must stay free: what removing things is recorded in.

    What the file system reserves for root is not counted. The worker looks again while it writes, as others write, too.
    """
    found = os.statvfs(directory)
    keep_bytes = min(found.f_blocks * found.f_frsize // _KEPT_SHARE, _KEPT_BYTES)
    keep_inodes = min(found.f_files // _KEPT_SHARE, _KEPT_INODES)
    # A file system without a fixed number of inodes (btrfs) says 0.
    inodes = max(found.f_favail - keep_inodes, 0) if found.f_files else _UNLIMITED
    return max(found.f_bavail * found.f_frsize - keep_bytes, 0), inodes, keep_bytes, keep_inodes


async def _run(argv: Sequence[str], descriptors: Sequence[int]) -> tuple[int, bytes]:
    """Exit code and output of the worker. When this returns, however it does, no process of it is left."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,  # errors go where our own log goes
        env={name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},
        pass_fds=tuple(descriptors),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        try:
            await process.stdout.readexactly(_REPORT_LIMIT)
        except asyncio.IncompleteReadError as err:  # the normal case: all there is
            return await process.wait(), err.partial
        raise InvalidArgument("cannot unpack a layer with so many directories that are not listed; rebuild the image")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            await run_to_end(_ended(process), limit_s=_END_LIMIT_S)  # even if cancelled again


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait until no process of the worker has its output open any more: the last may outlive the first a moment."""
    assert process.stdout is not None
    while await process.stdout.read(_REPORT_LIMIT):
        pass
    await process.wait()


def _inside(paths: Sequence[bytes]) -> tuple[bytes, ...]:
    """The paths, each of which must be one below the layer's root or the root itself."""
    for path in paths:
        if path and not {b"", b".", b".."}.isdisjoint(path.split(b"/")):
            raise Failed(f"cannot believe the worker, which speaks of {path!r} in a layer; look for what broke it")
    return tuple(sorted(paths))


def _broken(code: int, diff_id: str) -> Failed | InvalidArgument:
    number = -code if code < 0 else code - 128
    if number == signal.SIGXCPU:
        return InvalidArgument(f"cannot unpack layer sha256:{diff_id}: it takes more processor time than a layer may")
    if number == signal.SIGKILL:
        return Failed(f"cannot unpack layer sha256:{diff_id}: the worker was killed, perhaps for want of memory")
    return Failed(f"cannot unpack layer sha256:{diff_id}: the worker failed (code {code}), see the agent's log")


def _make_opaque(target: Path, paths: Sequence[bytes]) -> None:
    """Mark directories as hiding those of lower layers, which only a privileged process may."""
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in paths:
            directory = kernel.open_beneath(root, path or b".")
            try:
                make_opaque(directory)
            finally:
                os.close(directory)
    finally:
        os.close(root)
