"""Unpacked layers: one directory for each diff id, shared by every image that has it.

A layer stays while something holds it: an image, a pull, a root filesystem. When nothing does, it is deleted.
"""

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import Histogram
from pydantic import ConfigDict

from criw import kernel
from criw.errors import Failed, InvalidArgument
from criw.locks import KeyedLocks
from criw.operations import Operations, run_to_end, together
from criw.store import Record, Store
from criw_storage.blobs import Blobs
from criw_storage.directories import is_gone, make_directory, remove_any, set_aside, spread
from criw_storage.leftovers import Leftovers, in_thread
from criw_storage.slots import Slots
from criw_storage.unpack import Unpacked, unpack
from criw_storage.usage import measure

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


@dataclass
class _Unpacking:
    key: str
    waiting: int = 0
    given_up: bool = False


class Layers:
    """Use `open_layers()`; an instance is good until that block is left."""

    def __init__(
        self,
        store: Store,
        state: Path,
        blobs: Blobs,
        leftovers: Leftovers,
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
        self._leftovers = leftovers
        self._lock = lock
        self._slots = Slots(workers)
        self._unpacking: dict[tuple[str, str], _Unpacking] = {}  # by diff id and blob
        self._unsynced: set[str] = set()  # made, but perhaps only in memory
        self._lost: set[str] = set()  # of these could not be written
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
        for at, unpacking in tuple(self._unpacking.items()):
            if at[0] in released and not self._held[at[0]]:
                unpacking.given_up = True
                self._give_up(at, unpacking)
        await together(*(self._delete(name) for name in released))

    async def _delete(self, name: str) -> None:
        async with self._making.hold(name):  # perhaps it is being unpacked right now
            layer = self.records.get(name)
            if layer is None or self._held[name]:
                return
            del self.records[name]
            self._unsynced.discard(name)
            self._lost.discard(name)
            aside = await in_thread(lambda: set_aside(self.path(name)))
            await self._leftovers.remove(os.fspath(aside), lambda: remove_any(aside))
            await self._store.delete(layer, Seams(id=name, implied=(), whited=()))

    async def sweep(self) -> None:
        """Delete what nobody holds, and what no record knows: what a killed agent left."""
        for name in tuple(self.records):
            await self._leftovers.attempt(f"layer {name}", functools.partial(self._delete, name))
        strange = [*self._unfinished.iterdir()]
        strange += [found for found in self._layers.iterdir() if found.name not in self.records]
        for found in strange:
            await self._leftovers.remove(os.fspath(found), functools.partial(remove_any, found))

    # Making layers

    async def unpack(self, diff_id: str, blob: str, media_type: str, *, image_id: str) -> Layer:
        """The layer of a diff id (hex), unpacked from the blob of that name unless it is there. Hold it first.

        A call for a layer that is being unpacked joins, or waits and finds it made. It is given up when no caller waits
        for it any more or nobody holds it. Raises InvalidArgument for the media type, Failed if it was given up, and
        what `Blobs.opened` and `unpack` raise.
        """
        if MEDIA_TYPE.fullmatch(media_type or "tar") is None:
            raise InvalidArgument(
                f"cannot unpack layer sha256:{diff_id}: its media type {media_type!r} is not one of a tar archive, "
                "plain or compressed with gzip or zstd; the image cannot be run here"
            )

        async def fill(directory: Path) -> Unpacked:
            with self._blobs.opened(blob) as source:  # before waiting for a turn: perhaps there is none
                async with self._slots.hold(image_id):
                    started = time.perf_counter()
                    unpacked = await unpack(source, directory, diff_id, lock=self._lock)
                    self._seconds.observe(time.perf_counter() - started)
            if unpacked.ignored:
                log.info("attributes of a layer were not kept", extra={"layer": diff_id, "names": unpacked.ignored})
            return unpacked

        # By blob as well: what is wrong with one pull's blob is not the answer to another's, which waits its turn.
        at = (diff_id, blob)
        unpacking = self._unpacking.get(at)
        if unpacking is None:  # each with a key of its own, as nobody is to join one that was given up
            unpacking = self._unpacking[at] = _Unpacking(f"unpack {diff_id} {blob} {secrets.token_hex(4)}")
        unpacking.waiting += 1
        try:
            return await self.operations.run(unpacking.key, lambda: self.make(diff_id, fill))
        except asyncio.CancelledError:
            if not unpacking.given_up:
                raise
            raise Failed(
                f"cannot unpack layer sha256:{diff_id}: it was given up, as its image was removed meanwhile; pull again"
            ) from None
        finally:
            unpacking.waiting -= 1
            if not unpacking.waiting:
                self._give_up(at, unpacking)

    def _give_up(self, at: tuple[str, str], unpacking: _Unpacking) -> None:
        if self._unpacking.get(at) is unpacking:
            del self._unpacking[at]
        self.operations.give_up(unpacking.key)

    async def make(self, name: str, fill: Callable[[Path], Awaitable[Unpacked | None]]) -> Layer:
        """The layer `name`, made by `fill` in an empty directory unless it is there.

        If `fill` returns None it is a patch, whose files are other layers' and take no space of its own.
        """
        async with self._making.hold(name):
            if (layer := self.records.get(name)) is not None:
                return layer
            # At random, so that the file system puts each elsewhere: see docs/decisions/0010.
            fresh = self._unfinished / secrets.token_hex(16)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._undo_make, name, fresh)
                await in_thread(lambda: make_directory(fresh))
                unpacked = await fill(fresh)
                measured = await in_thread(lambda: measure(fresh, files=unpacked is not None))
                fresh.rename(self.path(name))
                layer = Layer(id=name, size_bytes=measured.size_bytes, inodes=measured.inodes)
                seams = [Seams(id=name, implied=unpacked.implied, whited=unpacked.whited)] if unpacked else []
                await self._store.put(layer, *seams)
                self.records[name] = layer
                self._unsynced.add(name)
                undo.pop_all()
            return layer

    async def _undo_make(self, name: str, fresh: Path) -> None:
        def remove() -> None:
            remove_any(fresh)
            if name not in self.records:
                remove_any(self.path(name))

        await run_to_end(self._leftovers.remove(os.fspath(fresh), remove), limit_s=_CLEANUP_LIMIT_S)

    async def sync(self, names: Iterable[str]) -> None:
        """Write what is only in memory of these layers. An image is recorded after that, so a power failure cannot
        leave one whose files are not whole; layers of no image are removed at the next start.

        Once for an image: syncfs(2) writes what containers have changed, too. Raises OSError if it cannot be written;
        Failed if that was the answer for one of these layers before, as the kernel tells of it once.
        """
        wanted = frozenset(names)
        if wanted & self._lost:
            raise Failed("cannot use layers that could not be written to the disk; remove the image and pull it again")
        if wanted & self._unsynced:
            written = frozenset(self._unsynced)
            try:
                await in_thread(lambda: kernel.syncfs(self._layers))
            except OSError:
                self._lost |= written & self.records.keys()
                raise
            finally:
                self._unsynced -= written


@contextlib.asynccontextmanager
async def open_layers(
    store: Store, state: Path, blobs: Blobs, leftovers: Leftovers, *, workers: int, seconds: Histogram
) -> AsyncIterator[Layers]:
    """The layers in directories below `state`; `sweep()` them once all who need some hold them.

    `seconds` is told how long each unpacking takes. Nothing may run when the block is left.
    """
    for directory in (state / "layers", state / "unfinished"):
        directory.mkdir(mode=0o700, exist_ok=True)
    spread(state / "unfinished")
    lock = os.open(state / "unpack.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Workers inherit it, so one that outlives a killed agent by a moment is waited for here.
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        records = await store.all(Layer)
        for gone in [layer for layer in records if is_gone(state / "layers" / layer.id)]:
            log.info("a layer is gone from the disk", extra={"layer": gone.id})
            await store.delete(gone, Seams(id=gone.id, implied=(), whited=()))
            records.remove(gone)
        yield Layers(store, state, blobs, leftovers, records, lock=lock, workers=workers, seconds=seconds)
    finally:
        os.close(lock)
