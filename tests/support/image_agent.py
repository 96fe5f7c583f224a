"""The image and storage agents as processes, and a client that speaks in references."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

from criw.rpc.client import Channel
from criw_proto.criw.storage import v1 as storage
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthStub
from criw_proto.runtime import v1 as cri
from support.crew import Crew, python_environment, running_crew

LIMIT_S = 30.0


class Images:
    """Calls of one instance of the image agent, and a look at what is on the disk."""

    def __init__(self, crew: Crew, channel: Channel | None = None) -> None:
        self.crew = crew
        self.channel = channel or crew.channel("image")
        self.stub = cri.ImageServiceStub(self.channel, timeout=LIMIT_S)
        self._storage = storage.LayersStub(crew.channel("storage"), timeout=LIMIT_S)

    async def pull(self, reference: str, auth: cri.AuthConfig | None = None) -> str:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=reference), auth=auth)
        return (await self.stub.pull_image(request)).image_ref

    async def all(self) -> list[cri.Image]:
        return (await self.stub.list_images(cri.ListImagesRequest())).images

    async def find(self, reference: str) -> cri.Image | None:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
        return (await self.stub.image_status(request)).image

    async def remove(self, reference: str) -> None:
        await self.stub.remove_image(cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)))

    async def remove_all(self) -> None:
        for image in await self.all():
            await self.remove(image.id)

    async def used_bytes(self) -> int:
        reply = await self.stub.image_fs_info(cri.ImageFsInfoRequest())
        used = reply.image_filesystems[0].used_bytes
        assert used is not None
        return used.value

    async def left(self) -> list[str]:
        """What there is of images besides those listed: nothing, when nothing is being pulled."""
        state = self.crew.config.state_dir("image")
        found = [str(path) for name in ("blobs", "claims") for path in (state / name).rglob("*")]
        stored = set((await self._storage.list_images(storage.ListImagesRequest())).image_ids)
        listed = await self.all()
        found += stored ^ {image.id for image in listed}
        layers = {path.name for path in (self.crew.config.state_dir("storage") / "layers").iterdir()}
        if not listed:
            found += layers
        return found


@contextlib.asynccontextmanager
async def running_images(extra_toml: str) -> AsyncIterator[Images]:
    """Storage and image agent; all images are removed at the end, and nothing may be left."""
    async with running_crew(("storage", "image"), extra_toml=extra_toml) as crew:
        images = Images(crew)
        yield images
        await images.remove_all()
        assert await images.left() == []


@contextlib.asynccontextmanager
async def second_instance(crew: Crew) -> AsyncIterator[tuple[asyncio.subprocess.Process, Images]]:
    """One more process on the crew's directories; `image.http` must have port 0."""
    with (crew.directory / "image-1.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "criw_image", "--config", os.fspath(crew.config_path), "--instance", "1"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=python_environment(),
        )
    channel = Channel(crew.config.socket("image", 1))
    try:
        await HealthStub(channel).check(HealthCheckRequest(), timeout=LIMIT_S)
        yield process, Images(crew, channel)
    finally:
        channel.close()
        if process.returncode is None:
            process.terminate()
        await process.wait()
