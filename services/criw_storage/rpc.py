"""The gRPC face of the storage agent: a service for each who calls it, so that each can be given his own only."""

import os
import time
from pathlib import Path

from criw_proto.criw.storage.v1 import (
    CommitImageRequest,
    CommitImageResponse,
    CreateRootfsRequest,
    CreateRootfsResponse,
    DiskBase,
    DiskUsage,
    LayersBase,
    ListImagesRequest,
    ListImagesResponse,
    ListRootfsRequest,
    ListRootfsResponse,
    RemoveImageRequest,
    RemoveImageResponse,
    RemoveRootfsRequest,
    RemoveRootfsResponse,
    RootfsBase,
    RootfsUsage,
    UnpackLayerRequest,
    UnpackLayerResponse,
    UsageRequest,
    UsageResponse,
)
from criw_storage.images import Images
from criw_storage.layers import Layers
from criw_storage.rootfs import RootFilesystems
from criw_storage.usage import Measured, Usage


class LayersRpc(LayersBase):
    """criw.storage.v1.Layers."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def unpack_layer(self, message: UnpackLayerRequest) -> UnpackLayerResponse:
        size = await self._images.unpack(message.image_id, message.diff_id, message.blob, message.media_type)
        return UnpackLayerResponse(size_bytes=size)

    async def commit_image(self, message: CommitImageRequest) -> CommitImageResponse:
        return CommitImageResponse(size_bytes=await self._images.commit(message.image_id, message.diff_ids))

    async def remove_image(self, message: RemoveImageRequest) -> RemoveImageResponse:
        await self._images.remove(message.image_id)
        return RemoveImageResponse()

    async def list_images(self, message: ListImagesRequest) -> ListImagesResponse:
        return ListImagesResponse(image_ids=list(self._images.records))


class RootfsRpc(RootfsBase):
    """criw.storage.v1.Rootfs."""

    def __init__(self, rootfs: RootFilesystems) -> None:
        self._rootfs = rootfs

    async def create_rootfs(self, message: CreateRootfsRequest) -> CreateRootfsResponse:
        return CreateRootfsResponse(path=os.fspath(await self._rootfs.create(message.rootfs_id, message.image_id)))

    async def remove_rootfs(self, message: RemoveRootfsRequest) -> RemoveRootfsResponse:
        await self._rootfs.remove(message.rootfs_id)
        return RemoveRootfsResponse()

    async def list_rootfs(self, message: ListRootfsRequest) -> ListRootfsResponse:
        return ListRootfsResponse(rootfs_ids=list(self._rootfs.records))


class DiskRpc(DiskBase):
    """criw.storage.v1.Disk. `state` is a directory on the file system of all layers."""

    def __init__(self, layers: Layers, usage: Usage, *, state: Path) -> None:
        self._layers = layers
        self._usage = usage
        self._state = state

    async def usage(self, message: UsageRequest) -> UsageResponse:
        layers = self._layers.records.values()  # measured when they were unpacked, and unchanged since
        images = Measured(
            time.time_ns(), sum(layer.size_bytes for layer in layers), sum(layer.inodes for layer in layers)
        )
        return UsageResponse(
            mountpoint=os.fspath(self._state),
            images=_disk_usage(images),
            rootfs=[
                RootfsUsage(rootfs_id=rootfs_id, writable=_disk_usage(measured))
                for rootfs_id, measured in self._usage.rootfs.items()
            ],
        )


def _disk_usage(measured: Measured) -> DiskUsage:
    return DiskUsage(timestamp_ns=measured.timestamp_ns, used_bytes=measured.size_bytes, inodes_used=measured.inodes)
