"""What the image agent relies on in the storage agent's Layers: the real agent keeps it, and so does the fake."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Final, TypeAlias

import pytest
import pytest_asyncio

from criw.config.image import ImageFacts
from criw.config.storage import StorageSettings
from criw.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from criw.metrics import Metrics
from criw.rpc.client import Channel, call
from criw.rpc.server import Servable
from criw.service import Context
from criw_proto.criw.storage.v1 import (
    CommitImageRequest,
    LayersStub,
    ListImagesRequest,
    RemoveImageRequest,
    UnpackLayerRequest,
)
from criw_storage.__main__ import build
from support.fake_storage import FakeStorage
from support.images import OCI, Compression, Layer, digest_of, file, layer
from support.serving import serving

IMAGE, OTHER = (f"sha256:{digit * 64}" for digit in "01")
ONE, TWO = (layer(file(name, name * 10_000)) for name in ("one", "two"))
GZIP: Final = OCI.layers[Compression.GZIP]

Start: TypeAlias = Callable[[], AbstractAsyncContextManager[Collection[Servable]]]


def fake(config: StorageSettings) -> Start:
    storage = FakeStorage(config.blobs)

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Collection[Servable]]:
        storage.forget_uncommitted()
        yield [storage]

    return start


def real(config: StorageSettings) -> Start:
    for directory in (config.state_dir("storage"), config.run_dir("storage")):
        directory.mkdir(parents=True)
    return lambda: build(Context(config, 0, Metrics("storage")))


class Storage:
    """A storage agent as the image agent sees it. `blobs` is where that one puts what it names."""

    def __init__(self, start: Start, blobs: Path, socket: Path) -> None:
        self.blobs = blobs
        self._start = start
        self._socket = socket
        self._channel = Channel(socket)
        self._layers = LayersStub(self._channel)
        self._running = AsyncExitStack()

    async def start(self) -> None:
        services = await self._running.enter_async_context(self._start())
        await self._running.enter_async_context(serving(self._socket, *services))

    async def stop(self) -> None:
        await self._running.aclose()

    async def close(self) -> None:
        self._channel.close()
        await self.stop()

    async def ask(self, diff_id: str, *, image: str = IMAGE, blob: str = "none", media_type: str = GZIP) -> int:
        """UnpackLayer, at first without having a blob; bytes of the layer."""
        request = UnpackLayerRequest(image_id=image, diff_id=diff_id, blob=blob, media_type=media_type)
        return (await call(self._layers.unpack_layer, request)).size_bytes

    async def unpack(self, made: Layer, *, image: str = IMAGE) -> int:
        """UnpackLayer with its blob, which is gone again afterwards."""
        directory = self.blobs / image.replace(":", "-")
        directory.mkdir(exist_ok=True)
        path = directory / digest_of(made.blob)
        path.write_bytes(made.blob)
        try:
            return await self.ask(made.diff_id, image=image, blob=f"{directory.name}/{path.name}")
        finally:
            path.unlink()

    async def commit(self, *layers: Layer, image: str = IMAGE) -> int:
        request = CommitImageRequest(image_id=image, diff_ids=[one.diff_id for one in layers])
        return (await call(self._layers.commit_image, request)).size_bytes

    async def remove(self, image: str) -> None:
        await call(self._layers.remove_image, RemoveImageRequest(image_id=image))

    async def images(self) -> Sequence[str]:
        return sorted((await call(self._layers.list_images, ListImagesRequest())).image_ids)

    async def has(self, *layers: Layer) -> list[bool]:
        """Whether a layer is there without its blob. The question holds it for nobody."""
        found = []
        for one in layers:
            try:
                await self.ask(one.diff_id, image="sha256:question")
            except NotFound:
                found.append(False)
            else:
                found.append(True)
            await self.remove("sha256:question")
        return found


@pytest_asyncio.fixture(params=[fake, pytest.param(real, marks=pytest.mark.root)])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    config = StorageSettings(root=tmp_path / "lib", run=tmp_path / "run", image=ImageFacts(user=os.geteuid()))
    config.blobs.mkdir(parents=True)
    agent = Storage(request.param(config), config.blobs, tmp_path / "socket")
    await agent.start()
    try:
        yield agent
    finally:
        await agent.close()


async def test_a_layer_is_asked_for_before_its_blob_is_there(storage: Storage) -> None:
    with pytest.raises(NotFound):
        await storage.ask(ONE.diff_id)
    size = await storage.unpack(ONE)
    assert size > 0
    assert await storage.ask(ONE.diff_id) == size
    assert await storage.ask(ONE.diff_id, image=OTHER) == size


async def test_an_image_is_there_when_it_is_committed(storage: Storage) -> None:
    sizes = [await storage.unpack(one) for one in (ONE, TWO)]
    assert await storage.images() == []
    for _ in range(2):
        assert await storage.commit(ONE, TWO, ONE) == sum(sizes)
        assert await storage.images() == [IMAGE]


async def test_an_image_without_one_of_its_layers_cannot_be_committed(storage: Storage) -> None:
    await storage.unpack(ONE)
    with pytest.raises(FailedPrecondition):
        await storage.commit(ONE, TWO)
    assert await storage.images() == []
    await storage.unpack(TWO)
    await storage.commit(ONE, TWO)


async def test_a_layer_stays_as_long_as_an_image_or_a_pull_needs_it(storage: Storage) -> None:
    await storage.unpack(ONE)
    await storage.unpack(TWO)
    await storage.commit(ONE, TWO)
    await storage.ask(TWO.diff_id, image=OTHER)
    assert await storage.has(ONE, TWO) == [True, True]
    await storage.remove(IMAGE)
    assert await storage.has(ONE, TWO) == [False, True]
    await storage.remove(OTHER)
    assert await storage.has(ONE, TWO) == [False, False]


async def test_what_an_image_no_longer_has_goes_when_it_is_committed_again(storage: Storage) -> None:
    await storage.unpack(ONE)
    await storage.unpack(TWO)
    await storage.commit(ONE)
    assert await storage.has(ONE, TWO) == [True, False]
    await storage.unpack(TWO)
    await storage.commit(TWO)
    assert await storage.has(ONE, TWO) == [False, True]


async def test_removing_is_done_when_there_is_nothing_left_to_do(storage: Storage) -> None:
    await storage.unpack(ONE)
    await storage.commit(ONE)
    for image in (IMAGE, IMAGE, OTHER):
        await storage.remove(image)
    assert await storage.images() == []


async def test_a_restart_forgets_pulls_and_keeps_images(storage: Storage) -> None:
    await storage.unpack(ONE)
    await storage.commit(ONE)
    await storage.unpack(TWO, image=OTHER)
    await storage.stop()
    await storage.start()
    assert await storage.images() == [IMAGE]
    assert await storage.has(ONE, TWO) == [True, False]


async def test_one_layer_for_two_images_at_once_is_theirs_both(storage: Storage) -> None:
    first, second = await asyncio.gather(storage.unpack(ONE), storage.unpack(ONE, image=OTHER))
    assert first == second
    await storage.remove(IMAGE)
    assert await storage.has(ONE) == [True]


@pytest.mark.parametrize(
    ("blob", "fault"),
    [
        (TWO.blob, DataLoss),
        (b"no archive at all".ljust(600, b"."), InvalidArgument),
        (ONE.blob[:-20], InvalidArgument),
    ],
    ids=["another layer", "no archive", "cut short"],
)
async def test_other_bytes_than_promised_are_refused_and_not_kept(
    storage: Storage, blob: bytes, fault: type[DataLoss | InvalidArgument]
) -> None:
    with pytest.raises(fault, match=f"^cannot .*{ONE.diff_id}") as caught:
        await storage.unpack(Layer(blob, ONE.diff_id, ONE.compression))
    assert TWO.diff_id not in str(caught.value)
    await storage.remove(IMAGE)
    assert await storage.has(ONE) == [False]
    await storage.unpack(ONE)


async def test_a_layer_that_is_no_tar_by_its_type_is_refused(storage: Storage) -> None:
    (storage.blobs / "0").write_bytes(ONE.blob)
    for media_type in ("application/vnd.wasm.content.layer.v1+wasm", f"{GZIP}+encrypted"):
        with pytest.raises(InvalidArgument, match="media type"):
            await storage.ask(ONE.diff_id, blob="0", media_type=media_type)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../outside", "directory", "directory/../../outside", "link", "0\0", "/{blobs}/0"]
)
async def test_only_names_of_blobs_are_taken_for_one(storage: Storage, name: str) -> None:
    (storage.blobs / "0").write_bytes(ONE.blob)
    (storage.blobs / "directory").mkdir()
    (storage.blobs.parent / "outside").write_bytes(ONE.blob)
    (storage.blobs / "link").symlink_to("0")
    with pytest.raises(InvalidArgument, match=r"^cannot read blob"):
        await storage.ask(ONE.diff_id, blob=name.format(blobs=os.fspath(storage.blobs).strip("/")))
    await storage.ask(ONE.diff_id, blob="0")
