"""Which agent answers which call of the CRI, and which calls may be repeated when that agent dies in the middle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from grpclib.const import Cardinality

from criw.config.common import AgentName
from criw_proto.runtime.v1 import ImageServiceBase, RuntimeServiceBase

# Methods that only read, and those the CRI declares idempotent.
IDEMPOTENT: Final = frozenset(
    {
        "ContainerStats", "ContainerStatus", "ImageFsInfo", "ImageStatus", "ListContainerStats", "ListContainers",
        "ListImages", "ListMetricDescriptors", "ListPodSandbox", "ListPodSandboxMetrics", "ListPodSandboxStats",
        "PodSandboxStats", "PodSandboxStatus", "RemoveContainer", "RemoveImage", "RemovePodSandbox", "RuntimeConfig",
        "Status", "StopContainer", "StopPodSandbox", "UpdateRuntimeConfig", "Version",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Route:
    """One method: its gRPC path, the agent behind it, and how it may be called."""

    path: str
    agent: AgentName
    cardinality: Cardinality

    @property
    def idempotent(self) -> bool:
        return self.path.rpartition("/")[2] in IDEMPOTENT


def routes() -> Mapping[str, Route]:
    """Every method of the CRI by its path."""
    services: tuple[tuple[AgentName, RuntimeServiceBase | ImageServiceBase], ...] = (
        ("supervisor", RuntimeServiceBase()),
        ("image", ImageServiceBase()),
    )
    return {
        path: Route(path, agent, entry.cardinality)
        for agent, service in services
        for path, entry in service.__mapping__().items()
    }
