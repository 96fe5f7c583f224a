"""Taking images away: the one a client names, what is left of a pull that failed, and what a killed agent left.

All three are the same thing: the blobs go, storage forgets the image, and the records go last, so that whatever
interrupts it can be done again.
"""

import asyncio
import logging
import shutil
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


async def stored_images(storage: LayersStub) -> set[str]:
    """Ids of the images storage has whole. Raises Unavailable."""
    reply = await call(storage.list_images, ListImagesRequest(), timeout_s=_STORAGE_TIMEOUT_S, agent=STORAGE)
    return set(reply.image_ids)


class Removal:
    """`blobs` holds a directory for each pull that is running."""

    def __init__(self, *, catalogue: Catalogue, claims: Claims, storage: LayersStub, blobs: Path) -> None:
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

        What cannot be undone now stays recorded as unfinished, for the next pull of the image or the next start.
        """
        try:
            await run_to_end(self._dispose(image_id), limit_s=_LIMIT_S)
        except (Fault, OSError, TimeoutError) as err:
            log.warning("cannot undo a pull now; it is done at the next start", extra={"id": image_id, "error": err})

    async def recover(self) -> None:
        """Undo what a killed agent left, and make our records and storage's agree. Leaves alone what others work on.

        Raises Unavailable if storage cannot be reached.
        """
        self._claims.sweep()
        unfinished = set(await self._catalogue.unfinished())
        recorded = set((await self._catalogue.snapshot()).images)
        suspicious = unfinished | (recorded ^ await stored_images(self._storage))
        for image_id in sorted(suspicious):
            async with self._claims.hold_if_free(image_id) as free:
                # Read again: until we had the claim, another instance may have finished its work on the image.
                if free and not await self._sound(image_id):
                    log.warning("removing what is left of an image", extra={"id": image_id})
                    await self._dispose(image_id)
        for directory in self._blobs.iterdir():
            async with self._claims.hold_if_free(directory.name) as free:
                if free:
                    await asyncio.to_thread(shutil.rmtree, directory)

    async def _sound(self, image_id: str) -> bool:
        recorded = image_id in (await self._catalogue.snapshot()).images
        return (
            recorded
            and image_id in await stored_images(self._storage)
            and image_id not in await self._catalogue.unfinished()
        )

    async def _dispose(self, image_id: str) -> None:
        directory = self.blob_directory(image_id)
        if directory.exists():
            await asyncio.to_thread(shutil.rmtree, directory)
        await call(
            self._storage.remove_image,
            RemoveImageRequest(image_id=image_id),
            timeout_s=_STORAGE_TIMEOUT_S,
            agent=STORAGE,
        )
        await self._catalogue.abandon(image_id)
