"""The whole OCI configuration of one container."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition, InvalidArgument
from criw_proto.runtime.v1 import (
    ContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    NamespaceMode,
    NamespaceOption,
    SecurityProfile,
    SecurityProfileProfileType,
    SupplementalGroupsPolicy,
)
from criw_supervisor.spec import capabilities, devices, mounts, resources, seccomp, users
from criw_supervisor.spec.image import ImageConfig

JsonObject = dict[str, object]

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


@dataclass(frozen=True)
class PodView:
    """What a container takes from its pod."""

    hostname: str
    namespaces: dict[str, str]  # OCI namespace type -> path, of those the pod has; absent ones are the host's
    host_pid: bool  # whether the pod asked for the host's PID namespace
    files: dict[str, Path]  # mount point -> the pod's file or directory


@dataclass(frozen=True)
class ContainerSpec:
    """The configuration, and what the container's status tells of it."""

    document: JsonObject
    user: users.User
    resources: LinuxContainerResources


def build(
    *, config: ContainerConfig, image: ImageConfig, rootfs: Path, cgroup: str, pod: PodView, host: Host,
    target_pid: int | None,
) -> ContainerSpec:  # fmt: skip
    """The OCI configuration. Blocking (reads the image's passwd and the host's mounts).

    `target_pid` is the init of the container whose PID namespace is joined, for the namespace mode TARGET.
    Raises InvalidArgument or FailedPrecondition for what cannot be given.
    """
    linux = config.linux
    security = (linux.security_context if linux else None) or LinuxContainerSecurityContext()
    options = security.namespace_options or NamespaceOption()
    _refuse_unsupported(config, security, options)
    wanted = (linux.resources if linux else None) or LinuxContainerResources()
    resources.check(wanted)
    limits = resources.supported(wanted, cgroup_v2=host.cgroup_v2, swap=host.swap)
    asked = security.capabilities
    held = capabilities.effective(
        add=asked.add_capabilities if asked else (),
        drop=asked.drop_capabilities if asked else (),
        privileged=security.privileged,
        held=host.held,
    )
    user = _user(security, image, rootfs)
    nodes = _devices(config, privileged=security.privileged)
    section: JsonObject = {
        "cgroupsPath": cgroup,
        "namespaces": _namespaces(pod, options, target_pid, cgroup_v2=host.cgroup_v2, privileged=security.privileged),
        "resources": _resources(limits, nodes, host, privileged=security.privileged),
        "devices": devices.oci(nodes),
        "maskedPaths": [] if security.privileged else list(security.masked_paths),
        "readonlyPaths": [] if security.privileged else list(security.readonly_paths),
    }
    if propagation := mounts.propagation_of_root(config.mounts):
        section["rootfsPropagation"] = propagation
    if filters := seccomp.profile(_seccomp(security), privileged=security.privileged, held=held):
        section["seccomp"] = filters
    taken = {os.path.normpath(mount.container_path) for mount in config.mounts}
    document: JsonObject = {
        "ociVersion": OCI_VERSION,
        "root": {"path": os.fspath(rootfs), "readonly": security.readonly_rootfs},
        "process": {
            "terminal": config.tty,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "args": _arguments(config, image),
            "env": _environment(config, image, pod.hostname, user.home),
            "cwd": os.path.join("/", config.working_dir or image.working_dir),  # noqa: PTH118 — not of this host
            "capabilities": capabilities.oci(held, asked.add_ambient_capabilities if asked else ()),
            "noNewPrivileges": security.no_new_privs and not security.privileged,
            "oomScoreAdj": host.oom_score.clamped(wanted.oom_score_adj),
        },
        "mounts": mounts.in_order(
            mounts.kernel_mounts(
                privileged=security.privileged, own_ipc="ipc" in pod.namespaces, cgroup_v2=host.cgroup_v2
            ),
            mounts.pod_mounts(pod.files, taken, readonly=security.readonly_rootfs),
            mounts.user_mounts(config.mounts),
        ),
        # No annotations: runtimes take orders from some of them, and the request's are the user's.
        "linux": section,
    }
    return ContainerSpec(document, user, limits)


def _devices(config: ContainerConfig, *, privileged: bool) -> list[JsonObject]:
    nodes = devices.requested(config.devices)
    if privileged:
        given = {node["path"] for node in nodes}
        nodes += [node for node in devices.host_devices() if node["path"] not in given]
    return nodes


def _resources(limits: LinuxContainerResources, nodes: list[JsonObject], host: Host, *, privileged: bool) -> JsonObject:
    result = resources.oci(limits)
    result["devices"] = devices.rules(nodes, privileged=privileged)
    if host.pids_limit:
        result["pids"] = {"limit": host.pids_limit}
    return result


