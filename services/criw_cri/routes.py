"""Which agent answers which call of the door, and which calls may be repeated when that agent dies in the middle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from grpclib.const import Cardinality

from criw.config.common import AgentName
from criw_proto.criw.image.v1 import ImagesBase
from criw_proto.runtime.v1 import ImageServiceBase, RuntimeServiceBase

SERVICES: Final[tuple[tuple[AgentName, type[RuntimeServiceBase | ImageServiceBase | ImagesBase]], ...]] = (
    ("supervisor", RuntimeServiceBase),
    ("image", ImageServiceBase),
    ("image", ImagesBase),  # what criwctl needs besides the CRI: only the door is open to its users
)
# Whether to repeat: what only reads, and what the CRI declares idempotent. Never a stream, part of which has been
# passed on, nor what makes, starts or changes something: its caller must learn that the outcome is not known.
REPEATED: Final[Mapping[str, bool]] = {
    "Attach": False,
    "CheckpointContainer": False,
    "CheckpointPod": False,
    "ContainerStats": True,
    "ContainerStatus": True,
    "CreateContainer": False,
    "Exec": False,
    "ExecSync": False,
    "GetContainerEvents": False,
    "ImageFsInfo": True,
    "ImageStatus": True,
    "Inspect": True,
    "ListContainerStats": True,
    "ListContainers": True,
    "ListImages": True,
    "ListMetricDescriptors": True,
    "ListPodSandbox": True,
    "ListPodSandboxMetrics": True,
    "ListPodSandboxStats": True,
    "PodSandboxStats": True,
    "PodSandboxStatus": True,
    "PortForward": False,
    "Pull": False,
    "PullImage": False,
    "RemoveContainer": True,
    "RemoveImage": True,
    "RemovePodSandbox": True,
    "ReopenContainerLog": False,
    "RestorePod": False,
    "RunPodSandbox": False,
    "RuntimeConfig": True,
    "StartContainer": False,
    "Status": True,
    "StopContainer": True,
    "StopPodSandbox": True,
    "StreamContainerStats": False,
    "StreamContainers": False,
    "StreamImages": False,
    "StreamPodSandboxMetrics": False,
    "StreamPodSandboxStats": False,
    "StreamPodSandboxes": False,
    "UpdateContainerResources": False,
    "UpdatePodSandboxResources": False,
    "UpdateRuntimeConfig": True,
    "Version": True,
}


@dataclass(frozen=True)
class Route:
    """One method: its gRPC path, the agent behind it, how it is called, and whether that may be repeated."""

    path: str
    agent: AgentName
    cardinality: Cardinality
    repeated: bool


def routes() -> Mapping[str, Route]:
    """Every method of the door's services by its path."""
    return {
        path: Route(path, agent, entry.cardinality, REPEATED[path.rpartition("/")[2]])
        for agent, service in SERVICES
        for path, entry in service().__mapping__().items()
    }
