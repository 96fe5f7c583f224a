"""Images: one identity everywhere."""

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from support.client import Client
from support.node import Node


async def image_of(client: Client, reference: str) -> cri.Image | None:
    return (await client.images.image_status(cri.ImageStatusRequest(image=cri.ImageSpec(image=reference)))).image


async def all_images(client: Client) -> list[cri.Image]:
    return (await client.images.list_images(cri.ListImagesRequest())).images


async def remove(client: Client, reference: str) -> None:
    await client.images.remove_image(cri.RemoveImageRequest(image=cri.ImageSpec(image=reference)))


async def test_one_identity_everywhere(client: Client, node: Node) -> None:
    image_id = await client.pull(node.busybox)
    image = await image_of(client, node.busybox)
    assert image is not None
    assert image.id == image_id
    assert image.size > 0
    assert node.busybox in image.repo_tags
    assert image_id in [one.id for one in await all_images(client)]
    for reference in (image_id, image.repo_digests[0]):
        found = await image_of(client, reference)
        assert found is not None
        assert found.id == image_id
    container_id = await client.create(await client.run_pod(), image_id)
    assert (await client.status(container_id)).image_id == image_id


async def test_an_image_that_is_not_there_is_no_error(client: Client) -> None:
    assert await image_of(client, "localhost/no/such:image") is None
    await remove(client, "localhost/no/such:image")


async def test_two_tags_are_one_image_and_go_together(client: Client, node: Node) -> None:
    ids = {await client.pull(tag) for tag in node.tags}
    assert len(ids) == 1
    (image_id,) = ids
    (image,) = [one for one in await all_images(client) if one.id == image_id]
    assert set(image.repo_tags) == set(node.tags)
    await remove(client, node.tags[0])
    assert await image_of(client, node.tags[1]) is None
    assert image_id not in [one.id for one in await all_images(client)]


async def test_an_image_is_gone_after_its_removal(client: Client, node: Node) -> None:
    image_id = await client.pull(node.nginx)
    for _ in range(2):
        await remove(client, image_id)
    assert await image_of(client, node.nginx) is None


async def test_the_image_file_system_is_told(client: Client, busybox: str) -> None:
    (usage, *_) = (await client.images.image_fs_info(cri.ImageFsInfoRequest())).image_filesystems
    assert usage.fs_id is not None
    assert usage.fs_id.mountpoint.startswith("/")
    assert usage.used_bytes is not None
    assert usage.used_bytes.value > 0
    assert usage.timestamp > 0


@pytest.mark.parametrize("reference", ["", "UPPER/Case", "a//b", "host/name:tag:tag", "name@sha256:abc"])
async def test_malformed_references_are_refused(client: Client, reference: str) -> None:
    with pytest.raises(GRPCError) as refused:
        await client.pull(reference)
    assert refused.value.status in {Status.INVALID_ARGUMENT, Status.UNKNOWN}


async def test_an_image_the_registry_lacks_is_refused(client: Client, node: Node) -> None:
    registry = node.busybox.partition("/")[0]
    with pytest.raises(GRPCError) as refused:
        await client.pull(f"{registry}/no/such:image")
    assert "no/such" in str(refused.value.message)


async def test_a_registry_that_is_down_is_told(client: Client) -> None:
    with pytest.raises(GRPCError) as refused:
        await client.pull("127.0.0.1:1/some/image:latest")
    assert "127.0.0.1:1" in str(refused.value.message)
