"""Pulling an image: manifest, configuration, layers side by side into storage, and the record at the end.

Each layer is downloaded, handed to storage and deleted again while others are still coming. Storage is asked for a
layer before it is downloaded: what any image here has already is not fetched again.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from prometheus_client import Counter

from criw.config.image import ImageSection
from criw.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from criw.operations import run_to_end
from criw.rpc.client import call
from criw_image.catalogue import Catalogue, DocumentsRecord, ImageRecord
from criw_image.claims import Claims
from criw_image.manifest import (
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    choose,
    parse_config,
)
from criw_image.platforms import machine_platforms
from criw_image.reference import Reference
from criw_image.removal import STORAGE, Removal, stored_images
from criw_image.source import Document, Source
from criw_image.transport import Http
from criw_proto.criw.image.v1 import LayerProgress, LayerState
from criw_proto.criw.storage.v1 import CommitImageRequest, LayersStub, UnpackLayerRequest
from criw_proto.runtime.v1 import AuthConfig

log = logging.getLogger(__name__)
_UNPACK_TIMEOUT_S: Final = 900.0  # the largest layers there are, on a slow disk, with others before them
_COMMIT_TIMEOUT_S: Final = 120.0
_COMMIT_ATTEMPTS: Final = 10  # each is one restart of the storage agent in the middle of the pull
_INDEX_DEPTH: Final = 3
_RECORD_LIMIT_S: Final = 60.0


class Puller:
    """Pulls one image at a time per image id; the claims keep other instances out."""

    def __init__(
        self,
        *,
        http: Http,
        catalogue: Catalogue,
        claims: Claims,
        storage: LayersStub,
        removal: Removal,
        section: ImageSection,
        downloaded: Counter,
    ) -> None:
        self._http = http
        self._catalogue = catalogue
        self._claims = claims
        self._storage = storage
        self._removal = removal
        self._parallel = section.parallel_downloads
        self._downloaded = downloaded
        self._runs = machine_platforms()

    async def pull(self, reference: Reference, auth: AuthConfig | None, layers: list[LayerProgress]) -> str:
        """Pull an image; its id. `layers` is filled and kept up to date on the way.

        The registry is asked with the credentials given even if the image is here already. Raises the faults of
        `Source`, `parse_manifest` and storage's UnpackLayer; then nothing is left of the pull.
        """
        source = Source(self._http, reference, auth)
        if (known := await self._known(source, reference)) is not None:
            return known
        top = await source.manifest()
        manifest, document = await self._manifest(source, reference, top, depth=_INDEX_DEPTH)
        image_id = manifest.config.digest
        async with self._claims.hold(image_id):
            if await self._here(image_id):
                await self._catalogue.name(image_id, reference, top.digest)
            else:
                await self._fetch(source, reference, top, manifest, document, layers)
        log.info("image pulled", extra={"image": str(reference), "id": image_id})
        return image_id

    async def _known(self, source: Source, reference: Reference) -> str | None:
        """The id of the image, if a digest of it that we have is what is meant by the name now.

        The digest is one its content had when it was pulled.
        """
        names = (await self._catalogue.snapshot()).by_name
        if not any(name.startswith(f"{reference.name}@") for name in names):
            return None
        digest = await source.head()
        image_id = names.get(f"{reference.name}@{digest}")
        if image_id is None:
            return None
        async with self._claims.hold(image_id):
            if not await self._here(image_id):
                return None
            await self._catalogue.name(image_id, reference, digest)
        return image_id

    async def _here(self, image_id: str) -> bool:
        """Whether the image is recorded and storage has it: should storage have lost it, it is pulled again."""
        recorded = image_id in (await self._catalogue.snapshot()).images
        return recorded and image_id in await stored_images(self._storage)

    async def _manifest(
        self, source: Source, reference: Reference, document: Document, *, depth: int
    ) -> tuple[Manifest, Document]:
        """The manifest for this machine, itself or through an index of up to `depth` levels."""
        if not isinstance(document.parsed, Index):
            return document.parsed, document
        if depth == 1:
            raise InvalidArgument(f"cannot pull {reference}: it is an index of indexes of indexes")
        candidates = choose(document.parsed, what=str(reference), runs=self._runs)
        refusal: NotFound | None = None
        for candidate in candidates:
            try:
                found = await self._manifest(source, reference, await source.manifest(candidate), depth=depth - 1)
                if len(candidates) > 1:
                    await self._config(source, reference, found[0])
            except NotFound as err:  # its configuration tells another platform, or it is gone
                refusal = err
            else:
                return found
        assert refusal is not None
        raise refusal

    async def _config(self, source: Source, reference: Reference, manifest: Manifest) -> ImageConfig:
        text = await source.small_blob(manifest.config)
        return parse_config(text, len(manifest.layers), what=str(reference), runs=self._runs)

    async def _fetch(
        self,
        source: Source,
        reference: Reference,
        top: Document,
        manifest: Manifest,
        document: Document,
        layers: list[LayerProgress],
    ) -> None:
        image_id = manifest.config.digest
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._removal.undo, image_id)
            await self._catalogue.begin(image_id)
            config = await self._config(source, reference, manifest)
            size_bytes = await self._unpack(source, manifest, config, layers)
            record = ImageRecord(
                id=image_id,
                # The documents count, too: no image has size 0, which the kubelet takes for an error.
                size_bytes=size_bytes + manifest.config.size + len(document.data),
                diff_ids=config.diff_ids,
                user=config.user,
            )
            documents = DocumentsRecord(id=image_id, config=config.text, manifest=document.data.decode())

            async def finish() -> None:
                await self._catalogue.finish(record, documents, reference, top.digest)
                undo.pop_all()  # recorded: from here on a cancellation comes too late

            await run_to_end(finish(), limit_s=_RECORD_LIMIT_S)

    async def _unpack(
        self, source: Source, manifest: Manifest, config: ImageConfig, layers: list[LayerProgress]
    ) -> int:
        """Get all layers into storage, and commit them as the image. Bytes on disk."""
        image_id = manifest.config.digest
        directory = self._removal.blob_directory(image_id)
        await asyncio.to_thread(_make_empty, directory)
        layers[:] = [LayerProgress(digest=one.digest, total_bytes=one.size) for one in manifest.layers]
        for attempt in range(1, _COMMIT_ATTEMPTS + 1):
            await self._unpack_layers(source, manifest, config, directory, layers)
            try:
                size_bytes = await self._commit(image_id, config.diff_ids)
                break
            except FailedPrecondition as err:  # storage was started again and has forgotten what was not committed
                if attempt == _COMMIT_ATTEMPTS:
                    raise Unavailable(f"cannot pull image {image_id}: {STORAGE} keeps being started again") from err
        await asyncio.to_thread(shutil.rmtree, directory)
        return size_bytes

    async def _unpack_layers(
        self, source: Source, manifest: Manifest, config: ImageConfig, directory: Path, layers: list[LayerProgress]
    ) -> None:
        slots = asyncio.Semaphore(self._parallel)
        first_with: dict[str, int] = {}
        for number, diff_id in enumerate(config.diff_ids):
            first_with.setdefault(diff_id, number)
        try:
            async with asyncio.TaskGroup() as tasks:
                for diff_id, number in first_with.items():
                    request = UnpackLayerRequest(
                        image_id=manifest.config.digest,
                        diff_id=diff_id,
                        blob=f"{directory.name}/{number}",
                        media_type=manifest.layers[number].media_type,
                    )
                    path = directory / str(number)
                    layer = self._layer(source, manifest.layers[number], path, request, layers[number], slots)
                    tasks.create_task(layer, name=f"layer {diff_id}")
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the others are its consequences, or would be told next time
        for number, diff_id in enumerate(config.diff_ids):
            layers[number].state = layers[first_with[diff_id]].state
            layers[number].done_bytes = layers[number].total_bytes

    async def _layer(
        self,
        source: Source,
        descriptor: Descriptor,
        path: Path,
        request: UnpackLayerRequest,
        progress: LayerProgress,
        slots: asyncio.Semaphore,
    ) -> None:
        with contextlib.suppress(NotFound):  # of the blob, which is not there yet: storage does not have the layer
            await self._unpack_layer(request)
            progress.state, progress.done_bytes = LayerState.DONE, progress.total_bytes
            return
        async with slots:
            progress.state = LayerState.DOWNLOADING
            await source.download(descriptor, path, self._teller(progress))
        progress.state = LayerState.UNPACKING
        try:
            await self._unpack_layer(request)
        except NotFound:  # of a blob of another pull, which asked for the same layer before its download
            await self._unpack_layer(request)
        path.unlink()
        progress.state = LayerState.DONE

    def _teller(self, progress: LayerProgress) -> Callable[[int], None]:
        def tell(done_bytes: int) -> None:
            self._downloaded.inc(max(0, done_bytes - progress.done_bytes))
            progress.done_bytes = done_bytes

        return tell

    async def _unpack_layer(self, request: UnpackLayerRequest) -> None:
        await call(self._storage.unpack_layer, request, timeout_s=_UNPACK_TIMEOUT_S, agent=STORAGE)

    async def _commit(self, image_id: str, diff_ids: tuple[str, ...]) -> int:
        request = CommitImageRequest(image_id=image_id, diff_ids=list(diff_ids))
        reply = await call(self._storage.commit_image, request, timeout_s=_COMMIT_TIMEOUT_S, agent=STORAGE)
        return reply.size_bytes


def _make_empty(directory: Path) -> None:
    if directory.exists():  # of a pull that was killed
        shutil.rmtree(directory)
    directory.mkdir()
