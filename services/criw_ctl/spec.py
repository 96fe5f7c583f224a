"""What `criwctl run` asks the CRI for: a pod with one container, from what was typed."""

import ipaddress
import re
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.config.common import Common
from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    Mount,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
    PortMapping,
    Protocol,
    SecurityProfile,
    SecurityProfileProfileType,
)

NAMESPACE: Final = "default"
POD_UID_LABEL: Final = "io.kubernetes.pod.uid"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123: it becomes the pod's hostname
# The runtime adds none of its own: an empty list in the CRI means that nothing is to be hidden.
_MASKED: Final = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
_READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True)
class Wish:
    """What was typed after `criwctl run`."""

    image: str
    args: Sequence[str]
    name: str
    envs: Sequence[KeyValue]
    ports: Sequence[PortMapping]
    mounts: Sequence[Mount]
    stdin: bool = False
    tty: bool = False
    joined: bool = False  # to our own terminal or descriptors while it runs


def new_name() -> str:
    """A name for a pod that was given none."""
    return f"run-{secrets.token_hex(3)}"


def parse_name(text: str) -> str:
    """Raises InvalidArgument unless `text` can be a host name."""
    if not _NAME.fullmatch(text):
        raise InvalidArgument(
            f"cannot name a pod {text}: it becomes its host name, so it may have only small letters, digits and -, "
            "must begin and end with a letter or digit, and have at most 63 of them"
        )
    return text


def parse_env(text: str) -> KeyValue:
    """KEY=VALUE. Raises InvalidArgument."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidArgument(f"cannot set the variable {text}: write it as KEY=VALUE")
    return KeyValue(key=key, value=value.encode(errors="surrogateescape"))


def parse_port(text: str) -> PortMapping:
    """[HOSTIP:]HOST:CONTAINER[/tcp|udp|sctp]; an IPv6 address stands in brackets. Raises InvalidArgument."""
    ports, _, protocol = text.partition("/")
    rest, _, container = ports.rpartition(":")
    host_ip, _, host = rest.rpartition(":")
    try:
        address = str(ipaddress.ip_address(host_ip.strip("[]"))) if host_ip else ""
        numbers = [int(number) if number.isascii() and number.isdecimal() else 0 for number in (host, container)]
        if not all(0 < number < 65536 for number in numbers):
            raise ValueError("ports are numbers from 1 to 65535")
        kind = Protocol[protocol.upper() or "TCP"]
    except KeyError as err:
        raise InvalidArgument(f"cannot map the port {text}: the protocol is tcp, udp or sctp") from err
    except ValueError as err:
        raise InvalidArgument(f"cannot map the port {text}: {err}; write it as [HOSTIP:]HOST:CONTAINER[/udp]") from err
    return PortMapping(protocol=kind, host_ip=address, host_port=numbers[0], container_port=numbers[1])


def parse_mount(text: str) -> Mount:
    """HOST:CONTAINER[:ro]; a relative host path begins where we are. Raises InvalidArgument."""
    parts = text.split(":")
    if len(parts) not in {2, 3} or not parts[0] or parts[2:] not in ([], ["ro"], ["rw"]):
        raise InvalidArgument(f"cannot mount {text}: write it as HOST:CONTAINER or HOST:CONTAINER:ro")
    if not parts[1].startswith("/"):
        raise InvalidArgument(f"cannot mount {text}: the path in the container must begin with /")
    host = Path(parts[0]).absolute()
    if not host.exists():
        raise InvalidArgument(f"cannot mount {host}: there is no such file or directory; make it first")
    return Mount(host_path=str(host), container_path=parts[1], readonly=parts[2:] == ["ro"])


def logs_root(config: Common) -> Path:
    """Below it are the logs of all pods that criwctl runs."""
    return config.root / "ctl" / "logs"


def log_directory(config: Common, pod: PodSandboxMetadata) -> Path:
    """Where the logs of a pod go that criwctl runs."""
    return logs_root(config) / f"{pod.name}_{pod.uid}"


def _namespaces() -> NamespaceOption:
    return NamespaceOption(network=NamespaceMode.POD, pid=NamespaceMode.CONTAINER, ipc=NamespaceMode.POD)


def _seccomp() -> SecurityProfile:
    return SecurityProfile(profile_type=SecurityProfileProfileType.RuntimeDefault)


def pod_config(config: Common, wish: Wish) -> PodSandboxConfig:
    """A fresh pod; its uid tells it from any other."""
    metadata = PodSandboxMetadata(name=wish.name, uid=str(uuid.uuid4()), namespace=NAMESPACE)
    return PodSandboxConfig(
        metadata=metadata,
        hostname=wish.name,
        log_directory=str(log_directory(config, metadata)),
        port_mappings=list(wish.ports),
        labels=_labels(metadata),
        linux=LinuxPodSandboxConfig(
            security_context=LinuxSandboxSecurityContext(namespace_options=_namespaces(), seccomp=_seccomp())
        ),
    )


def container_config(pod: PodSandboxMetadata, wish: Wish, image_id: str) -> ContainerConfig:
    """The pod's one container, of the same name."""
    return ContainerConfig(
        metadata=ContainerMetadata(name=wish.name),
        image=ImageSpec(image=image_id, user_specified_image=wish.image),
        args=list(wish.args),  # the image's entrypoint stays, as people know it from other engines
        envs=[*_terminal_envs(wish), *wish.envs],
        mounts=list(wish.mounts),
        labels=_labels(pod) | {"io.kubernetes.container.name": wish.name},
        log_path=f"{wish.name}.log",
        stdin=wish.stdin,
        stdin_once=wish.stdin and wish.joined and not wish.tty,  # who leaves a terminal may come back to it
        tty=wish.tty,
        linux=LinuxContainerConfig(
            security_context=LinuxContainerSecurityContext(
                namespace_options=_namespaces(),
                seccomp=_seccomp(),
                masked_paths=list(_MASKED),
                readonly_paths=list(_READONLY),
            )
        ),
    )


def _terminal_envs(wish: Wish) -> list[KeyValue]:
    """What other engines set, so that programs know that there is a terminal at all."""
    wanted = wish.tty and all(env.key != "TERM" for env in wish.envs)
    return [KeyValue(key="TERM", value=b"xterm")] if wanted else []


def _labels(pod: PodSandboxMetadata) -> dict[str, str]:
    """What the kubelet would set, so that tools made for its containers understand ours."""
    return {
        "io.kubernetes.pod.name": pod.name,
        "io.kubernetes.pod.namespace": pod.namespace,
        POD_UID_LABEL: pod.uid,
    }
