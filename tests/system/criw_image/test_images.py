"""What a client of the CRI sees: identity, names, sizes, users, progress."""

import asyncio
import json
import subprocess

import aiohttp
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.criw.image import v1 as own
from criw_proto.runtime import v1 as cri
from support import images
from support.image_agent import Images, running_images
from support.registry import running_registry


def entry(address: str) -> str:
    return f'[image.registries."{address}"]\nplain_http = true\n'


async def test_every_kind_of_image() -> None:
    catalogue = images.catalogue()
    async with running_registry() as registry:
        for name, pushed in catalogue.items():
            await registry.push(name, pushed)
        async with running_images(entry(registry.address)) as agent:
            for name, pushed in catalogue.items():
                if name == "test/other-platform:1":
                    with pytest.raises(GRPCError, match="it offers linux/s390x"):
                        await agent.pull(f"{registry.address}/{name}")
                    continue
                image_id = await agent.pull(f"{registry.address}/{name}")
                found = await agent.find(f"{registry.address}/{name}")
                assert found is not None
                assert found.id == image_id
                assert f"{registry.address}/{name.rpartition(':')[0]}@{pushed.digest}" in found.repo_digests
                if isinstance(pushed, images.Image):
                    assert image_id == pushed.id
            listed = await agent.all()
            # Two that differ only in how their layers or manifests are written are one image.
            assert {image.id for image in listed} == {
                one.id
                for pushed in catalogue.values()
                for one in (pushed.images if isinstance(pushed, images.Index) else (pushed,))
                if json.loads(one.config)["architecture"] == images.ARCHITECTURE
            }
            assert all(image.size > 0 for image in listed)
            users = {tag.rpartition("/")[2]: image for image in listed for tag in image.repo_tags}
            assert _user(users["user-uid:1"]) == (1002, "")
            assert _user(users["user-uid-group:1"]) == (1003, "")
            assert _user(users["user-name:1"]) == (None, "www-data")
            assert _user(users["user-name-group:1"]) == (None, "www-data")
            assert _user(users["busybox:latest"]) == (None, "")


def _user(image: cri.Image) -> tuple[int | None, str]:
    return (None if image.uid is None else image.uid.value, image.username)


async def test_images_pulled_at_once_share_their_layers() -> None:
    several = [images.image(images.base_layer(), images.layer(images.file("n", str(n)))) for n in range(6)]
    async with running_registry() as registry:
        references = [await registry.push(f"a/{number}:1", image) for number, image in enumerate(several)]
        async with running_images(entry(registry.address)) as agent:
            ids = await asyncio.gather(*(agent.pull(reference) for reference in references))
            assert list(ids) == [image.id for image in several]
            assert len(list((agent.crew.config.state_dir("storage") / "layers").iterdir())) == 1 + len(several)


async def test_a_name_in_every_form() -> None:
    image = images.small("names")
    async with running_registry() as registry:
        reference = await registry.push("a/b:1", image)
        name = reference.rpartition(":")[0]
        async with running_images(entry(registry.address)) as agent:
            assert await agent.pull(f"{name}@{image.digest}") == image.id
            found = await agent.find(image.id)
            assert found is not None
            assert (found.repo_tags, found.repo_digests) == ([], [f"{name}@{image.digest}"])
            assert await agent.find(reference) is None
            assert await agent.pull(reference) == image.id
            for text in (reference, f"{name}@{image.digest}", image.id, image.id[7:], image.id[7:20], image.id[:20]):
                found = await agent.find(text)
                assert found is not None, text
                assert found.repo_tags == [reference]
                request = cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image=text)))
                assert (await agent.stub.list_images(request)).images == [found]
            request = cri.ListImagesRequest(filter=cri.ImageFilter(image=cri.ImageSpec(image="no-such")))
            assert (await agent.stub.list_images(request)).images == []


async def test_a_removed_image_frees_its_space_at_once() -> None:
    small, large = images.small("small"), images.nginx()
    async with running_registry() as registry:
        one, two = await registry.push("a/small:1", small), await registry.push("a/large:1", large)
        async with running_images(entry(registry.address)) as agent:
            await agent.pull(one)
            before = await agent.used_bytes()
            await agent.pull(two)
            with_both = await agent.used_bytes()
            assert with_both - before > 5_000_000
            await agent.remove(large.id)
            assert await agent.used_bytes() == before
            assert [image.id for image in await agent.all()] == [small.id]
            await agent.remove(large.id)
            await agent.remove("no/such")


