"""Everything the crew tells of one pod, container or image, as a JSON document."""

import json
from collections.abc import Mapping

from criw.errors import NotFound
from criw.rpc.client import ask
from criw_ctl.door import Door
from criw_ctl.names import take_inventory
from criw_proto.runtime.v1 import (
    Container,
    ContainerStatusRequest,
    ContainerStatusResponse,
    ImageSpec,
    ImageStatusRequest,
    ImageStatusResponse,
    PodSandboxStatusRequest,
    PodSandboxStatusResponse,
)


async def inspect(door: Door, text: str) -> dict[str, object]:
    """What `text` means: a container's status, a pod's with those of its containers, or an image's.

    Raises NotFound if it means nothing.
    """
    inventory = await take_inventory(door)
    try:
        item = inventory.pod_or_container(text)
    except NotFound:
        request = ImageStatusRequest(image=ImageSpec(image=text), verbose=True)
        image = await ask(door.images.image_status, request)
        if image.image is None:
            raise
        return _document(image)
    if isinstance(item, Container):
        return await _container(door, item.id)
    pod = await ask(door.runtime.pod_sandbox_status, PodSandboxStatusRequest(pod_sandbox_id=item.id, verbose=True))
    containers = [await _container(door, container.id) for container in inventory.containers_of(item)]
    return _document(pod) | {"containers": containers}


async def _container(door: Door, container_id: str) -> dict[str, object]:
    request = ContainerStatusRequest(container_id=container_id, verbose=True)
    return _document(await ask(door.runtime.container_status, request))


def _document(reply: ContainerStatusResponse | PodSandboxStatusResponse | ImageStatusResponse) -> dict[str, object]:
    """The status as protobuf's JSON, and the entries of the verbose `info` beside it, as crictl shows them."""
    about = reply.image if isinstance(reply, ImageStatusResponse) else reply.status
    assert about is not None
    return {"status": about.to_dict(include_default_values=True)} | _decoded(reply.info)


def _decoded(info: Mapping[str, str]) -> dict[str, object]:
    """With the values decoded that are JSON."""
    decoded: dict[str, object] = {}
    for key, value in info.items():
        try:
            decoded[key] = json.loads(value)
        except json.JSONDecodeError:
            decoded[key] = value
    return decoded
