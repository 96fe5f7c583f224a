"""Everything the supervisor knows, in memory as a copy of its store, and where it keeps things."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from criw.locks import KeyedLocks
from criw.store import Store
from criw_proto.runtime.v1 import ContainerMetadata, PodSandboxMetadata
from criw_supervisor.index import Index
from criw_supervisor.monitors import Monitors
from criw_supervisor.pod import Container, Pod
from criw_supervisor.records import ContainerState
from criw_supervisor.sandbox import SandboxFiles


@dataclass(frozen=True)
class Places:
    """Directories below `<run>/supervisor`."""

    run: Path

    @property
    def exits(self) -> Path:
        """conmon's exit files, named after container ids."""
        return self.run / "exits"

    def pod(self, pod_id: str) -> SandboxFiles:
        return SandboxFiles(self.run / "pods" / pod_id)

    def bundle(self, container_id: str) -> Path:
        return self.run / "containers" / container_id


@dataclass
class State:
    """Pods, containers, and the infra containers of pods with a shared PID namespace (by pod id; never listed)."""

    store: Store
    places: Places
    pods: Index[Pod] = field(default_factory=lambda: Index("pod sandbox"))
    containers: Index[Container] = field(default_factory=lambda: Index("container"))
    infra: dict[str, Container] = field(default_factory=dict)
    monitors: Monitors = field(default_factory=Monitors)
    pod_locks: KeyedLocks = field(default_factory=KeyedLocks)  # taken before any container's
    container_locks: KeyedLocks = field(default_factory=KeyedLocks)
    pending: set[str] = field(default_factory=set)  # ids of pods and containers that are being made

    def add_container(self, container: Container) -> None:
        """Have a container that is there in the index (an infra container with its pod) and its conmon watched."""
        if container.record.infra:
            self.infra[container.record.pod_id] = container
        else:
            self.containers.add(container)
        if container.record.state is not ContainerState.EXITED:
            self.monitors.watch(container)

    def pod_named(self, metadata: PodSandboxMetadata) -> Pod | None:
        """The pod with exactly this metadata."""
        return next((pod for pod in self.pods if pod.config.metadata == metadata), None)

    def container_named(self, pod_id: str, metadata: ContainerMetadata) -> Container | None:
        """The pod's container with exactly this metadata."""
        return next((one for one in self.containers_of(pod_id) if one.config.metadata == metadata), None)

    def containers_of(self, pod_id: str) -> Iterator[Container]:
        return (container for container in self.containers if container.record.pod_id == pod_id)

    def known_container(self, container_id: str) -> Container | None:
        """A container by its full id, infra containers included."""
        found = self.containers.get(container_id)
        if found is not None:
            return found
        return next((one for one in self.infra.values() if one.id == container_id), None)
