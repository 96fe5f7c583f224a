"""The whole OCI configuration of one container, put together from its parts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition, InvalidArgument
from criw_proto.runtime.v1 import LinuxContainerResources, NamespaceMode
from criw_supervisor.oci import JsonObject, capabilities, devices, mounts, resources, seccomp, users
from criw_supervisor.oci.image import ImageConfig
from criw_supervisor.oci.parts import Parts
from criw_supervisor.oci.tree import Tree

OCI_VERSION: Final = "1.0.2"
_DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Host:
    """What the specification depends on besides the request."""

    cgroup_v2: bool
    swap: bool
    held: frozenset[str]  # capabilities
    oom_score: resources.OomScore
    pids_limit: int
    apparmor: bool = False  # whether the kernel enforces it
    selinux: bool = False


@dataclass(frozen=True)
class PodView:
    """What a container takes from its pod."""

    hostname: str
    namespaces: dict[str, str]  # OCI namespace type -> path, of those the pod has; absent ones are the host's
    host_pid: bool  # whether the pod asked for the host's PID namespace
    files: dict[str, Path]  # mount point -> the pod's file or directory


@dataclass(frozen=True)
class Outside:
    """What was found at the paths of the host that the request names."""

    sources: Mapping[str, mounts.Source]
    devices: Mapping[str, devices.Found]


@dataclass(frozen=True)
class ContainerSpec:
    """The configuration, and what the container's status tells of it."""

    document: JsonObject
    user: users.User
    resources: LinuxContainerResources


def build(
    parts: Parts, *, image: ImageConfig, rootfs: Path, cgroup: str, pod: PodView, host: Host, outside: Outside,
    target: str | None,
) -> ContainerSpec:  # fmt: skip
    """The OCI configuration. Blocking (reads the image's passwd, a seccomp profile and the host's devices).

    `target` is the PID namespace of the container whose processes are shared, for the namespace mode TARGET.
    Raises InvalidArgument or FailedPrecondition for what cannot be given.
    """
    _refuse_unenforced(parts, host)
    everything, tree = _mounts(parts, image, rootfs, pod, host, outside)
    limits = resources.supported(parts.resources, cgroup_v2=host.cgroup_v2, swap=host.swap)
    held = capabilities.effective(parts.capabilities, privileged=parts.privileged, held=host.held)
    user = users.resolve_user(rootfs, parts.user, image_user=image.user)
    nodes = devices.nodes(parts.devices, outside.devices, privileged=parts.privileged)
    linux: JsonObject = {
        "cgroupsPath": cgroup,
        "namespaces": _namespaces(parts, pod, target, cgroup_v2=host.cgroup_v2),
        "resources": _resources(limits, nodes, host, privileged=parts.privileged),
        "devices": [{**node, "path": tree.resolve(str(node["path"]))} for node in devices.oci(nodes)],
        "maskedPaths": list(parts.paths.masked),
        "readonlyPaths": list(parts.paths.readonly),
    }
    if propagation := mounts.propagation_of_root(parts.mounts):
        linux["rootfsPropagation"] = propagation
    if filters := seccomp.profile(parts.seccomp, held=held):
        linux["seccomp"] = filters
    document: JsonObject = {
        "ociVersion": OCI_VERSION,
        "root": {"path": os.fspath(rootfs), "readonly": parts.paths.readonly_root},
        "process": _process(parts, image, user, held, pod, host),
        "mounts": everything,
        # No annotations: runtimes take orders from some of them, and the request's are the user's.
        "linux": linux,
    }
    return ContainerSpec(document, user, limits)


def _mounts(
    parts: Parts, image: ImageConfig, rootfs: Path, pod: PodView, host: Host, outside: Outside
) -> tuple[list[JsonObject], Tree]:
    Tree(rootfs).refuse_links("/dev", "/proc", "/sys")
    readonly = parts.paths.readonly_root
    in_order, tree = mounts.in_order(
        mounts.kernel_mounts(privileged=parts.privileged, own_ipc="ipc" in pod.namespaces, cgroup_v2=host.cgroup_v2),
        mounts.pod_mounts(pod.files, parts.mount_points, readonly=readonly),
        mounts.user_mounts(parts.mounts, outside.sources),
        rootfs,
    )
    tree.refuse_endless("/etc/passwd", "/etc/group")  # every runtime reads them
    # First: what is mounted below a volume comes on top of it.
    return [*mounts.of_volumes(image.volumes, tree, readonly_root=readonly), *in_order], tree


