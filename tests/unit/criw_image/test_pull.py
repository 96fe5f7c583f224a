"""Pulling into a storage in memory from a registry in this process: order, sharing, failure."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from criw.config.image import ImageSection, Registry
from criw.errors import (
    DataLoss,
    Failed,
    FailedPrecondition,
    Fault,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from criw.rpc.client import Channel
from criw.store import Store, open_store
from criw_image.catalogue import Catalogue, ImageRecord
from criw_image.claims import Claims
from criw_image.pull import Puller
from criw_image.reference import parse_reference
from criw_image.removal import Removal
from criw_image.transport import Http, open_http
from criw_proto.criw.image.v1 import LayerProgress, LayerState
from criw_proto.criw.storage.v1 import CommitImageRequest, LayersStub, RemoveImageRequest, UnpackLayerRequest
from criw_proto.runtime.v1 import AuthConfig
from support import images
from support.fake_storage import FakeStorage, running_storage
from support.scripted_registry import ScriptedRegistry, scripted_registry

IMAGE = images.small("first")
OTHER = images.small("second")


@dataclass
class World:
    """One instance of the agent, without its gRPC face."""

    registry: ScriptedRegistry
    storage: FakeStorage
    catalogue: Catalogue
    removal: Removal
    puller: Puller
    state: Path
    downloaded: Counter
    make_puller: Callable[[Http], Puller]

    async def pull(self, name: str = "a/b:1", auth: AuthConfig | None = None) -> str:
        return await self.puller.pull(parse_reference(f"{self.registry.host}/{name}"), auth, [])

    @contextlib.asynccontextmanager
    async def mirrored(self, mirror: str) -> AsyncIterator[Puller]:
        """The agent as it would be with a mirror of its registry."""
        entry = Registry(plain_http=True, mirrors=(mirror,))
        async with open_http(ImageSection(registries={self.registry.host: entry})) as http:
            yield self.make_puller(http)

    async def images(self) -> dict[str, ImageRecord]:
        return (await self.catalogue.snapshot()).images

    async def left(self) -> list[object]:
        """What there is besides whole images: nothing, when nothing runs."""
        found: list[object] = [*(self.state / "blobs").iterdir(), *(self.state / "claims").iterdir()]
        found += await self.catalogue.unfinished()
        found += set(self.storage.images) ^ set(await self.images())
        return [*found, *self.storage.held]


@contextlib.asynccontextmanager
async def instance(
    registry: ScriptedRegistry, storage: FakeStorage, channel: Channel, state: Path, store: Store
) -> AsyncIterator[World]:
    for name in ("blobs", "claims"):
        (state / name).mkdir(exist_ok=True)
    section = ImageSection(
        registries={registry.host: Registry(plain_http=True)}, parallel_downloads=2, stall_timeout_s=5
    )
    claims = Claims(state / "claims")
    catalogue = Catalogue(store, claims)
    stub = LayersStub(channel)
    removal = Removal(catalogue=catalogue, claims=claims, storage=stub, blobs=state / "blobs")
    downloaded = Counter("bytes", "Bytes.", registry=CollectorRegistry())

    def make_puller(http: Http) -> Puller:
        return Puller(
            http=http,
            catalogue=catalogue,
            claims=claims,
            storage=stub,
            removal=removal,
            section=section,
            downloaded=downloaded,
        )

    async with open_http(section) as http:
        yield World(registry, storage, catalogue, removal, make_puller(http), state, downloaded, make_puller)


@pytest_asyncio.fixture
async def worlds(tmp_path: Path) -> AsyncIterator[tuple[World, World]]:
    """Two instances on the same state."""
    storage = FakeStorage(tmp_path / "blobs")
    async with contextlib.AsyncExitStack() as stack:
        registry = await stack.enter_async_context(scripted_registry())
        registry.add("a/b:1", IMAGE)
        channel = await stack.enter_async_context(running_storage(storage, tmp_path / "storage.sock"))
        found = []
        for _ in range(2):
            store = await stack.enter_async_context(open_store(tmp_path / "image.db"))
            found.append(await stack.enter_async_context(instance(registry, storage, channel, tmp_path, store)))
        yield found[0], found[1]
        assert await found[0].left() == []


@pytest_asyncio.fixture
async def world(worlds: tuple[World, World]) -> World:
    return worlds[0]


def calls(world: World, kind: type) -> list[object]:
    return [call for call in world.storage.calls if isinstance(call, kind)]


async def test_an_image_is_recorded_whole(world: World) -> None:
    assert await world.pull() == IMAGE.id
    (record,) = (await world.images()).values()
    host = world.registry.host
    assert (record.id, record.tags) == (IMAGE.id, (f"{host}/a/b:1",))
    assert record.digests == (f"{host}/a/b@{IMAGE.digest}",)
    assert record.diff_ids == tuple(one.diff_id for one in IMAGE.layers)
    tars = sum(world.storage.layers.values())
    assert record.size_bytes == tars + len(IMAGE.config) + len(IMAGE.manifest)
    documents = await world.catalogue.documents(IMAGE.id)
    assert (documents.config.encode(), documents.manifest.encode()) == (IMAGE.config, IMAGE.manifest)
    assert world.storage.images == {IMAGE.id: record.diff_ids}
    assert world.downloaded._value.get() == sum(len(one.blob) for one in IMAGE.layers)


async def test_storage_is_told_the_type_and_finds_the_blob(world: World) -> None:
    world.storage.may_unpack.clear()
    task = asyncio.create_task(world.pull())
    await world.storage.unpacking.wait()
    request = calls(world, UnpackLayerRequest)[-1]
    assert isinstance(request, UnpackLayerRequest)
    blob = world.state / "blobs" / request.blob
    assert images.digest_of(blob.read_bytes()) in {images.digest_of(b) for b in IMAGE.blobs}
    assert (request.image_id, request.media_type) == (IMAGE.id, images.OCI.layers[images.Compression.GZIP])
    assert blob.stat().st_mode & 0o077 == 0
    world.storage.may_unpack.set()
    await task


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_an_index_gives_this_machine_s_image(world: World, number: int) -> None:
    other = images.image(images.layer(images.file("x", "y")), architecture="s390x")
    index: images.Index = images.index({"s390x": other, images.ARCHITECTURE: IMAGE})
    name = "a/index:1"
    world.registry.add(name, index)
    for depth in range(1, number):
        entry = {"mediaType": images.OCI.index, "digest": index.digest, "size": len(index.index)}
        document = json.dumps({"schemaVersion": 2, "mediaType": images.OCI.index, "manifests": [entry]}).encode()
        index = images.Index(document, images.OCI.index, ())
        name = f"a/index:{depth + 1}"
        world.registry.add(name, index)
    if number == 3:
        with pytest.raises(InvalidArgument, match="index of indexes of indexes"):
            await world.pull(name)
        return
    assert await world.pull(name) == IMAGE.id
    (record,) = (await world.images()).values()
    assert record.digests == (f"{world.registry.host}/a/index@{index.digest}",)


async def test_the_configurations_tell_the_platform_where_an_index_does_not(world: World) -> None:
    other = images.image(images.layer(images.file("x", "y")), architecture="s390x")
    for name, image in (("a/index:other", other), ("a/index:ours", IMAGE)):
        world.registry.add(name, image)
    entries = [
        {"mediaType": images.OCI.manifest, "digest": one.digest, "size": len(one.manifest)} for one in (other, IMAGE)
    ]
    for number, wanted in ((2, entries), (1, entries[:1])):
        document = json.dumps({"schemaVersion": 2, "mediaType": images.OCI.index, "manifests": wanted}).encode()
        world.registry.add(f"a/index:{number}", images.Index(document, images.OCI.index, ()))
    assert await world.pull("a/index:2") == IMAGE.id
    with pytest.raises(NotFound, match="it is for linux/s390x"):
        await world.pull("a/index:1")


async def test_a_present_image_is_asked_about_and_nothing_is_downloaded(world: World) -> None:
    await world.pull()
    world.registry.seen.clear()
    world.storage.calls.clear()
    assert await world.pull() == IMAGE.id
    assert [(one.method, one.path) for one in world.registry.seen] == [("HEAD", "/v2/a/b/manifests/1")]
    assert calls(world, UnpackLayerRequest) == []
    world.registry.answer = lambda _: web.Response(status=401)
    with pytest.raises(PermissionDenied):
        await world.pull(auth=AuthConfig(username="not", password="allowed"))
    assert list(await world.images()) == [IMAGE.id]


async def test_a_digest_is_never_answered_with_the_image_of_another(world: World) -> None:
    await world.pull()
    world.registry.add("a/b:2", OTHER)
    old = web.Response(headers={"Docker-Content-Digest": IMAGE.digest})
    world.registry.answer = lambda request: old if request.method == "HEAD" else None
    with pytest.raises(DataLoss, match=f"says that its manifest has digest {IMAGE.digest}"):
        await world.pull(f"a/b@{OTHER.digest}")
    assert list(await world.images()) == [IMAGE.id]


async def test_a_mirror_moves_a_tag_only_with_content_that_was_hashed(world: World) -> None:
    await world.pull()
    world.registry.add("a/b:1", OTHER)
    async with scripted_registry() as mirror:
        mirror.add("a/b:1", OTHER)
        old = web.Response(headers={"Docker-Content-Digest": IMAGE.digest})
        mirror.answer = lambda request: old if request.method == "HEAD" else None
        async with world.mirrored(mirror.url) as puller:
            reference = parse_reference(f"{world.registry.host}/a/b:1")
            assert await puller.pull(reference, None, []) == OTHER.id


async def test_a_second_tag_of_an_image_is_a_name_more(world: World) -> None:
    await world.pull()
    world.registry.add("a/b:2", IMAGE)
    world.registry.add("a/c:3", IMAGE)
    world.registry.seen.clear()
    assert {await world.pull("a/b:2"), await world.pull("a/c:3")} == {IMAGE.id}
    assert world.registry.requests("blobs") == []
    (record,) = (await world.images()).values()
    host = world.registry.host
    assert record.tags == (f"{host}/a/b:1", f"{host}/a/b:2", f"{host}/a/c:3")
    assert record.digests == (f"{host}/a/b@{IMAGE.digest}", f"{host}/a/c@{IMAGE.digest}")


async def test_a_tag_that_moves_is_followed(world: World) -> None:
    await world.pull()
    world.registry.add("a/b:1", OTHER)
    assert await world.pull() == OTHER.id
    found = await world.images()
    assert found[IMAGE.id].tags == ()
    assert found[OTHER.id].tags == (f"{world.registry.host}/a/b:1",)


async def test_a_layer_of_another_image_is_not_downloaded_again(world: World) -> None:
    await world.pull()
    world.registry.add("a/other:1", OTHER)
    world.registry.seen.clear()
    layers: list[LayerProgress] = []
    await world.puller.pull(parse_reference(f"{world.registry.host}/a/other:1"), None, layers)
    asked = [one.path.rpartition("/")[2] for one in world.registry.requests("blobs")]
    assert asked == [OTHER.id, images.digest_of(OTHER.layers[1].blob)]
    assert [one.state for one in layers] == [LayerState.DONE] * 2
    assert [one.done_bytes for one in layers] == [one.total_bytes for one in layers]


async def test_a_layer_that_comes_twice_is_fetched_once(world: World) -> None:
    twice = images.layer(images.file("x", "y"))
    image = images.image(twice, images.layer(images.file("z", "z")), twice)
    world.registry.add("a/twice:1", image)
    layers: list[LayerProgress] = []
    await world.puller.pull(parse_reference(f"{world.registry.host}/a/twice:1"), None, layers)
    assert len(world.registry.requests("blobs")) == 3
    assert world.storage.images[image.id] == (twice.diff_id, image.layers[1].diff_id, twice.diff_id)
    assert [one.state for one in layers] == [LayerState.DONE] * 3


async def test_layers_are_unpacked_while_others_still_download(world: World) -> None:
    held = asyncio.Event()
    slow = f"/blobs/{images.digest_of(IMAGE.layers[0].blob)}"

    async def late(request: web.Request) -> web.StreamResponse:
        if request.path.endswith(slow):
            await held.wait()
        return await world.registry.serve(request)

    world.registry.take_over = late
    task = asyncio.create_task(world.pull())
    await world.storage.unpacking.wait()
    held.set()
    await task
    assert world.storage.unpacked == [IMAGE.layers[1].diff_id, IMAGE.layers[0].diff_id]


async def test_no_more_downloads_at_once_than_configured(world: World) -> None:
    image = images.image(*(images.layer(images.file("n", str(number))) for number in range(6)))
    world.registry.add("a/many:1", image)
    running = most = 0

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await world.registry.serve(request)

    world.registry.take_over = counted
    await world.pull("a/many:1")
    assert most == 2


@pytest.mark.parametrize("same_instance", [True, False])
async def test_two_pulls_of_one_image_download_it_once(worlds: tuple[World, World], *, same_instance: bool) -> None:
    one, two = worlds
    one.registry.add("c/d:2", IMAGE)
    other = one if same_instance else two
    assert set(await asyncio.gather(one.pull(), other.pull("c/d:2"))) == {IMAGE.id}
    assert len(one.registry.requests("blobs")) == 1 + len(IMAGE.layers)
    (record,) = (await two.images()).values()
    assert len(record.tags) == 2


async def test_pulls_that_share_layers_do_not_disturb_each_other(worlds: tuple[World, World]) -> None:
    one, two = worlds
    names = []
    for number in range(6):
        one.registry.add(f"a/shares:{number}", images.small(f"number {number}"))
        names.append(f"a/shares:{number}")
    ids = await asyncio.gather(*((two if number % 2 else one).pull(name) for number, name in enumerate(names)))
    assert set(await one.images()) == set(ids)
    assert len(ids) == len(names)


def spoiled_layer(world: World) -> None:
    world.registry.blobs[images.digest_of(IMAGE.layers[1].blob)] = b"z" * len(IMAGE.layers[1].blob)


def spoiled_config(world: World) -> None:
    world.registry.blobs[IMAGE.id] = b"z" * len(IMAGE.config)


def missing_layer(world: World) -> None:
    del world.registry.blobs[images.digest_of(IMAGE.layers[1].blob)]


def broken_layer(world: World) -> None:
    world.registry.break_after = 0


def lying_config(world: World) -> None:
    config = json.loads(IMAGE.config)
    config["rootfs"]["diff_ids"][1] = images.digest_of(b"something else")
    text = json.dumps(config).encode()
    manifest = json.loads(IMAGE.manifest)
    manifest["config"] |= {"digest": images.digest_of(text), "size": len(text)}
    world.registry.blobs[images.digest_of(text)] = text
    world.registry.manifests["a/b@1"] = (IMAGE.media_type, json.dumps(manifest).encode())


def full_disk(world: World) -> None:
    world.storage.fail["commit_image"] = ResourceExhausted("cannot commit: the disk is full")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (spoiled_layer, DataLoss),
        (spoiled_config, DataLoss),
        (missing_layer, NotFound),
        (broken_layer, Failed),
        (lying_config, DataLoss),
        (full_disk, ResourceExhausted),
    ],
)
async def test_a_failed_pull_leaves_nothing(world: World, spoil: object, error: type[Fault]) -> None:
    assert callable(spoil)
    spoil(world)
    with pytest.raises(error, match=r"^(cannot|RegistryUnavailable)"):
        await world.pull()
    assert await world.left() == []
    assert world.storage.layers == {}
    assert await world.images() == {}


async def test_a_failed_pull_takes_no_name_from_the_image_that_has_it(world: World) -> None:
    await world.pull()
    world.registry.add("a/b:1", OTHER)
    full_disk(world)
    with pytest.raises(ResourceExhausted):
        await world.pull()
    assert (await world.images())[IMAGE.id].tags == (f"{world.registry.host}/a/b:1",)


async def test_a_cancelled_pull_leaves_nothing(world: World) -> None:
    world.storage.may_unpack.clear()
    task = asyncio.create_task(world.pull())
    await world.storage.unpacking.wait()
    task.cancel()
    await asyncio.wait({task})
    world.storage.may_unpack.set()
    assert task.cancelled()
    assert await world.images() == {}
    assert (await world.catalogue.unfinished(), list((world.state / "blobs").iterdir())) == ([], [])
    assert calls(world, RemoveImageRequest) == [RemoveImageRequest(image_id=IMAGE.id)]


async def test_storage_that_forgot_what_was_unpacked_gets_it_again(world: World) -> None:
    world.storage.fail["commit_image"] = FailedPrecondition("cannot commit: a layer is not unpacked")
    assert await world.pull() == IMAGE.id
    assert len(calls(world, CommitImageRequest)) == 2
    assert len(calls(world, UnpackLayerRequest)) == 6  # asked and unpacked, and asked once more


async def test_an_image_storage_has_lost_is_pulled_again(world: World) -> None:
    await world.pull()
    world.storage.images.clear()
    world.storage.layers.clear()
    assert await world.pull() == IMAGE.id
    assert list(world.storage.images) == [IMAGE.id]
    assert len((await world.images())[IMAGE.id].tags) == 1


async def test_an_undo_that_fails_is_made_up_for(worlds: tuple[World, World]) -> None:
    one, two = worlds
    spoiled_layer(one)
    one.storage.fail["remove_image"] = Failed("cannot remove it now")
    with pytest.raises(DataLoss):
        await one.pull()
    assert await two.catalogue.unfinished() == [IMAGE.id]
    await two.removal.recover()
    assert await two.catalogue.unfinished() == []


async def test_an_undo_that_fails_is_done_again_in_the_background(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("criw_image.removal._FIRST_PAUSE_S", 0.001)
    spoiled_layer(world)
    world.storage.fail["remove_image"] = Failed("cannot remove it now")
    with pytest.raises(DataLoss):
        await world.pull()
    assert world.removal.failures == 1
    again = asyncio.create_task(world.removal.run())
    async with asyncio.timeout(10):
        while await world.catalogue.unfinished():
            await asyncio.sleep(0)
    again.cancel()
    await asyncio.wait({again})
    assert world.removal.failures == 0


async def test_what_cannot_be_recovered_keeps_neither_the_rest_nor_the_start(world: World) -> None:
    with killed_at_commit(world):
        await world.pull()
    blobs, claims = world.state / "blobs", world.state / "claims"
    (blobs / "a file").touch()
    (blobs / ("b" * 251)).mkdir()  # its claim has a name too long for the file system
    (claims / "directory.lock").mkdir()
    await world.removal.recover()
    assert world.removal.failures == 2
    assert [path.name for path in blobs.iterdir()] == ["b" * 251]
    assert await world.catalogue.unfinished() == []
    (blobs / ("b" * 251)).rmdir()
    (claims / "directory.lock").rmdir()
    await world.removal.recover()
    assert world.removal.failures == 0


async def test_a_start_without_storage_is_made_up_for(world: World) -> None:
    with killed_at_commit(world):
        await world.pull()
    world.storage.fail["list_images"] = Failed("cannot list: the disk is broken")
    await world.removal.recover()
    assert world.removal.failures == 1
    await world.removal.recover()
    assert world.removal.failures == 0


@contextlib.contextmanager
def killed_at_commit(world: World) -> Iterator[None]:
    """Leave the state as a killed process does: what the pull does in its defence is not done."""
    world.storage.fail["commit_image"] = Failed("cannot: killed")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Failed, match="killed"):
        patch.setattr(world.removal, "undo", _nothing)
        yield


async def _nothing(_: str) -> None:
    pass


async def test_what_a_killed_agent_left_is_undone_at_the_next_start(worlds: tuple[World, World]) -> None:
    one, two = worlds
    with killed_at_commit(one):
        await one.pull()
    assert len(await two.left()) == 3  # blobs, the row, storage's hold
    await two.removal.recover()
    assert await two.left() == []
    assert one.storage.layers == {}


async def test_a_pull_takes_over_what_a_killed_agent_left(worlds: tuple[World, World]) -> None:
    one, two = worlds
    with killed_at_commit(one):
        await one.pull()
    one.registry.seen.clear()
    assert await two.pull() == IMAGE.id
    assert len(one.registry.requests("blobs")) == 1  # the configuration; the layers are in storage already


async def test_a_start_leaves_the_pulls_of_others_alone(worlds: tuple[World, World]) -> None:
    one, two = worlds
    one.storage.may_unpack.clear()
    task = asyncio.create_task(one.pull())
    await one.storage.unpacking.wait()
    await two.removal.recover()
    assert calls(one, RemoveImageRequest) == []
    one.storage.may_unpack.set()
    assert await task == IMAGE.id


async def test_records_and_storage_are_made_to_agree(world: World) -> None:
    await world.pull()
    world.registry.add("a/other:1", OTHER)
    await world.pull("a/other:1")
    world.storage.images["sha256:unknown"] = ()
    del world.storage.images[OTHER.id]
    (world.state / "blobs" / "stray").mkdir()
    (world.state / "blobs" / "stray" / "0").touch()
    (world.state / "claims" / "stray.lock").touch()
    await world.removal.recover()
    assert list(await world.images()) == list(world.storage.images) == [IMAGE.id]


@pytest.mark.parametrize("by", ["id", "digits", "tag", "digest"])
async def test_an_image_is_removed_with_all_its_names(world: World, by: str) -> None:
    await world.pull()
    world.registry.add("a/b:2", IMAGE)
    await world.pull("a/b:2")
    host = world.registry.host
    names = {"id": IMAGE.id, "digits": IMAGE.id[7:20], "tag": f"{host}/a/b:2", "digest": f"{host}/a/b@{IMAGE.digest}"}
    await world.removal.remove(names[by])
    assert await world.images() == {}
    assert world.storage.layers == {}
    await world.removal.remove(names[by])


async def test_a_removal_that_fails_can_be_repeated(world: World) -> None:
    await world.pull()
    world.storage.fail["remove_image"] = Failed("cannot remove it now")
    with pytest.raises(Failed):
        await world.removal.remove(IMAGE.id)
    await world.removal.remove(IMAGE.id)
    assert world.storage.images == {}


async def test_a_removal_waits_for_the_pull_of_the_same_image(world: World) -> None:
    await world.pull()
    world.storage.images.clear()  # so that it is pulled again
    world.storage.layers.clear()
    world.storage.unpacking.clear()
    world.storage.may_unpack.clear()
    pulling = asyncio.create_task(world.pull())
    await world.storage.unpacking.wait()
    removing = asyncio.create_task(world.removal.remove(IMAGE.id))
    await asyncio.sleep(0)
    world.storage.may_unpack.set()
    assert await pulling == IMAGE.id
    await removing
    assert set(world.storage.images) == set(await world.images())
