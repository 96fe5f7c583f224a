"""The lists of pods and containers."""

import asyncio
from typing import Final

from criw.errors import NotFound
from criw.rpc.client import ask
from criw_ctl.door import Door
from criw_ctl.names import name_of, runs, take_inventory
from criw_ctl.tables import age, short
from criw_proto.runtime.v1 import (
    Container,
    ContainerState,
    ListContainersResponse,
    ListPodSandboxResponse,
    PodSandbox,
    PodSandboxState,
    PodSandboxStatusRequest,
)

POD_COLUMNS: Final = ("POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "IP")
CONTAINER_COLUMNS: Final = ("CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "POD ID", "POD")
_STATE: Final = {
    ContainerState.CONTAINER_CREATED: "created",
    ContainerState.CONTAINER_RUNNING: "running",
    ContainerState.CONTAINER_EXITED: "exited",
}


async def pods(door: Door) -> ListPodSandboxResponse:
    """All pods, newest first."""
    return ListPodSandboxResponse(items=list((await take_inventory(door)).pods))


async def pod_rows(door: Door) -> list[tuple[str, ...]]:
    found = (await pods(door)).items
    addresses = await asyncio.gather(*(_addresses(door, pod) for pod in found))
    return [_pod_row(pod, address) for pod, address in zip(found, addresses, strict=True)]


async def _addresses(door: Door, pod: PodSandbox) -> str:
    if pod.state is not PodSandboxState.SANDBOX_READY:
        return ""
    try:
        reply = await ask(door.runtime.pod_sandbox_status, PodSandboxStatusRequest(pod_sandbox_id=pod.id))
    except NotFound:  # removed since it was listed
        return ""
    network = reply.status.network if reply.status else None
    return ", ".join([network.ip, *(each.ip for each in network.additional_ips)]) if network else ""


def _pod_row(pod: PodSandbox, addresses: str) -> tuple[str, ...]:
    state = "ready" if pod.state is PodSandboxState.SANDBOX_READY else "not ready"
    namespace = pod.metadata.namespace if pod.metadata else ""
    return short(pod.id), age(pod.created_at), state, name_of(pod), namespace, addresses


async def containers(door: Door, *, everything: bool) -> ListContainersResponse:
    """The containers that run, or all, newest first."""
    found = (await take_inventory(door)).containers
    return ListContainersResponse(containers=[each for each in found if everything or runs(each)])


async def container_rows(door: Door, *, everything: bool) -> list[tuple[str, ...]]:
    inventory = await take_inventory(door)
    pod_names = {pod.id: name_of(pod) for pod in inventory.pods}
    return [
        (
            short(container.id),
            _image(container),
            age(container.created_at),
            _STATE.get(container.state, "unknown"),
            name_of(container),
            short(container.pod_sandbox_id),
            pod_names.get(container.pod_sandbox_id, ""),
        )
        for container in inventory.containers
        if everything or runs(container)
    ]


def _image(container: Container) -> str:
    """As the user wrote it, where the client passed that on."""
    if container.image is None:
        return ""
    name = container.image.user_specified_image or container.image.image
    return short(name) if name.startswith("sha256:") else name
