"""One container as the supervisor has it in memory: its record and what the CRI tells of it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger.index import chunk
from criw_supervisor.ledger.records import ContainerRecord
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.signals import cri_signal

_STATE: Final[Mapping[ContainerState, cri.ContainerState]] = {
    ContainerState.CREATED: cri.ContainerState.CONTAINER_CREATED,
    ContainerState.RUNNING: cri.ContainerState.CONTAINER_RUNNING,
    ContainerState.EXITED: cri.ContainerState.CONTAINER_EXITED,
}


class ContainerName(NamedTuple):
    """What there is at most one container of in a pod."""

    name: str
    attempt: int

    @classmethod
    def of(cls, metadata: cri.ContainerMetadata) -> "ContainerName":
        return cls(metadata.name, metadata.attempt)


@dataclass
class Stopping:
    """A stop in progress: when SIGKILL follows (loop time). A later, shorter request moves it forward."""

    deadline: float
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class Container:
    """A container. The ledger alone replaces its record, through `update()`, which keeps the listing true."""

    def __init__(self, record: ContainerRecord) -> None:
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
                    state=self.state,
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
    def name(self) -> ContainerName:
        return ContainerName.of(self.config.metadata or cri.ContainerMetadata())

    @property
    def state(self) -> cri.ContainerState:
        return _STATE[self.record.state]

    @property
    def running(self) -> bool:
        return self.record.state is ContainerState.RUNNING

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