def _refuse_unsupported(
    config: ContainerConfig, security: LinuxContainerSecurityContext, options: NamespaceOption
) -> None:
    if options.pid not in NamespaceMode:
        raise InvalidArgument(f"cannot use PID namespace mode {int(options.pid)}: the CRI has no such value")
    if options.userns_options is not None and options.userns_options.mode != NamespaceMode.NODE:
        raise InvalidArgument("cannot use a user namespace: this runtime handler does not support them (see Status)")
    if config.CDI_devices:
        raise InvalidArgument(f"cannot give CDI device {config.CDI_devices[0].name}: CDI is not supported yet")
    apparmor = security.apparmor
    named = apparmor.localhost_ref if apparmor is not None and _is_localhost(apparmor) else ""
    if apparmor is None and security.apparmor_profile.startswith("localhost/"):
        named = security.apparmor_profile.removeprefix("localhost/")
    if named and not security.privileged:
        raise FailedPrecondition(f"cannot use AppArmor profile {named}: AppArmor is not supported yet")


def _is_localhost(profile: SecurityProfile) -> bool:
    return profile.profile_type == SecurityProfileProfileType.Localhost


def _seccomp(security: LinuxContainerSecurityContext) -> SecurityProfile | None:
    """The seccomp profile asked for, from the current field or the string that came before it."""
    old = security.seccomp_profile_path
    if security.seccomp is not None or not old or old == "unconfined":
        return security.seccomp
    if old in {"runtime/default", "docker/default"}:
        return SecurityProfile(profile_type=SecurityProfileProfileType.RuntimeDefault)
    return SecurityProfile(
        profile_type=SecurityProfileProfileType.Localhost, localhost_ref=old.removeprefix("localhost/")
    )


def _user(security: LinuxContainerSecurityContext, image: ImageConfig, rootfs: Path) -> users.User:
    return users.resolve_user(
        rootfs,
        image_user=image.user,
        run_as_user=security.run_as_user.value if security.run_as_user is not None else None,
        run_as_username=security.run_as_username,
        run_as_group=security.run_as_group.value if security.run_as_group is not None else None,
        supplemental_groups=tuple(security.supplemental_groups),
        merge_image_groups=security.supplemental_groups_policy == SupplementalGroupsPolicy.Merge,
    )


def _arguments(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """`command` replaces the image's entrypoint and its command; `args` replaces its command (CRI v1)."""
    if config.command:
        return [*config.command, *config.args]
    words = [*image.entrypoint, *(config.args or image.cmd)]
    if not words:
        raise InvalidArgument(
            f"cannot run container {_name(config)}: neither the request nor the image names a command"
        )
    return words


def _environment(config: ContainerConfig, image: ImageConfig, hostname: str, home: str) -> list[str]:
    """The image's variables, then the request's over them; PATH, HOME, HOSTNAME and TERM where nobody sets them."""
    variables: dict[str, str] = {}
    defaults = [_DEFAULT_PATH, f"HOSTNAME={hostname}", f"HOME={home}", *(["TERM=xterm"] if config.tty else [])]
    requested = [f"{pair.key}={pair.value.decode('utf-8', 'surrogateescape')}" for pair in config.envs]
    for entry in [*defaults, *image.env, *requested]:
        key, _, value = entry.partition("=")
        if not key or "\0" in entry:
            raise InvalidArgument(f"cannot run container {_name(config)}: {entry!r} is no environment variable")
        variables[key] = value
    return [f"{key}={value}" for key, value in variables.items()]


def _name(config: ContainerConfig) -> str:
    return config.metadata.name if config.metadata else ""


def _namespaces(
    pod: PodView, options: NamespaceOption, target_pid: int | None, *, cgroup_v2: bool, privileged: bool
) -> list[JsonObject]:
    result: list[JsonObject] = [{"type": "mount"}]
    result += [{"type": kind, "path": path} for kind, path in pod.namespaces.items() if kind != "pid"]
    if target_pid is not None:
        result.append({"type": "pid", "path": f"/proc/{target_pid}/ns/pid"})
    elif options.pid == NamespaceMode.POD and "pid" in pod.namespaces:
        result.append({"type": "pid", "path": pod.namespaces["pid"]})
    elif options.pid == NamespaceMode.CONTAINER or (options.pid == NamespaceMode.POD and not pod.host_pid):
        # POD is also what a request says that says nothing: then the pod's own choice holds.
        result.append({"type": "pid"})
    if cgroup_v2 and not privileged:
        result.append({"type": "cgroup"})
    return result
