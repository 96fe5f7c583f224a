"""What the supervisor keeps of pods and containers in its store."""

from typing import ClassVar, Literal

from pydantic import ConfigDict

from criw.store import Record
from criw_supervisor.ledger.states import ContainerState, PodState, check_container_move, check_pod_move


class _Bytes(Record):
    """A record with fields that hold serialised CRI messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class PodRecord(_Bytes):
    """A pod sandbox."""

    kind: ClassVar[str] = "pod"
    version: Literal[1] = 1
    config: bytes  # runtime.v1.PodSandboxConfig as it came
    runtime_handler: str  # as requested: "" is the default
    runtime: str  # the handler that serves it
    state: PodState
    created_at_ns: int
    hostname: str
    netns: str  # "" on the host's network
    ips: tuple[str, ...]
    cgroup: str  # the pod's cgroup, from the root of each hierarchy
    owned: tuple[str, ...]  # its topmost directory in each hierarchy that was made for pods: goes with the last

    def moved(self, to: PodState, **changes: object) -> "PodRecord":
        """The record in its next state. Raises FailedPrecondition for a step the table does not have."""
        check_pod_move(self.id, self.state, to)
        return self.model_copy(update={"state": to, **changes})


class ContainerRecord(_Bytes):
    """A container of a pod, or the pod's infra container (which holds a shared PID namespace and is never listed)."""

    kind: ClassVar[str] = "container"
    version: Literal[1] = 1
    pod_id: str
    infra: bool = False
    config: bytes  # runtime.v1.ContainerConfig as it came
    runtime: str
    image_id: str
    image_ref: str  # repo digest where the image has one, else its id
    cgroup: str
    log_path: str  # absolute; "" without a log
    state: ContainerState
    created_at_ns: int
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    pid: int  # of the container's init, in the host's namespace
    pid_started: int  # its start time in clock ticks since boot: with it a pid names one process only
    resources: bytes  # runtime.v1.LinuxContainerResources in force
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    stop_signal: int  # a signal number

    def moved(self, to: ContainerState, **changes: object) -> "ContainerRecord":
        """The record in its next state. Raises FailedPrecondition for a step the table does not have."""
        check_container_move(self.id, self.state, to)
        return self.model_copy(update={"state": to, **changes})


class IntentRecord(Record):
    """A pod or container whose making began; gone in the transaction that writes its record."""

    kind: ClassVar[str] = "intent"
    version: Literal[1] = 1
    what: Literal["pod", "container"]
    runtime: str
    cgroup: str  # of the pod or container
    owned: tuple[str, ...] = ()  # of a pod: as in its record
