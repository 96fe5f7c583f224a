"""A storage agent of its own, with a client that speaks in layers and images of `support.images`."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

import aiohttp
import zstandard

from criw.ids import new_id
from criw.rpc.client import call
from criw_proto.criw.storage.v1 import (
    CommitImageRequest,
    CreateRootfsRequest,
    DiskStub,
    LayersStub,
    ListImagesRequest,
    ListRootfsRequest,
    RemoveImageRequest,
    RemoveRootfsRequest,
    RootfsStub,
    UnpackLayerRequest,
    UsageRequest,
    UsageResponse,
)
from support.crew import Crew, running_crew
from support.images import Compression, Layer, digest_of

MEDIA_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_LIMIT_S: Final = 30.0


class Storage:
    """Use `running_storage()`."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.state = crew.config.state_dir("storage")
        self.mounts = crew.config.run_dir("storage") / "rootfs"
        self.blobs = crew.config.blobs
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.layers = LayersStub(crew.channel("storage"))
        self._rootfs = RootfsStub(crew.channel("storage"))
        self._disk = DiskStub(crew.channel("storage"))

    def blob(self, data: bytes) -> str:
        """The name of a blob with these bytes, put where the image agent would."""
        path = self.blobs / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        os.chown(path, self.crew.config.image.user, -1)
        return path.name

    async def unpack(self, image_id: str, layer: Layer, *, media_type: str = MEDIA_TYPE) -> int:
        """UnpackLayer; the layer's size in bytes."""
        request = UnpackLayerRequest(
            image_id=image_id,
            diff_id=layer.diff_id,
            blob=self.blob(layer.blob),
            media_type=media_type,
        )
        return (await call(self.layers.unpack_layer, request)).size_bytes

    async def commit(self, image_id: str, layers: Sequence[Layer]) -> int:
        """CommitImage; the image's size in bytes."""
        request = CommitImageRequest(image_id=image_id, diff_ids=[layer.diff_id for layer in layers])
        return (await call(self.layers.commit_image, request)).size_bytes

    async def add(self, *layers: Layer) -> str:
        """Unpack and commit an image of these layers, lowest first; its id."""
        image_id = digest_of(" ".join(layer.diff_id for layer in layers).encode())
        await asyncio.gather(*(self.unpack(image_id, layer) for layer in layers))
        await self.commit(image_id, layers)
        return image_id

    async def create(self, image_id: str, rootfs_id: str = "") -> Path:
        """CreateRootfs; the mounted directory, whose name is the id."""
        request = CreateRootfsRequest(rootfs_id=rootfs_id or new_id(), image_id=image_id)
        return Path((await call(self._rootfs.create_rootfs, request)).path)

    async def remove(self, rootfs: Path) -> None:
        """RemoveRootfs."""
        await call(self._rootfs.remove_rootfs, RemoveRootfsRequest(rootfs_id=rootfs.name))

    async def remove_image(self, image_id: str) -> None:
        """RemoveImage."""
        await call(self.layers.remove_image, RemoveImageRequest(image_id=image_id))

    async def images(self) -> set[str]:
        """ListImages."""
        return set((await call(self.layers.list_images, ListImagesRequest())).image_ids)

    async def rootfs(self) -> set[str]:
        """ListRootfs."""
        return set((await call(self._rootfs.list_rootfs, ListRootfsRequest())).rootfs_ids)

    async def usage(self) -> UsageResponse:
        return await call(self._disk.usage, UsageRequest())

    async def remove_all(self) -> None:
        """Every root filesystem and image there is."""
        for rootfs_id in await self.rootfs():
            await self.remove(Path(rootfs_id))
        for image_id in await self.images():
            await self.remove_image(image_id)

    @contextlib.asynccontextmanager
    async def mounted(self, *layers: Layer) -> AsyncIterator[Path]:
        """The root filesystem of an image of these layers, both gone afterwards."""
        image_id = await self.add(*layers)
        rootfs = await self.create(image_id)
        try:
            yield rootfs
        finally:
            await self.remove(rootfs)
            await self.remove_image(image_id)

    def directories(self) -> list[str]:
        """What is on the disk besides the databases: layers, unfinished ones, writable layers, mount points."""
        parts = [self.state / "layers", self.state / "unfinished", self.state / "rootfs", self.mounts]
        return sorted(str(found) for part in parts for found in part.iterdir())

    def workers(self) -> list[int]:
        """Processes that unpack into the agent's directories, the first of their PID namespaces included."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    command = (entry / "cmdline").read_bytes()
                    if b"criw_storage.worker.program" in command and os.fsencode(self.state) in command:
                        found.append(int(entry.name))
        return found

    async def metric(self, name: str) -> float:
        """One number of /metrics."""
        host, port = self.crew.config.storage.address()
        async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextlib.asynccontextmanager
async def running_storage(extra_toml: str = "") -> AsyncIterator[Storage]:
    """Start a storage agent of its own; at the end nothing of it may be left on the host."""
    async with running_crew(["storage"], extra_toml=extra_toml) as crew:
        storage = Storage(crew)
        try:
            yield storage
        finally:
            shutil.rmtree(storage.blobs)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something no call tells of."""
    give_up = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < give_up, "it did not come true"
        await asyncio.sleep(0.001)


def layer_of(tar: bytes) -> Layer:
    """A layer with these bytes for a tar."""
    return Layer(zstandard.compress(tar, 1), digest_of(tar), Compression.ZSTD)
