"""CreateContainer's request, as far as it can be judged without the image: what is wrong with it is refused here."""

import os
from dataclasses import dataclass
from pathlib import Path

from criw.errors import InvalidArgument
from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger.container import ContainerName
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.sameness import digest
from criw_supervisor.oci.parts import Parts, parts
from criw_supervisor.signals import of_cri


@dataclass(frozen=True)
class ContainerPlan:
    """A container to be made; `parts` are those of its OCI configuration."""

    id: str
    name: ContainerName
    config: bytes  # runtime.v1.ContainerConfig as it came
    digest: str  # of the request
    image: str  # name, digest reference or id
    log_path: str  # absolute; "" without a log
    terminal: bool
    stdin: bool
    stdin_once: bool
    stop_signal: int  # 0: the image's
    parts: Parts


def plan(container_id: str, config: cri.ContainerConfig | None, pod: Pod) -> ContainerPlan:
    """What a request asks for. Raises InvalidArgument, or FailedPrecondition for what this host does not give."""
    if config is None:
        raise InvalidArgument("cannot create the container: config is missing")
    if config.metadata is None or not config.metadata.name:
        raise InvalidArgument("cannot create the container: config.metadata.name is missing")
    if config.image is None or not config.image.image:
        raise InvalidArgument(f"cannot create container {config.metadata.name}: config.image.image is missing")
    made = parts(config)
    if made.privileged and not _is_privileged(pod.config):
        raise InvalidArgument(
            f"cannot create container {config.metadata.name}: it is privileged and its pod sandbox is not"
        )
    return ContainerPlan(
        id=container_id,
        name=ContainerName.of(config.metadata),
        config=bytes(config),
        digest=digest(config),
        image=config.image.image,
        log_path=_log_path(config, pod.config, config.metadata.name),
        terminal=config.tty,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        stop_signal=of_cri(config.stop_signal),
        parts=made,
    )


def _is_privileged(pod: cri.PodSandboxConfig) -> bool:
    security = pod.linux.security_context if pod.linux is not None else None
    return security is not None and security.privileged


def _log_path(config: cri.ContainerConfig, pod: cri.PodSandboxConfig, name: str) -> str:
    """Where the container's log goes; "" if the request wants none."""
    if not config.log_path or not pod.log_directory:
        return ""
    if config.log_path.startswith("/") or ".." in Path(config.log_path).parts:
        raise InvalidArgument(
            f"cannot create container {name}: log_path {config.log_path} must be relative to the pod's log_directory, "
            "and inside it"
        )
    path = os.path.normpath(f"{pod.log_directory}/{config.log_path}")
    if path == os.path.normpath(pod.log_directory):
        raise InvalidArgument(f"cannot create container {name}: log_path {config.log_path} names a directory")
    if ":" in path or "\0" in path:  # a colon divides conmon's driver from its path
        raise InvalidArgument(f"cannot create container {name}: its log {path!r} must have no colon or NUL in its path")
    return path
