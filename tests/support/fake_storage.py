"""The storage agent's Layers without a disk, behind a real socket: for tests that need it to fail, wait or forget.

It reads blobs by the real agent's own rules and parser, and keeps only their digests and sizes. What it promises is
held to the real agent in tests/unit/criw_storage/test_contract.py.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from criw.errors import DataLoss, FailedPrecondition, Fault, InvalidArgument
from criw.rpc.client import Channel
from criw_proto.criw.storage.v1 import (
    CommitImageRequest,
    CommitImageResponse,
    LayersBase,
    ListImagesRequest,
    ListImagesResponse,
    RemoveImageRequest,
    RemoveImageResponse,
    UnpackLayerRequest,
    UnpackLayerResponse,
)
from criw_storage.blobs import Blobs
from criw_storage.layers import MEDIA_TYPE
from criw_storage.worker.stream import Refused, Stream, uncompressed
from criw_storage.worker.tar import entries
from support.serving import serving

_LIMIT_BYTES = 2**30


class FakeStorage(LayersBase):
    """`calls` are the requests answered or refused, in order. `fail[method]` is raised by its next call."""

    def __init__(self, blobs: Path) -> None:
        self.layers: dict[str, int] = {}
        self.held: dict[str, set[str]] = {}
        self.images: dict[str, tuple[str, ...]] = {}
        self.calls: list[object] = []
        self.fail: dict[str, Fault] = {}
        self.unpacked: list[str] = []
        self.may_unpack = asyncio.Event()
        self.may_unpack.set()
        self.unpacking = asyncio.Event()
        self._blobs = Blobs(blobs, owner=os.geteuid())

    def forget_uncommitted(self) -> None:
        """What a restart of the agent does."""
        self.held.clear()
        self._collect()

    def _collect(self) -> None:
        used = {diff_id for ids in (*self.held.values(), *self.images.values()) for diff_id in ids}
        self.layers = {diff_id: size for diff_id, size in self.layers.items() if diff_id in used}

    def _called(self, method: str, message: object) -> None:
        self.calls.append(message)
        if (fault := self.fail.pop(method, None)) is not None:
            raise fault

    async def unpack_layer(self, message: UnpackLayerRequest) -> UnpackLayerResponse:
        self._called("unpack_layer", message)
        if MEDIA_TYPE.fullmatch(message.media_type) is None:
            raise InvalidArgument(f"cannot unpack {message.diff_id}: its media type is {message.media_type!r}")
        if message.diff_id not in self.layers:
            with self._blobs.opened(message.blob) as blob:
                self.unpacking.set()
                await self.may_unpack.wait()
                self.layers[message.diff_id] = _size(blob, message.diff_id)
            self.unpacked.append(message.diff_id)
        self.held.setdefault(message.image_id, set()).add(message.diff_id)
        return UnpackLayerResponse(size_bytes=self.layers[message.diff_id])

    async def commit_image(self, message: CommitImageRequest) -> CommitImageResponse:
        self._called("commit_image", message)
        if any(diff_id not in self.layers for diff_id in message.diff_ids):
            raise FailedPrecondition(f"cannot commit {message.image_id}: a layer is not unpacked")
        self.images[message.image_id] = tuple(message.diff_ids)
        self.held.pop(message.image_id, None)
        self._collect()
        return CommitImageResponse(size_bytes=sum(self.layers[diff_id] for diff_id in set(message.diff_ids)))

    async def remove_image(self, message: RemoveImageRequest) -> RemoveImageResponse:
        self._called("remove_image", message)
        self.held.pop(message.image_id, None)
        self.images.pop(message.image_id, None)
        self._collect()
        return RemoveImageResponse()

    async def list_images(self, message: ListImagesRequest) -> ListImagesResponse:
        self._called("list_images", message)
        return ListImagesResponse(image_ids=sorted(self.images))


def _size(blob: int, diff_id: str) -> int:
    """Bytes of a whole layer of that diff id."""
    stream = Stream(uncompressed(blob), limit=_LIMIT_BYTES)
    try:
        for _ in entries(stream):
            pass
    except Refused as err:
        raise InvalidArgument(f"cannot unpack {diff_id}: {err}") from err
    if f"sha256:{stream.digest()}" != diff_id:
        raise DataLoss(f"cannot unpack {diff_id}: the layer has another digest")
    return stream.position


@contextlib.asynccontextmanager
async def running_storage(storage: LayersBase, socket: Path) -> AsyncIterator[Channel]:
    """Serve it at `socket`; a connection to it."""
    async with serving(socket, storage):
        with contextlib.closing(Channel(socket)) as channel:
            yield channel