async def test_the_image_file_system() -> None:
    async with running_images("") as agent:
        reply = await agent.stub.image_fs_info(cri.ImageFsInfoRequest())
        for usage in (*reply.image_filesystems, *reply.container_filesystems):
            assert usage.fs_id is not None
            assert subprocess.run(["test", "-d", usage.fs_id.mountpoint], check=False).returncode == 0
            assert usage.used_bytes is not None
            assert usage.inodes_used is not None
            assert usage.timestamp > 0
        assert (len(reply.image_filesystems), len(reply.container_filesystems)) == (1, 1)


async def test_verbose_status_and_inspect() -> None:
    image = images.busybox({"Labels": {"a": "b"}})
    async with running_registry() as registry:
        reference = await registry.push("a/b:1", image)
        async with running_images(entry(registry.address)) as agent:
            await agent.pull(reference)
            spec = cri.ImageSpec(image=reference)
            assert (await agent.stub.image_status(cri.ImageStatusRequest(image=spec))).info == {}
            reply = await agent.stub.image_status(cri.ImageStatusRequest(image=spec, verbose=True))
            info = json.loads(reply.info["info"])
            assert info["imageSpec"] == json.loads(image.config)
            assert info["chainID"] == image.layers[0].diff_id
            inspected = await own.ImagesStub(agent.channel).inspect(own.InspectRequest(image=image.id[7:20]))
            assert (inspected.id, inspected.config) == (image.id, image.config)
            assert inspected.repo_tags == [reference]
            assert reply.image is not None
            assert inspected.size_bytes == reply.image.size
            with pytest.raises(GRPCError) as refusal:
                await own.ImagesStub(agent.channel).inspect(own.InspectRequest(image="no-such"))
            assert refusal.value.status is Status.NOT_FOUND


async def progress_of(agent: Images, reference: str) -> list[own.PullProgress]:
    return [message async for message in own.ImagesStub(agent.channel).pull(own.PullRequest(image=reference))]


async def test_progress_is_told_until_the_id() -> None:
    image = images.nginx()
    async with running_registry() as registry:
        reference = await registry.push("a/nginx:1", image)
        async with running_images(entry(registry.address)) as agent:
            messages = await progress_of(agent, reference)
            assert [message.image_id for message in messages] == [""] * (len(messages) - 1) + [image.id]
            last = messages[-1].layers
            assert [layer.digest for layer in last] == [images.digest_of(one.blob) for one in image.layers]
            assert [layer.total_bytes for layer in last] == [len(one.blob) for one in image.layers]
            assert all(layer.done_bytes == layer.total_bytes for layer in last)
            assert all(layer.state is own.LayerState.DONE for layer in last)
            assert (await progress_of(agent, reference))[-1].image_id == image.id
            with pytest.raises(GRPCError) as refusal:
                await progress_of(agent, f"{registry.address}/no/such:1")
            assert refusal.value.status is Status.NOT_FOUND


async def test_numbers_are_counted() -> None:
    image = images.small("counted")
    async with running_registry() as registry:
        reference = await registry.push("a/b:1", image)
        async with running_images(entry(registry.address)) as agent, aiohttp.ClientSession() as http:
            await agent.pull(reference)
            await agent.all()
            with pytest.raises(GRPCError):
                await agent.pull(f"{registry.address}/no/such:1")
            url = agent.crew.config.image.http
            async with http.get(f"http://{url}/metrics") as reply:
                lines = set((await reply.text()).splitlines())
            assert {
                'criw_image_pulls_total{code="OK"} 1.0',
                'criw_image_pulls_total{code="NOT_FOUND"} 1.0',
                f"criw_image_downloaded_bytes_total {float(sum(len(one.blob) for one in image.layers))}",
                "criw_image_images 1.0",
            } <= lines


async def test_lists_are_not_streamed_yet() -> None:
    async with running_images("") as agent:
        with pytest.raises(GRPCError) as refusal:
            async for _ in agent.stub.stream_images(cri.StreamImagesRequest()):
                pass
        assert refusal.value.status is Status.UNIMPLEMENTED
