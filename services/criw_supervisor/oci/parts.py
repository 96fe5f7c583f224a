"""A container's request taken apart, a part for each concern of the OCI configuration; what cannot be given is refused.

Nothing here looks at the host or the image.
"""

import os
from dataclasses import dataclass

from criw.errors import FailedPrecondition, InvalidArgument
from criw_proto.runtime.v1 import (
    ContainerConfig,
    Device,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    Mount,
    NamespaceMode,
    NamespaceOption,
    SecurityProfile,
    SecurityProfileProfileType,
    SupplementalGroupsPolicy,
)
from criw_supervisor.oci import capabilities, mounts, resources, users


@dataclass(frozen=True)
class Process:
    """What is run, but for what the image says."""

    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[str, ...]  # KEY=value
    working_dir: str
    terminal: bool
    no_new_privileges: bool
    oom_score_adj: int


@dataclass(frozen=True)
class Paths:
    """What of the container's tree is hidden or read-only."""

    masked: tuple[str, ...]
    readonly: tuple[str, ...]
    readonly_root: bool


@dataclass(frozen=True)
class Confined:
    """Whether the process is to be confined by a security module of the kernel."""

    apparmor: bool  # by the default profile
    selinux: bool


@dataclass(frozen=True)
class Parts:
    """See the modules of this package for each."""

    name: str  # for messages
    privileged: bool
    process: Process
    user: users.Asked
    capabilities: capabilities.Asked
    seccomp: SecurityProfile | None  # None for no filter
    pid: NamespaceMode
    target_id: str  # the container whose PID namespace is joined, for the mode TARGET
    paths: Paths
    confined: Confined
    mounts: tuple[Mount, ...]
    devices: tuple[Device, ...]
    resources: LinuxContainerResources

    @property
    def mount_points(self) -> set[str]:
        """Where the request mounts something."""
        return {os.path.normpath(mount.container_path) for mount in self.mounts}


def parts(config: ContainerConfig) -> Parts:
    """The parts of a request. Raises InvalidArgument or FailedPrecondition for what cannot be given."""
    linux = config.linux or LinuxContainerConfig()
    security = linux.security_context or LinuxContainerSecurityContext()
    options = security.namespace_options or NamespaceOption()
    name = config.metadata.name if config.metadata else ""
    _refuse_unsupported(config, security, options)
    for mount in config.mounts:
        mounts.check(mount)
    wanted = linux.resources or LinuxContainerResources()
    resources.check(wanted)
    return Parts(
        name=name,
        privileged=security.privileged,
        process=Process(
            command=tuple(config.command),
            args=tuple(config.args),
            env=tuple(_variable(name, pair) for pair in config.envs),
            working_dir=config.working_dir,
            terminal=config.tty,
            no_new_privileges=security.no_new_privs and not security.privileged,
            oom_score_adj=wanted.oom_score_adj,
        ),
        user=_user(security),
        capabilities=_capabilities(security),
        seccomp=None if security.privileged else _seccomp(security),
        pid=options.pid,
        target_id=options.target_id,
        paths=_paths(security),
        confined=_confined(config, security),
        mounts=tuple(config.mounts),
        devices=tuple(config.devices),
        resources=wanted,
    )


def _variable(name: str, pair: KeyValue) -> str:
    try:
        return f"{pair.key}={pair.value.decode()}"
    except UnicodeDecodeError as err:  # OCI configurations are JSON
        raise InvalidArgument(
            f"cannot run container {name}: environment variable {pair.key} is not UTF-8, and would reach it altered"
        ) from err


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


def _confined(config: ContainerConfig, security: LinuxContainerSecurityContext) -> Confined:
    profile = security.apparmor
    default = SecurityProfileProfileType.RuntimeDefault
    asked = security.apparmor_profile == "runtime/default" if profile is None else profile.profile_type == default
    labels = security.selinux_options
    return Confined(
        apparmor=asked and not security.privileged,
        # Not that mounts are to be relabelled: the kubelet asks that of every volume on such a host.
        selinux=labels is not None and any((labels.user, labels.role, labels.type, labels.level)),
    )


def _is_localhost(profile: SecurityProfile) -> bool:
    return profile.profile_type == SecurityProfileProfileType.Localhost


def _user(security: LinuxContainerSecurityContext) -> users.Asked:
    return users.Asked(
        uid=security.run_as_user.value if security.run_as_user is not None else None,
        username=security.run_as_username,
        gid=security.run_as_group.value if security.run_as_group is not None else None,
        groups=tuple(security.supplemental_groups),
        merge_image_groups=security.supplemental_groups_policy == SupplementalGroupsPolicy.Merge,
    )


def _capabilities(security: LinuxContainerSecurityContext) -> capabilities.Asked:
    asked = security.capabilities
    if asked is None:
        return capabilities.Asked()
    return capabilities.Asked(
        add=tuple(asked.add_capabilities),
        drop=tuple(asked.drop_capabilities),
        ambient=tuple(asked.add_ambient_capabilities),
    )


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


def _paths(security: LinuxContainerSecurityContext) -> Paths:
    if security.privileged:
        return Paths((), (), security.readonly_rootfs)
    return Paths(tuple(security.masked_paths), tuple(security.readonly_paths), security.readonly_rootfs)
