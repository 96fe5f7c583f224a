"""Root filesystems of containers: a writable layer mounted over an image's layers."""

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from criw import kernel
from criw.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from criw.ids import is_id
from criw.locks import KeyedLocks
from criw.mountinfo import mounts_below
from criw.operations import Operations, run_to_end
from criw.store import Record, Store
from criw_storage import overlay
from criw_storage.directories import is_gone, remove_any, set_aside, spread
from criw_storage.images import Images
from criw_storage.layers import Layers
from criw_storage.leftovers import Leftovers, in_thread
from criw_storage.usage import Measured, Usage, measure

_CLEANUP_LIMIT_S: Final = 600.0


class Rootfs(Record):
    """One root filesystem over `stack` (names of layers, lowest first). One not `ready` is being made or removed."""

    kind: ClassVar[str] = "rootfs"
    image_id: str
    stack: tuple[str, ...]
    ready: bool


class RootFilesystems:
    """Mounts below `run`, writable layers below `state`. `load()` and `sweep()` come before everything else.

    `closing` is where the last reference to an unmounted overlay is dropped (see `_take_away`).
    """

    def __init__(
        self,
        store: Store,
        layers: Layers,
        images: Images,
        usage: Usage,
        leftovers: Leftovers,
        *,
        state: Path,
        run: Path,
        closing: ThreadPoolExecutor,
    ) -> None:
        self.records: dict[str, Rootfs] = {}
        self.operations = Operations()
        self._store = store
        self._layers = layers
        self._images = images
        self._usage = usage
        self._leftovers = leftovers
        self._writable = state / "rootfs"
        self._nothing = state / "empty"  # the lower layer of an image without any: overlayfs demands one
        self._mounts = run / "rootfs"
        self._closing = closing
        self._locks = KeyedLocks()

    async def load(self) -> None:
        """Read the records. Those without a mount (after a reboot) stay until they are mounted again or removed."""
        for directory in (self._writable, self._nothing, self._mounts):
            # Closed to others, as a set-uid program in some image is no business of the host's users.
            directory.mkdir(mode=0o700, exist_ok=True)
        spread(self._writable)
        for record in await self._store.all(Rootfs):
            self.records[record.id] = record
            self._layers.hold(record.stack)
            self._usage.watch(record.id, self._upper(record.id))

    async def sweep(self) -> None:
        """Remove what was half made or half removed, and mounts and directories that no record knows."""
        for record in tuple(self.records.values()):
            if not record.ready or is_gone(self._writable / record.id):
                await self._leftovers.attempt(f"root filesystem {record.id}", partial(self._remove, record.id))
        mounts = self._mounts.resolve()  # as the kernel calls it: /var/run is a link on many hosts
        for mount in mounts_below(mounts):
            if mount != mounts and mount.relative_to(mounts).parts[0] not in self.records:
                await self._leftovers.remove(f"mount {mount}", partial(_unmount, mount))
        for found in (*self._mounts.iterdir(), *self._writable.iterdir()):
            if found.name not in self.records:
                await self._leftovers.remove(os.fspath(found), partial(remove_any, found))

    async def create(self, rootfs_id: str, image_id: str) -> Path:
        """The mounted root filesystem, made if there is none.

        Raises NotFound for an unknown image, AlreadyExists if it is there with another one.
        """
        if not is_id(rootfs_id):
            raise InvalidArgument(f"cannot use {rootfs_id!r} as the id of a root filesystem: give 64 hex digits")
        await self.operations.run(f"create {rootfs_id} {image_id}", lambda: self._create(rootfs_id, image_id))
        return self._mounts / rootfs_id

    async def _create(self, rootfs_id: str, image_id: str) -> None:
        async with self._locks.hold(rootfs_id):
            record = self.records.get(rootfs_id)
            if record is None:
                await self._create_new(rootfs_id, image_id)
            elif record.image_id != image_id:
                raise AlreadyExists(
                    f"cannot make root filesystem {rootfs_id} of image {image_id}: it is there, of image "
                    f"{record.image_id}; remove it first"
                )
            elif not record.ready:
                raise FailedPrecondition(
                    f"cannot make root filesystem {rootfs_id}: an earlier one is not quite removed; remove it again"
                )
            elif not (self._mounts / rootfs_id).is_mount():
                await in_thread(lambda: self._mount(record))

    async def _create_new(self, rootfs_id: str, image_id: str) -> None:
        image = self._images.records.get(image_id)
        if image is None:
            raise NotFound(f"cannot make a root filesystem of image {image_id}: there is no such image; pull it")
        record = Rootfs(id=rootfs_id, image_id=image_id, stack=image.stack, ready=False)
        ready = record.model_copy(update={"ready": True})
        self._layers.hold(record.stack)
        self.records[rootfs_id] = record
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._undo_create, rootfs_id)
            await self._store.commit(create=[record])
            root = self._layers.path(image.root) if image.root else None
            measured = await in_thread(lambda: self._make(record, root))
            await self._store.put(ready)
            undo.pop_all()
        self.records[rootfs_id] = ready
        self._usage.watch(rootfs_id, self._upper(rootfs_id), measured)

    def _upper(self, rootfs_id: str) -> Path:
        return self._writable / rootfs_id / "upper"

    def _make(self, record: Rootfs, root: Path | None) -> Measured:
        directory = self._writable / record.id
        directory.mkdir(mode=0o700)
        (directory / "work").mkdir(mode=0o700)
        upper = self._upper(record.id)
        upper.mkdir(mode=0o755)
        os.chown(upper, 0, 0)
        if root is not None:
            like = root.stat()
            os.chown(upper, like.st_uid, like.st_gid)
            upper.chmod(stat.S_IMODE(like.st_mode))
        self._mount(record)
        return measure(upper)

    def _mount(self, record: Rootfs) -> None:
        target = self._mounts / record.id
        target.mkdir(mode=0o700, exist_ok=True)
        lower = [self._layers.path(name) for name in record.stack] or [self._nothing]
        overlay.mount(target, lower, upper=self._upper(record.id), work=self._writable / record.id / "work")

    async def remove(self, rootfs_id: str) -> None:
        """Unmount and delete a root filesystem with all that was written to it; an unknown id is no error."""
        await self.operations.run(f"remove {rootfs_id}", lambda: self._remove(rootfs_id))

    async def _remove(self, rootfs_id: str) -> None:
        async with self._locks.hold(rootfs_id):
            await self._remove_locked(rootfs_id)

    async def _remove_locked(self, rootfs_id: str) -> None:
        record = self.records.get(rootfs_id)
        if record is not None:
            self.records[rootfs_id] = record.model_copy(update={"ready": False})
            self._usage.forget(rootfs_id)
            aside = await in_thread(lambda: self._take_away(rootfs_id))
            await self._leftovers.remove(os.fspath(aside), lambda: remove_any(aside))
            del self.records[rootfs_id]
            await self._layers.release(record.stack)
        # Last, see `set_aside`; and even if it is not known: an earlier attempt may have come this far.
        await self._store.delete(Rootfs(id=rootfs_id, image_id="", stack=(), ready=False))

    async def _undo_create(self, rootfs_id: str) -> None:
        await run_to_end(self._remove_locked(rootfs_id), limit_s=_CLEANUP_LIMIT_S)

    def _take_away(self, rootfs_id: str) -> Path:
        """Unmount, and put aside what was written; it is gone with the first step, see `set_aside`. Where it is then.

        The end of an overlay writes back everything in memory of the file system below it, other containers' data
        included, before umount(2) returns. So it is only taken out of the mount tree here, held by a descriptor, and
        ends when another thread closes that.
        """
        aside = set_aside(self._writable / rootfs_id)
        target = self._mounts / rootfs_id
        with kernel.suppress_errno(errno.ENOENT):
            held = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with kernel.suppress_errno(errno.EINVAL):  # not mounted (any more)
                    while True:
                        kernel.umount2(target, flags=kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
            finally:
                self._closing.submit(os.close, held)
            target.rmdir()
        return aside


def _unmount(mount: Path) -> None:
    with kernel.suppress_errno(errno.EINVAL, errno.ENOENT):  # it is no mount any more
        kernel.umount2(mount, flags=kernel.MNT_DETACH | kernel.UMOUNT_NOFOLLOW)
