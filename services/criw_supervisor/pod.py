"""One pod and one container as the supervisor has them in memory: their records and what the CRI tells of them."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from criw_proto.runtime import v1 as cri
from criw_supervisor.index import chunk
from criw_supervisor.records import ContainerRecord, ContainerState, PodRecord, PodState
from criw_supervisor.sandbox import SandboxFiles
from criw_supervisor.signals import cri_signal

_CONTAINER_STATE: Mapping[ContainerState, cri.ContainerState] = {
    ContainerState.CREATED: cri.ContainerState.CONTAINER_CREATED,
    ContainerState.RUNNING: cri.ContainerState.CONTAINER_RUNNING,
    ContainerState.EXITED: cri.ContainerState.CONTAINER_EXITED,
}


class Pod:
    """A pod sandbox. Replace `record` through `update()`, which keeps the listing true."""

    def __init__(self, record: PodRecord, files: SandboxFiles) -> None:
        self.files = files
        self.config = cri.PodSandboxConfig.parse(record.config)
        self.labels: Mapping[str, str] = self.config.labels
        self.update(record)

    def update(self, record: PodRecord) -> None:
        self.record = record
        self.listing = chunk(
            bytes(
                cri.PodSandbox(
                    id=record.id,
                    metadata=self.config.metadata,
                    state=self.state,
                    created_at=record.created_at_ns,
                    labels=self.config.labels,
                    annotations=self.config.annotations,
                    runtime_handler=record.runtime_handler,
                )
            )
        )

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def ready(self) -> bool:
        return self.record.state is PodState.READY

    @property
    def state(self) -> cri.PodSandboxState:
        return cri.PodSandboxState.SANDBOX_READY if self.ready else cri.PodSandboxState.SANDBOX_NOTREADY

    @property
    def options(self) -> cri.NamespaceOption:
        return namespace_options(self.config)

    @property
    def hostname(self) -> str:
        return self.files.etc("hostname").read_text().strip()

    def namespaces(self, infra: ContainerRecord | None) -> dict[str, str]:
        """OCI type and path of the namespaces a container of the pod joins."""
        result = self.files.namespaces()
        if self.record.netns:
            result["network"] = self.record.netns
        if infra is not None:
            result["pid"] = f"/proc/{infra.pid}/ns/pid"
        return result

    def status(self) -> cri.PodSandboxStatus:
        ips = self.record.ips if self.ready else ()
        return cri.PodSandboxStatus(
            id=self.id,
            metadata=self.config.metadata,
            state=self.state,
            created_at=self.record.created_at_ns,
            network=cri.PodSandboxNetworkStatus(
                ip=ips[0] if ips else "", additional_ips=[cri.PodIp(ip=ip) for ip in ips[1:]]
            ),
            linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=self.options)),
            labels=self.config.labels,
            annotations=self.config.annotations,
            runtime_handler=self.record.runtime_handler,
        )

    def attributes(self) -> cri.PodSandboxAttributes:
        return cri.PodSandboxAttributes(
            id=self.id,
            metadata=self.config.metadata,
            labels=self.config.labels,
            annotations=self.config.annotations,
        )


def namespace_options(config: cri.PodSandboxConfig) -> cri.NamespaceOption:
    """The namespaces a pod asks for; all of the pod's own, a shared PID namespace too, if it says nothing (CRI v1)."""
    security = config.linux.security_context if config.linux else None
    return (security.namespace_options if security else None) or cri.NamespaceOption()


@dataclass
class Stopping:
    """A stop in progress: when SIGKILL follows (loop time). A later, shorter request moves it forward."""

    deadline: float
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class Container:
    """A container. Replace `record` through `update()`, which keeps the listing true."""

    def __init__(self, record: ContainerRecord, bundle: Path) -> None:
        self.bundle = bundle
        self.config = cri.ContainerConfig.parse(record.config)
        self.labels: Mapping[str, str] = self.config.labels
        self.exited = asyncio.Event()
        self.stopping: Stopping | None = None
        self.update(record)

    def update(self, record: ContainerRecord) -> None:
        self.record = record
        self.listing = chunk(
            bytes(
                cri.Container(
                    id=record.id,
                    pod_sandbox_id=record.pod_id,
                    metadata=self.config.metadata,
                    image=self.config.image,
                    image_ref=record.image_ref,
                    state=_CONTAINER_STATE[record.state],
                    created_at=record.created_at_ns,
                    labels=self.config.labels,
                    annotations=self.config.annotations,
                    image_id=record.image_id,
                )
            )
        )
        if record.state is ContainerState.EXITED:
            self.exited.set()

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> cri.ContainerState:
        return _CONTAINER_STATE[self.record.state]

    @property
    def name(self) -> str:
        return self.config.metadata.name if self.config.metadata else ""

    def status(self) -> cri.ContainerStatus:
        record = self.record
        resources = cri.LinuxContainerResources.parse(record.resources)
        user = cri.LinuxContainerUser(uid=record.uid, gid=record.gid, supplemental_groups=list(record.groups))
        return cri.ContainerStatus(
            id=record.id,
            metadata=self.config.metadata,
            state=self.state,
            created_at=record.created_at_ns,
            started_at=record.started_at_ns,
            finished_at=record.finished_at_ns,
            exit_code=record.exit_code,
            image=self.config.image,
            image_ref=record.image_ref,
            reason=record.reason,
            message=record.message,
            labels=self.config.labels,
            annotations=self.config.annotations,
            mounts=self.config.mounts,
            log_path=record.log_path,
            resources=cri.ContainerResources(linux=resources),
            image_id=record.image_id,
            user=cri.ContainerUser(linux=user),
            stop_signal=cri_signal(record.stop_signal),
        )

    def attributes(self) -> cri.ContainerAttributes:
        return cri.ContainerAttributes(
            id=self.id,
            metadata=self.config.metadata,
            labels=self.config.labels,
            annotations=self.config.annotations,
        )


def log_path(config: cri.ContainerConfig, pod: cri.PodSandboxConfig) -> str:
    """Where the container's log goes; "" if the request wants none."""
    if not config.log_path or not pod.log_directory:
        return ""
    return os.path.normpath(f"{pod.log_directory}/{config.log_path}")