def _refuse_unenforced(parts: Parts, host: Host) -> None:
    """What the request asks to be confined by, where the kernel would do it and we do not have it done yet."""
    if host.apparmor and parts.confined.apparmor:
        raise FailedPrecondition(
            f"cannot run container {parts.name} under AppArmor's default profile: it is not supported yet; "
            "ask for Unconfined"
        )
    if host.selinux and parts.confined.selinux:
        raise FailedPrecondition(
            f"cannot run container {parts.name} with SELinux labels: they are not supported yet; leave out "
            "selinux_options"
        )


def _process(
    parts: Parts, image: ImageConfig, user: users.User, held: frozenset[str], pod: PodView, host: Host
) -> JsonObject:
    process = parts.process
    return {
        "terminal": process.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": _arguments(parts, image),
        "env": _environment(parts, image, pod.hostname, user.home),
        "cwd": os.path.join("/", process.working_dir or image.working_dir),  # noqa: PTH118 — not of this host
        "capabilities": capabilities.oci(held, parts.capabilities.ambient),
        "noNewPrivileges": process.no_new_privileges,
        "oomScoreAdj": host.oom_score.clamped(process.oom_score_adj),
    }


def _resources(limits: LinuxContainerResources, nodes: list[JsonObject], host: Host, *, privileged: bool) -> JsonObject:
    result = resources.oci(limits)
    result["devices"] = devices.rules(nodes, privileged=privileged)
    if host.pids_limit:
        result["pids"] = {"limit": host.pids_limit}
    return result


def _arguments(parts: Parts, image: ImageConfig) -> list[str]:
    """`command` replaces the image's entrypoint and its command; `args` replaces its command (CRI v1)."""
    process = parts.process
    if process.command:
        return [*process.command, *process.args]
    words = [*image.entrypoint, *(process.args or image.cmd)]
    if not words:
        raise InvalidArgument(f"cannot run container {parts.name}: neither the request nor the image names a command")
    return words


def _environment(parts: Parts, image: ImageConfig, hostname: str, home: str) -> list[str]:
    """The image's variables, then the request's over them; PATH, HOME, HOSTNAME and TERM where nobody sets them."""
    variables: dict[str, str] = {}
    terminal = ["TERM=xterm"] if parts.process.terminal else []
    defaults = [_DEFAULT_PATH, f"HOSTNAME={hostname}", f"HOME={home}", *terminal]
    for entry in [*defaults, *image.env, *parts.process.env]:
        key, _, value = entry.partition("=")
        if not key or "\0" in entry:
            raise InvalidArgument(f"cannot run container {parts.name}: {entry!r} is no environment variable")
        variables[key] = value
    return [f"{key}={value}" for key, value in variables.items()]


def _namespaces(parts: Parts, pod: PodView, target: str | None, *, cgroup_v2: bool) -> list[JsonObject]:
    result: list[JsonObject] = [{"type": "mount"}]
    result += [{"type": kind, "path": path} for kind, path in pod.namespaces.items() if kind != "pid"]
    if target is not None:
        result.append({"type": "pid", "path": target})
    elif parts.pid == NamespaceMode.POD and "pid" in pod.namespaces:
        result.append({"type": "pid", "path": pod.namespaces["pid"]})
    elif parts.pid == NamespaceMode.CONTAINER or (parts.pid == NamespaceMode.POD and not pod.host_pid):
        # POD is also what a request says that says nothing: then the pod's own choice holds.
        result.append({"type": "pid"})
    if cgroup_v2 and not parts.privileged:
        result.append({"type": "cgroup"})
    return result
