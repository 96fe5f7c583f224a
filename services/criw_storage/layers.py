"""Unpacked layers: one directory for each diff id, shared by every image that has it.

A layer stays while something holds it: an image, a pull, a root filesystem. When nothing does, it is deleted.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import Histogram
from pydantic import ConfigDict

from criw import kernel
from criw.errors import InvalidArgument
from criw.locks import KeyedLocks
from criw.operations import Operations, run_to_end, together
from criw.store import Record, Store
from criw_storage.blobs import Blobs
from criw_storage.unpack import Unpacked, unpack
from criw_storage.usage import measure
from criw_storage.worker.removal import remove_tree

log = logging.getLogger(__name__)

# "…layer.v1.tar+gzip" of OCI image-spec layer.md, "…rootfs.diff.tar.gzip" of Docker's schema 2, and their kin. Which
# of the compressions it really is, the blob's first bytes tell.
MEDIA_TYPE: Final = re.compile(r"(.*\.)?tar([.+](gzip|zstd))?")
_CLEANUP_LIMIT_S: Final = 600.0


class Layer(Record):
    """A directory below `layers`. `id` is its name: a diff id in hex, or a patch's (see `chain`)."""

    kind: ClassVar[str] = "layer"
    size_bytes: int
    inodes: int


class Seams(Record):
    """Where the layer `id` depends on those below it: directories by path, as `Unpacked` has them."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")  # a path may be any bytes
    kind: ClassVar[str] = "layer-seams"
    implied: tuple[bytes, ...]
    whited: tuple[bytes, ...]


class Layers:
    """Use `open_layers()`; an instance is good until that block is left."""

    def __init__(
        self,
        store: Store,
        state: Path,
        blobs: Blobs,
        records: Iterable[Layer],
        *,
        lock: int,
        workers: int,
        seconds: Histogram,
    ) -> None:
        self.records = {layer.id: layer for layer in records}
        self.operations = Operations()
        self._store = store
        self._layers = state / "layers"
        self._unfinished = state / "unfinished"
        self._blobs = blobs
        self._lock = lock
        self._workers = asyncio.Semaphore(workers)
        self._seconds = seconds
        self._making = KeyedLocks()
        self._held: Counter[str] = Counter()

    def path(self, name: str) -> Path:
        """The directory of a layer."""
        return self._layers / name

    def size_bytes(self, names: Iterable[str]) -> int:
        """Disk space of some layers together."""
        return sum(self.records[name].size_bytes for name in names)

    async def seams(self, name: str) -> Seams | None:
        """Where the layer depends on others; None if it does not."""
        return await self._store.get(Seams, name)

    # Who needs which layer. Counts are changed without awaiting, so that nothing comes between a look and a change.

    def hold(self, names: Iterable[str]) -> None:
        """Keep layers, unpacked already or not, until they are released."""
        self._held.update(names)

    async def release(self, names: Iterable[str]) -> None:
        """Give back one hold on each layer; those that nobody else holds are deleted before this returns."""
        released = tuple(names)
        self._held.subtract(released)
        self._held = +self._held
        await together(*(self._delete(name) for name in released))

    async def _delete(self, name: str) -> None:
        async with self._making.hold(name):  # perhaps it is being unpacked right now
            layer = self.records.get(name)
            if layer is None or self._held[name]:
                return
            del self.records[name]
            await asyncio.to_thread(lambda: remove_tree(self.set_aside(self.path(name))))
            await self._store.delete(layer, Seams(id=name, implied=(), whited=()))

    def set_aside(self, directory: Path) -> Path:
        """Take a directory out of its place in one step, so that it is whole or not there; where it is then.

        This, not a row, is the first step of every removal, and the row goes last: on a full disk, which removing
        something is to cure, no row can be written. The next start takes a record without its directory for removed.
        """
        aside = self._unfinished / f"{directory.name}.{secrets.token_hex(4)}"
        with kernel.suppress_errno(errno.ENOENT):
            directory.rename(aside)
        return aside

    async def sweep(self) -> None:
        """Delete what nobody holds, and what no record knows: what a killed agent left."""
        await together(*(self._delete(name) for name in tuple(self.records)))

        def remove_unknown() -> None:
            for directory in self._unfinished.iterdir():
                remove_tree(directory)
            for directory in self._layers.iterdir():
                if directory.name not in self.records:
                    remove_tree(directory)

        await asyncio.to_thread(remove_unknown)

    # Making layers

    async def unpack(self, diff_id: str, blob: str, media_type: str) -> Layer:
        """The layer of a diff id (hex), unpacked from the blob of that name unless it is there. Hold it first.

        A call for a layer that is being unpacked joins, or waits and finds it made. Raises InvalidArgument for the
        media type, and what `Blobs.opened` and `unpack` raise.
        """
        if MEDIA_TYPE.fullmatch(media_type or "tar") is None:
            raise InvalidArgument(
                f"cannot unpack layer sha256:{diff_id}: its media type {media_type!r} is not one of a tar archive, "
                "plain or compressed with gzip or zstd; the image cannot be run here"
            )

        async def fill(directory: Path) -> Unpacked:
            async with self._workers:
                started = time.perf_counter()
                with self._blobs.opened(blob) as source:
                    unpacked = await unpack(source, directory, diff_id, lock=self._lock)
                self._seconds.observe(time.perf_counter() - started)
            if unpacked.ignored:
                log.info("attributes of a layer were not kept", extra={"layer": diff_id, "names": unpacked.ignored})
            return unpacked

        # By blob as well: what is wrong with one pull's blob is not the answer to another's, which waits its turn.
        return await self.operations.run(f"unpack {diff_id} {blob}", lambda: self.make(diff_id, fill))

    async def make(self, name: str, fill: Callable[[Path], Awaitable[Unpacked | None]]) -> Layer:
        """The layer `name`, made by `fill` in an empty directory unless it is there.

        If `fill` returns None it is a patch, whose files are other layers' and take no space of its own.
        """
        async with self._making.hold(name):
            if (layer := self.records.get(name)) is not None:
                return layer
            fresh = self._unfinished / name
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._undo_make, name)
                await asyncio.to_thread(_make_directory, fresh)
                unpacked = await fill(fresh)
                # A whole layer at once: an fsync for each of its files would take many times as long. Meanwhile its
                # size is counted, which costs processor time only.
                measured, _ = await asyncio.gather(
                    asyncio.to_thread(measure, fresh, files=unpacked is not None),
                    asyncio.to_thread(kernel.syncfs, fresh),
                )
                # After a power failure the rename may be undone, but never half done; then the record is dropped.
                fresh.rename(self.path(name))
                layer = Layer(id=name, size_bytes=measured.size_bytes, inodes=measured.inodes)
                seams = [Seams(id=name, implied=unpacked.implied, whited=unpacked.whited)] if unpacked else []
                await self._store.put(layer, *seams)
                self.records[name] = layer
                undo.pop_all()
            return layer

    async def _undo_make(self, name: str) -> None:
        def remove() -> None:
            remove_tree(self._unfinished / name)
            remove_tree(self.path(name))

        await run_to_end(asyncio.to_thread(remove), limit_s=_CLEANUP_LIMIT_S)


@contextlib.asynccontextmanager
async def open_layers(
    store: Store, state: Path, blobs: Blobs, *, workers: int, seconds: Histogram
) -> AsyncIterator[Layers]:
    """The layers in directories below `state`; `sweep()` them once all who need some hold them.

    `seconds` is told how long each unpacking takes. Nothing may run when the block is left.
    """
    for directory in (state / "layers", state / "unfinished"):
        directory.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(state / "unpack.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Workers inherit it, so one that outlives a killed agent by a moment is waited for here.
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        records = await store.all(Layer)
        for gone in [layer for layer in records if not (state / "layers" / layer.id).is_dir()]:
            log.info("a layer is gone from the disk", extra={"layer": gone.id})
            await store.delete(gone, Seams(id=gone.id, implied=(), whited=()))
            records.remove(gone)
        yield Layers(store, state, blobs, records, lock=lock, workers=workers, seconds=seconds)
    finally:
        os.close(lock)


def _make_directory(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)  # a setgid bit of the directory above would be inherited by all in it
    os.chown(path, 0, 0)
