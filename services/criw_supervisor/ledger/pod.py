"""One pod as the supervisor has it in memory: its record and what the CRI tells of it."""

from collections.abc import Mapping
from typing import NamedTuple

from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger.index import chunk
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.ledger.records import PodRecord
from criw_supervisor.ledger.states import PodState


class PodName(NamedTuple):
    """What there is at most one pod of at a time."""

    namespace: str
    name: str
    uid: str
    attempt: int

    @classmethod
    def of(cls, metadata: cri.PodSandboxMetadata) -> "PodName":
        return cls(metadata.namespace, metadata.name, metadata.uid, metadata.attempt)


class Pod:
    """A pod sandbox. The ledger alone replaces its record, through `update()`, which keeps the listing true."""

    def __init__(self, record: PodRecord, files: PodFiles) -> None:
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
    def name(self) -> PodName:
        return PodName.of(self.config.metadata or cri.PodSandboxMetadata())

    @property
    def ready(self) -> bool:
        return self.record.state is PodState.READY

    @property
    def state(self) -> cri.PodSandboxState:
        return cri.PodSandboxState.SANDBOX_READY if self.ready else cri.PodSandboxState.SANDBOX_NOTREADY

    @property
    def options(self) -> cri.NamespaceOption:
        return namespace_options(self.config)

    def namespaces(self) -> dict[str, str]:
        """OCI type and path of the namespaces a container of the pod joins, but for a shared PID namespace."""
        result = self.files.namespaces()
        if self.record.netns:
            result["network"] = self.record.netns
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
