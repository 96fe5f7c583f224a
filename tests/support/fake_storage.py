"""Storage in memory, behind a real gRPC socket: for tests that need it to fail, to wait, or to forget on demand.

It checks the layers it is given, as the real agent does, and keeps only their digests and sizes.
"""

import asyncio
import contextlib
import gzip
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import zstandard

from criw.errors import DataLoss, FailedPrecondition, Fault, NotFound
from criw.metrics import Metrics
from criw.rpc.client import Channel
from criw.rpc.server import Server
from criw_proto.criw.storage.v1 import (
    CommitImageRequest,
    CommitImageResponse,
    DiskUsage,
    ListImagesRequest,
    ListImagesResponse,
    RemoveImageRequest,
    RemoveImageResponse,
    RootfsUsage,
    StorageBase,
    UnpackLayerRequest,
    UnpackLayerResponse,
    UsageRequest,
    UsageResponse,
)


class FakeStorage(StorageBase):
    """`calls` are the requests answered or refused, in order. `fail[method]` is raised by its next call."""

    def __init__(self) -> None:
        self.layers: dict[str, int] = {}
        self.held: dict[str, set[str]] = {}
        self.images: dict[str, tuple[str, ...]] = {}
        self.calls: list[object] = []
        self.fail: dict[str, Fault] = {}
        self.unpacked: list[str] = []
        self.may_unpack = asyncio.Event()
        self.may_unpack.set()
        self.unpacking = asyncio.Event()

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
        if message.diff_id not in self.layers:
            path = Path(message.blob_path)
            if not path.exists():
                raise NotFound(f"cannot unpack {message.diff_id}: there is no blob {path}")
            self.unpacking.set()
            await self.may_unpack.wait()
            tar = _uncompressed(path.read_bytes(), message.media_type)
            if f"sha256:{hashlib.sha256(tar).hexdigest()}" != message.diff_id:
                raise DataLoss(f"cannot unpack {message.diff_id}: the layer has another digest")
            self.layers[message.diff_id] = len(tar)
            self.unpacked.append(message.diff_id)
        self.held.setdefault(message.image_id, set()).add(message.diff_id)
        return UnpackLayerResponse(size_bytes=self.layers[message.diff_id])

    async def commit_image(self, message: CommitImageRequest) -> CommitImageResponse:
        self._called("commit_image", message)
        if any(diff_id not in self.layers for diff_id in message.diff_ids):
            raise FailedPrecondition(f"cannot commit {message.image_id}: a layer is not unpacked")
        self.images[message.image_id] = tuple(message.diff_ids)
        self.held.pop(message.image_id, None)
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

    async def usage(self, message: UsageRequest) -> UsageResponse:
        self._called("usage", message)
        return UsageResponse(
            mountpoint="/",
            images=DiskUsage(timestamp_ns=1, used_bytes=sum(self.layers.values()), inodes_used=len(self.layers)),
            rootfs=[
                RootfsUsage(rootfs_id="a", writable=DiskUsage(timestamp_ns=2, used_bytes=10, inodes_used=1)),
                RootfsUsage(rootfs_id="b", writable=DiskUsage(timestamp_ns=3, used_bytes=20, inodes_used=2)),
            ],
        )


def _uncompressed(blob: bytes, media_type: str) -> bytes:
    if media_type.endswith("gzip"):
        return gzip.decompress(blob)
    if media_type.endswith("zstd"):
        return zstandard.decompress(blob)
    return blob


@contextlib.asynccontextmanager
async def running_storage(storage: StorageBase, socket: Path) -> AsyncIterator[Channel]:
    """Serve it at `socket`; a connection to it."""
    server = Server([storage], Metrics("storage"), group=None)
    socket.parent.mkdir(parents=True, exist_ok=True)
    await server.start(path=str(socket))
    channel = Channel(socket)
    try:
        yield channel
    finally:
        channel.close()
        server.close()
        await server.wait_closed()
        socket.unlink(missing_ok=True)
