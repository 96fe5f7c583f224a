"""Images: chains of layers, and the pulls that are on their way to become one."""

import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from criw.errors import FailedPrecondition, InvalidArgument
from criw.locks import KeyedLocks
from criw.operations import Operations
from criw.store import Record, Store
from criw_storage import chain, overlay
from criw_storage.layers import Layers
from criw_storage.leftovers import in_thread
from criw_storage.view import Steps, is_opaque

_DIFF_ID: Final = re.compile(r"sha256:([0-9a-f]{64})")


class Claim(Record):
    """The layers unpacked so far for an image that is not committed: `id` is the image's."""

    kind: ClassVar[str] = "claim"
    layers: tuple[str, ...]


class Image(Record):
    """A committed image. All names are of `Layers`, lowest first.

    `layers` are the image's own, each once; `stack` is what is mounted: they and the patches between them. `root` is
    the one that tells how the root directory looks, "" if none does.
    """

    kind: ClassVar[str] = "image"
    layers: tuple[str, ...]
    stack: tuple[str, ...]
    root: str

    @property
    def holds(self) -> frozenset[str]:
        """The layers it keeps."""
        return frozenset(self.layers + self.stack)


class Images:
    """All images. `load()` comes before everything else."""

    def __init__(self, store: Store, layers: Layers) -> None:
        self.records: dict[str, Image] = {}
        self.operations = Operations()
        self._store = store
        self._layers = layers
        self._claims: dict[str, set[str]] = {}
        self._locks = KeyedLocks()

    async def load(self) -> None:
        """Read the records; forget pulls that were under way, and images that lost a layer."""
        await self._store.delete(*await self._store.all(Claim))
        for image in await self._store.all(Image):
            if image.holds <= self._layers.records.keys():
                self.records[image.id] = image
                self._layers.hold(image.holds)
            else:
                await self._store.delete(image)

    async def unpack(self, image_id: str, diff_id: str, blob: str, media_type: str) -> int:
        """Unpack a layer for an image about to be committed; its disk space in bytes.

        Raises what `Layers.unpack` does, and InvalidArgument for a malformed id.
        """
        name = _name_of(diff_id)
        _check_id(image_id)
        claimed = self._claims.setdefault(image_id, set())
        if name not in claimed:
            _check_number(image_id, len(claimed) + 1)
            claimed.add(name)
            self._layers.hold([name])
            await self._store.put(Claim(id=image_id, layers=tuple(sorted(claimed))))
        layer = await self._layers.unpack(name, blob, media_type, image_id=image_id)
        return layer.size_bytes

    async def commit(self, image_id: str, diff_ids: Sequence[str]) -> int:
        """Record an image as a chain of layers, lowest first; the disk space of all its layers in bytes.

        Raises FailedPrecondition if a layer is not there, InvalidArgument if they are more than can be mounted.
        """
        # A layer that comes twice changes nothing the first time that it does not change the second time.
        names = tuple(dict.fromkeys(_name_of(diff_id) for diff_id in reversed(diff_ids)))[::-1]
        _check_id(image_id)
        _check_number(image_id, len(names))
        return await self.operations.run(f"commit {image_id}", lambda: self._commit(image_id, names))

    async def _commit(self, image_id: str, names: tuple[str, ...]) -> int:
        async with self._locks.hold(image_id), AsyncExitStack() as undo:
            missing = [name for name in names if name not in self._layers.records]
            if missing:
                raise FailedPrecondition(
                    f"cannot commit image {image_id}: layer sha256:{missing[0]} is not unpacked; unpack it first"
                )
            self._layers.hold(names)
            undo.push_async_callback(self._layers.release, names)
            image = await self._put_together(image_id, names, undo)
            await self._layers.sync(image.holds)
            await self._store.commit(put=[image], delete=[Claim(id=image_id, layers=())])
            undo.pop_all()
            replaced = self.records.get(image_id)
            self.records[image_id] = image
            await self._layers.release(self._claims.pop(image_id, ()))
            await self._layers.release(replaced.holds if replaced else ())
            return self._layers.size_bytes(names)

    async def _put_together(self, image_id: str, names: tuple[str, ...], undo: AsyncExitStack) -> Image:
        """The image's record. The patches it needs are made, and held until `undo`."""
        stack: list[str] = []
        root = ""
        steps = Steps()
        seen = await in_thread(lambda: self._visible(names))
        for number, name in enumerate(seen, start=1):
            below = [self._layers.path(lower) for lower in stack]
            stack.append(name)
            seams = await self._layers.seams(name)
            if seams is None:
                continue
            if b"" not in seams.implied:
                root = name
            planning = partial(chain.plan, below, self._layers.path(name), seams.implied, seams.whited, steps)
            patch = await in_thread(planning)
            if patch:
                above = chain.patch_name(seen[:number])
                self._layers.hold([above])
                undo.push_async_callback(self._layers.release, [above])
                await self._layers.make(above, partial(_fill, patch))
                stack.append(above)
        _check_number(image_id, len(stack))
        return Image(id=image_id, layers=names, stack=tuple(stack), root=root)

    def _visible(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Without those below a layer whose root is opaque: overlayfs does not look at this mark of a root."""
        for number in range(len(names) - 1, 0, -1):
            if is_opaque(self._layers.path(names[number])):
                return names[number:]
        return names

    async def remove(self, image_id: str) -> None:
        """Forget an image, committed or not, and delete the layers that nothing else needs."""
        await self.operations.run(f"remove {image_id}", lambda: self._remove(image_id))

    async def _remove(self, image_id: str) -> None:
        async with self._locks.hold(image_id):
            image = self.records.pop(image_id, None)
            await self._layers.release([*(image.holds if image else ()), *self._claims.pop(image_id, ())])
            # Last, see `set_aside`; and even if it is not known: an earlier attempt may have come this far.
            await self._store.delete(_unfilled(image_id), Claim(id=image_id, layers=()))


def _unfilled(image_id: str) -> Image:
    """What stands for the record of that id where it is to be deleted."""
    return Image(id=image_id, layers=(), stack=(), root="")


async def _fill(patch: chain.Patch, directory: Path) -> None:
    await in_thread(lambda: chain.build(directory, patch))


def _name_of(diff_id: str) -> str:
    match = _DIFF_ID.fullmatch(diff_id)
    if match is None:
        raise InvalidArgument(f"cannot use {diff_id!r} as a diff id: it must be sha256: and 64 hex digits")
    return match[1]


def _check_number(image_id: str, layers: int) -> None:
    limit = overlay.most_layers()
    if layers > limit:
        raise InvalidArgument(
            f"cannot use image {image_id}: with what joins them it has {layers} layers or more, and this kernel mounts "
            f"at most {limit} on each other; rebuild the image with fewer"
        )


def _check_id(image_id: str) -> None:
    if not image_id:
        raise InvalidArgument("cannot use an image without an id: set image_id")
