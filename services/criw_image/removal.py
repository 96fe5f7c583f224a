"""Taking images away: the one a client names, what is left of a pull that failed, and what a killed agent left.

All three are the same thing: the blobs go, storage forgets the image, and the records go last, so that whatever
interrupts it can be done again. What cannot be done now is done again in the background, with growing pauses.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from criw.errors import Fault
from criw.operations import run_to_end
from criw.rpc.client import call
from criw_image.catalogue import Catalogue
from criw_image.claims import Claims
from criw_proto.criw.storage.v1 import LayersStub, ListImagesRequest, RemoveImageRequest

log = logging.getLogger(__name__)
STORAGE: Final = "criw-storage"
_STORAGE_TIMEOUT_S: Final = 60.0
_LIMIT_S: Final = 2 * _STORAGE_TIMEOUT_S
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0


async def stored_images(storage: LayersStub) -> set[str]:
    """Ids of the images storage has whole. Raises Unavailable."""
    reply = await call(storage.list_images, ListImagesRequest(), timeout_s=_STORAGE_TIMEOUT_S, agent=STORAGE)
    return set(reply.image_ids)


class Removal:
    """`blobs` holds a directory for each pull that is running. `failures` is how much could not be removed yet."""

    def __init__(self, *, catalogue: Catalogue, claims: Claims, storage: LayersStub, blobs: Path) -> None:
        self.failures = 0
        self._failed = asyncio.Event()
        self._catalogue = catalogue
        self._claims = claims
        self._storage = storage
        self._blobs = blobs

    def blob_directory(self, image_id: str) -> Path:
        """Where the blobs of the pull of an image are. Storage is told their paths below `blobs`."""
        return self._blobs / image_id.replace(":", "-")

    async def remove(self, text: str) -> None:
        """Remove an image with all its names. One that is not there is a success.

        Raises NotFound if `text` is the beginning of several ids, Unavailable if storage cannot be reached.
        """
        found = await self._catalogue.find(text)
        if found is None:
            return
        async with self._claims.hold(found.id):
            if found.id in (await self._catalogue.snapshot()).images:
                await run_to_end(self._dispose(found.id), limit_s=_LIMIT_S)
                log.info("image removed", extra={"image": text, "id": found.id})

    async def undo(self, image_id: str) -> None:
        """Leave nothing of a pull, even while the caller is being cancelled. The caller holds the image's claim.

        What cannot be undone now stays recorded as unfinished, for `run`, the next pull of the image or the next start.
        """
        with self._guarded(image_id):
            await run_to_end(self._dispose(image_id), limit_s=_LIMIT_S)

    async def recover(self) -> None:
        """Undo what a killed agent left, and make our records and storage's agree. Leaves alone what others work on.

        What cannot be undone keeps neither the rest of it nor the caller: it is left to `run`.
        """
        self.failures = 0
        self._failed.clear()
        with self._guarded("claims"):
            self._claims.sweep()
        with self._guarded("records"):
            unfinished = set(await self._catalogue.unfinished())
            recorded = set((await self._catalogue.snapshot()).images)
            for image_id in sorted(unfinished | (recorded ^ await stored_images(self._storage))):
                with self._guarded(image_id):
                    await self._recover_image(image_id)
        with self._guarded("blobs"):
            for path in sorted(self._blobs.iterdir()):
                with self._guarded(path.name):
                    await self._recover_blobs(path)

    async def run(self) -> None:
        """Do again what could not be done, with growing pauses, for ever."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._failed.wait()
            await asyncio.sleep(pause_s)
            await self.recover()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if self.failures else _FIRST_PAUSE_S

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except (Fault, OSError) as err:  # TimeoutError is an OSError
            self.failures += 1
            self._failed.set()
            log.warning("cannot remove what is left of an image; trying again", extra={"id": what, "error": str(err)})

    async def _recover_image(self, image_id: str) -> None:
        async with self._claims.hold_if_free(image_id) as free:
            # Read again: until we had the claim, another task or instance may have finished its work on the image.
            if free and not await self._sound(image_id):
                log.warning("removing what is left of an image", extra={"id": image_id})
                await self._dispose(image_id)

    async def _recover_blobs(self, path: Path) -> None:
        async with self._claims.hold_if_free(path.name) as free:
            if free:
                await asyncio.to_thread(_remove, path)

    async def _sound(self, image_id: str) -> bool:
        recorded = image_id in (await self._catalogue.snapshot()).images
        return (
            recorded
            and image_id in await stored_images(self._storage)
            and image_id not in await self._catalogue.unfinished()
        )

    async def _dispose(self, image_id: str) -> None:
        await asyncio.to_thread(_remove, self.blob_directory(image_id))
        await call(
            self._storage.remove_image,
            RemoveImageRequest(image_id=image_id),
            timeout_s=_STORAGE_TIMEOUT_S,
            agent=STORAGE,
        )
        await self._catalogue.abandon(image_id)


def _remove(path: Path) -> None:
    """A directory with all it has, or whatever else is there; nothing is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
