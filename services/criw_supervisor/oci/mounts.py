"""What a container sees besides its root: kernel file systems, the pod's files, the user's mounts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from criw.errors import Failed, InvalidArgument
from criw.mountinfo import mount_of
from criw_proto.runtime.v1 import Mount, MountPropagation
from criw_supervisor.oci import JsonObject

_PROPAGATION: Final = {
    MountPropagation.PROPAGATION_PRIVATE: "rprivate",
    MountPropagation.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    MountPropagation.PROPAGATION_BIDIRECTIONAL: "rshared",
}


def in_order(kernel: Sequence[JsonObject], pod: Sequence[JsonObject], user: Sequence[JsonObject]) -> list[JsonObject]:
    """Everything in the order it is mounted, parents before children: a volume on /etc does not hide the pod's hosts.

    What the user mounts takes the place of a kernel file system.
    """
    taken = {mount["destination"] for mount in user}
    everything = [*(mount for mount in kernel if mount["destination"] not in taken), *pod, *user]
    return sorted(everything, key=lambda mount: len(PurePosixPath(str(mount["destination"])).parts))


def kernel_mounts(*, privileged: bool, own_ipc: bool, cgroup_v2: bool) -> list[JsonObject]:
    """/proc, /dev, /sys and their kin, as every container has them."""
    access = "rw" if privileged else "ro"
    plain = ["nosuid", "noexec", "nodev"]
    result = [
        _mount("/proc", "proc", "proc", plain),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/sys", "sysfs", "sysfs", [*plain, access]),
        _mount("/sys/fs/cgroup", "cgroup2" if cgroup_v2 else "cgroup", "cgroup", [*plain, "relatime", access]),
    ]
    if own_ipc:
        result.append(_mount("/dev/mqueue", "mqueue", "mqueue", plain))
    else:
        result.append(_mount("/dev/mqueue", "bind", "/dev/mqueue", ["rbind", *plain, "rw"]))
    return [mount for mount in result if mount["type"] != "bind" or Path(str(mount["source"])).exists()]


def pod_mounts(files: Mapping[str, Path], taken: set[str], *, readonly: bool) -> list[JsonObject]:
    """The pod's hosts, hostname, resolv.conf and /dev/shm, but for paths that the user mounts something on."""
    result = []
    for destination, source in files.items():
        if destination not in taken:
            options = ["nosuid", "nodev", "noexec"] if destination == "/dev/shm" else []  # noqa: S108 — a mount point
            access = "ro" if readonly and destination != "/dev/shm" else "rw"  # noqa: S108
            result.append(_mount(destination, "bind", os.fspath(source), ["rbind", "rprivate", *options, access]))
    return result


def user_mounts(mounts: Sequence[Mount]) -> list[JsonObject]:
    """The mounts of the request. Raises InvalidArgument naming the mount that cannot be.

    Raises Failed beginning with ImageVolumeMountFailed, the prefix the kubelet looks for, for an image volume.
    """
    return [_user_mount(mount) for mount in mounts]


def propagation_of_root(mounts: Sequence[Mount]) -> str:
    """What the container's root must be for its mounts' propagation to reach them ("" for the runtime's default)."""
    kinds = {mount.propagation for mount in mounts}
    if MountPropagation.PROPAGATION_BIDIRECTIONAL in kinds:
        return "rshared"
    return "rslave" if MountPropagation.PROPAGATION_HOST_TO_CONTAINER in kinds else ""


def _user_mount(mount: Mount) -> JsonObject:
    where = mount.container_path
    if not where.startswith("/"):
        raise InvalidArgument(f"cannot mount on {where or '(nothing)'}: container_path must be absolute")
    if mount.image is not None and mount.image.image:
        raise Failed(f"ImageVolumeMountFailed: cannot mount image {mount.image.image} on {where}: not supported yet")
    if mount.uid_mappings or mount.gid_mappings:
        raise InvalidArgument(
            f"cannot mount on {where}: id-mapped mounts need user namespaces, which are not supported"
        )
    if mount.recursive_read_only:
        raise InvalidArgument(
            f"cannot mount on {where}: recursive_read_only is not supported by this runtime handler (see Status)"
        )
    if mount.mount_options:
        raise InvalidArgument(f"cannot mount on {where}: mount_options are not supported by this runtime (see Status)")
    source = _real_source(mount)
    options = ["rbind", _propagation(mount, source), "ro" if mount.readonly else "rw"]
    return _mount(os.path.normpath(where), "bind", source, options)


def _real_source(mount: Mount) -> str:
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidArgument(
            f"cannot mount {mount.host_path or '(nothing)'} on {mount.container_path}: host_path must be absolute"
        )
    try:
        return os.path.realpath(mount.host_path, strict=True)
    except OSError as err:
        raise InvalidArgument(
            f"cannot mount {mount.host_path} on {mount.container_path}: {err.strerror} on the host; create it first"
        ) from err


def _propagation(mount: Mount, source: str) -> str:
    if mount.propagation not in _PROPAGATION:
        raise InvalidArgument(f"cannot mount on {mount.container_path}: unknown propagation {mount.propagation}")
    wanted = _PROPAGATION[mount.propagation]
    if wanted == "rprivate":
        return wanted
    found = mount_of(Path(source))
    if wanted == "rshared" and not found.shared:
        raise InvalidArgument(
            f"cannot mount {source} on {mount.container_path} with bidirectional propagation: it is not on a shared "
            "mount; run mount --make-rshared on its mount point"
        )
    if wanted == "rslave" and not (found.shared or found.slave):
        raise InvalidArgument(
            f"cannot mount {source} on {mount.container_path} with propagation from the host: it is on a private "
            "mount; run mount --make-rshared on its mount point"
        )
    return wanted


def _mount(destination: str, kind: str, source: str, options: list[str]) -> JsonObject:
    return {"destination": destination, "type": kind, "source": source, "options": options}
