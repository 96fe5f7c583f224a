"""The gRPC face: the CRI's ImageService and our own Images."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Final

from grpclib.const import Handler

from criw.errors import InvalidArgument, Unavailable
from criw.rpc.client import call
from criw.rpc.server import serialized
from criw_image.catalogue import Catalogue, ImageRecord, cri_image
from criw_image.joined import JoinedPulls
from criw_image.manifest import chain_id
from criw_image.reference import parse_reference
from criw_image.removal import STORAGE, Removal
from criw_proto.criw.image.v1 import ImagesBase, InspectRequest, InspectResponse, PullProgress, PullRequest
from criw_proto.criw.storage.v1 import DiskStub, DiskUsage, UsageRequest
from criw_proto.runtime.v1 import (
    FilesystemIdentifier,
    FilesystemUsage,
    ImageFsInfoRequest,
    ImageFsInfoResponse,
    ImageServiceBase,
    ImageSpec,
    ImageStatusRequest,
    ImageStatusResponse,
    ListImagesRequest,
    ListImagesResponse,
    PullImageRequest,
    PullImageResponse,
    RemoveImageRequest,
    RemoveImageResponse,
    UInt64Value,
)

_PROGRESS_INTERVAL_S: Final = 0.1
_USAGE_TIMEOUT_S: Final = 10.0


class ImageRpc(ImageServiceBase):
    """runtime.v1.ImageService."""

    def __init__(self, catalogue: Catalogue, pulls: JoinedPulls, removal: Removal, disk: DiskStub) -> None:
        self._catalogue = catalogue
        self._pulls = pulls
        self._removal = removal
        self._disk = disk

    def __mapping__(self) -> dict[str, Handler]:
        listing: Mapping[str, Handler] = serialized(
            "/runtime.v1.ImageService/ListImages", ListImagesRequest, self._list_images
        )
        return {**super().__mapping__(), **listing}

    async def _list_images(self, message: ListImagesRequest) -> bytes:
        snapshot = await self._catalogue.snapshot()
        wanted = message.filter.image if message.filter else None
        if wanted is None or not wanted.image:
            return snapshot.listing
        found = snapshot.find(wanted.image)
        return bytes(ListImagesResponse(images=[cri_image(found)] if found else []))

    async def image_status(self, message: ImageStatusRequest) -> ImageStatusResponse:
        record = await self._catalogue.find(_named(message.image))
        if record is None:
            return ImageStatusResponse()
        info = {"info": await self._info(record)} if message.verbose else {}
        return ImageStatusResponse(image=cri_image(record), info=info)

    async def _info(self, record: ImageRecord) -> str:
        documents = await self._catalogue.documents(record.id)  # JSON objects, as they were hashed
        chain = json.dumps(chain_id(record.diff_ids))
        return f'{{"chainID": {chain}, "imageSpec": {documents.config}, "manifest": {documents.manifest}}}'

    async def pull_image(self, message: PullImageRequest) -> PullImageResponse:
        reference = parse_reference(_named(message.image))
        async with self._pulls.join(reference, message.auth) as running:
            return PullImageResponse(image_ref=await asyncio.shield(running.task))

    async def remove_image(self, message: RemoveImageRequest) -> RemoveImageResponse:
        await self._removal.remove(_named(message.image))
        return RemoveImageResponse()

    async def image_fs_info(self, message: ImageFsInfoRequest) -> ImageFsInfoResponse:
        usage = await call(self._disk.usage, UsageRequest(), timeout_s=_USAGE_TIMEOUT_S, agent=STORAGE)
        images = usage.images
        if images is None:
            raise Unavailable("cannot tell the disk usage yet: criw-storage has not measured it; try again")
        writable = [one.writable for one in usage.rootfs if one.writable is not None]
        containers = DiskUsage(
            timestamp_ns=max([images.timestamp_ns, *(one.timestamp_ns for one in writable)]),
            used_bytes=sum(one.used_bytes for one in writable),
            inodes_used=sum(one.inodes_used for one in writable),
        )
        return ImageFsInfoResponse(
            image_filesystems=[_filesystem(usage.mountpoint, images)],
            container_filesystems=[_filesystem(usage.mountpoint, containers)],
        )


class ImagesRpc(ImagesBase):
    """criw.image.v1.Images."""

    def __init__(self, catalogue: Catalogue, pulls: JoinedPulls) -> None:
        self._catalogue = catalogue
        self._pulls = pulls

    async def inspect(self, message: InspectRequest) -> InspectResponse:
        record = await self._catalogue.get(message.image)
        documents = await self._catalogue.documents(record.id)
        return InspectResponse(
            id=record.id,
            repo_tags=list(record.tags),
            repo_digests=list(record.digests),
            config=documents.config.encode(),
            size_bytes=record.size_bytes,
        )

    async def pull(self, message: PullRequest) -> AsyncIterator[PullProgress]:
        reference = parse_reference(message.image)
        async with self._pulls.join(reference, message.auth) as running:
            told = b""
            while not running.task.done():
                await asyncio.wait({running.task}, timeout=_PROGRESS_INTERVAL_S)
                progress = PullProgress(layers=running.layers)
                if (fresh := bytes(progress)) != told:
                    told = fresh
                    yield progress
            yield PullProgress(layers=running.layers, image_id=running.task.result())


def _named(spec: ImageSpec | None) -> str:
    if spec is None or not spec.image:
        raise InvalidArgument("cannot tell which image is meant: the request names none")
    return spec.image


def _filesystem(mountpoint: str, usage: DiskUsage) -> FilesystemUsage:
    return FilesystemUsage(
        timestamp=usage.timestamp_ns,
        fs_id=FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=UInt64Value(value=usage.used_bytes),
        inodes_used=UInt64Value(value=usage.inodes_used),
    )
