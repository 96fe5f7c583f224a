"""The states pods and containers go through, and why a container ended."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from criw.errors import FailedPrecondition


class PodState(StrEnum):
    READY = "ready"
    STOPPING = "stopping"  # reported as not ready; its resources are being given back
    STOPPED = "stopped"


class ContainerState(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class Reason(StrEnum):
    """Why a container ended, in the words the kubelet and people know."""

    COMPLETED = "Completed"
    ERROR = "Error"
    OOM_KILLED = "OOMKilled"
    START_ERROR = "StartError"
    UNKNOWN = "Unknown"  # nobody could learn how it ended


NEXT_OF_POD: Final[Mapping[PodState, frozenset[PodState]]] = {
    PodState.READY: frozenset({PodState.STOPPING}),
    PodState.STOPPING: frozenset({PodState.STOPPED}),
    PodState.STOPPED: frozenset(),
}

NEXT_OF_CONTAINER: Final[Mapping[ContainerState, frozenset[ContainerState]]] = {
    ContainerState.CREATED: frozenset({ContainerState.RUNNING, ContainerState.EXITED}),
    ContainerState.RUNNING: frozenset({ContainerState.EXITED}),
    ContainerState.EXITED: frozenset(),
}


def check_pod_move(pod_id: str, now: PodState, to: PodState) -> None:
    """Raises FailedPrecondition for a step the table does not have."""
    if to not in NEXT_OF_POD[now]:
        raise FailedPrecondition(f"cannot move pod sandbox {pod_id} from {now} to {to}")


def check_container_move(container_id: str, now: ContainerState, to: ContainerState) -> None:
    """Raises FailedPrecondition for a step the table does not have."""
    if to not in NEXT_OF_CONTAINER[now]:
        raise FailedPrecondition(f"cannot move container {container_id} from {now} to {to}")
