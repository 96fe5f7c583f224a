"""What a container sees besides its root: kernel file systems, the pod's files, the user's mounts."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from criw.errors import Failed, InvalidArgument
from criw.mountinfo import mount_of
from criw_proto.runtime.v1 import Mount, MountPropagation
from criw_supervisor.oci import JsonObject
from criw_supervisor.oci.tree import Tree

log = logging.getLogger(__name__)

_PROPAGATION: Final = {
    MountPropagation.PROPAGATION_PRIVATE: "rprivate",
    MountPropagation.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    MountPropagation.PROPAGATION_BIDIRECTIONAL: "rshared",
}


@dataclass(frozen=True)
class Source:
    """What is at a path of the host that a request wants mounted."""

    path: str  # links followed
    shared: bool = False  # where it is mounted: see `criw.mountinfo.Mount`
    slave: bool = False


def in_order(
    kernel: Sequence[JsonObject], pod: Sequence[JsonObject], user: Sequence[JsonObject], rootfs: Path
) -> tuple[list[JsonObject], Tree]:
    """Everything in the order it is mounted, parents before children: a volume on /etc does not hide the pod's hosts.

    What the user mounts takes the place of a kernel file system. Links in a destination are followed here, as a runtime
    may follow them out of the root: /var/run is one in most images. Returns the tree the container will see, too.
    """
    taken = {mount["destination"] for mount in user}
    mounts = [*(mount for mount in kernel if mount["destination"] not in taken), *pod, *user]
    for _ in range(2):  # again where one comes to lie below another that was after it
        tree = Tree(rootfs)
        mounts = [_placed(mount, tree) for mount in _parents_first(mounts)]
    return _parents_first(mounts), tree


def _parents_first(mounts: Sequence[JsonObject]) -> list[JsonObject]:
    return sorted(mounts, key=lambda mount: len(PurePosixPath(str(mount["destination"])).parts))


def _placed(mount: JsonObject, tree: Tree) -> JsonObject:
    destination = tree.resolve(str(mount["destination"]))
    if destination == "/":
        raise InvalidArgument(f"cannot mount on {mount['destination']}: in the image it leads to the root directory")
    tree.mount(destination, Path(str(mount["source"])) if mount["type"] == "bind" else None)
    return {**mount, "destination": destination}


def of_volumes(volumes: Sequence[str], tree: Tree, *, readonly_root: bool) -> list[JsonObject]:
    """Have the directories an image calls its volumes in its root, and writable though the root is not.

    They are in the container's own layer, and go with it. One that something is mounted over is that. Blocking.
    Raises InvalidArgument for one that is no directory.
    """
    result = []
    for volume in volumes:
        path = tree.resolve(volume)
        place = tree.on_host(path)
        if path == "/" or place is None or tree.mount_point(path) != "/":
            continue
        try:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as err:
            raise InvalidArgument(f"cannot make volume {volume} of the image: {err.strerror}") from err
        if readonly_root:
            result.append(_mount(path, "bind", os.fspath(place), ["rbind", "rprivate", "rw"]))
    return result


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


def user_mounts(mounts: Sequence[Mount], sources: Mapping[str, Source]) -> list[JsonObject]:
    """The mounts of the request, given what is at each host path. Raises InvalidArgument if it does not propagate."""
    return [_user_mount(mount, sources[mount.host_path]) for mount in mounts]


def needs_propagation(mount: Mount) -> bool:
    """Whether it matters how what the source is on propagates."""
    return _PROPAGATION[mount.propagation] != "rprivate"


def look(host_path: str, *, propagation: bool) -> Source:
    """What is at a path of the host; a directory is made where nothing is, which manifests have come to rely on.

    `propagation` is whether to find out how that propagates, which takes reading the whole mount table. Blocking, and
    for ever on a file server that does not answer. Raises InvalidArgument.
    """
    try:
        try:
            path = os.path.realpath(host_path, strict=True)
        except FileNotFoundError:
            Path(host_path).mkdir(mode=0o755, parents=True, exist_ok=True)
            log.info("made a directory to be mounted", extra={"path": host_path})
            path = os.path.realpath(host_path, strict=True)
        if not propagation:
            return Source(path)
        found = mount_of(Path(path))
    except OSError as err:
        raise InvalidArgument(f"cannot mount {host_path}: {err.strerror} on the host") from err
    return Source(path, shared=found.shared, slave=found.slave)


def propagation_of_root(mounts: Sequence[Mount]) -> str:
    """What the container's root must be for its mounts' propagation to reach them ("" for the runtime's default)."""
    kinds = {mount.propagation for mount in mounts}
    if MountPropagation.PROPAGATION_BIDIRECTIONAL in kinds:
        return "rshared"
    return "rslave" if MountPropagation.PROPAGATION_HOST_TO_CONTAINER in kinds else ""


def check(mount: Mount) -> None:
    """Raises InvalidArgument for a mount that cannot be, whatever there is on the host.

    Raises Failed beginning with ImageVolumeMountFailed, the prefix the kubelet looks for, for an image volume.
    """
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
    if not mount.host_path.startswith("/") or "\0" in mount.host_path:
        raise InvalidArgument(
            f"cannot mount {mount.host_path or '(nothing)'} on {mount.container_path}: host_path must be absolute"
        )
    if mount.propagation not in _PROPAGATION:
        raise InvalidArgument(f"cannot mount on {mount.container_path}: unknown propagation {mount.propagation}")


def _user_mount(mount: Mount, source: Source) -> JsonObject:
    options = ["rbind", _propagation(mount, source), "ro" if mount.readonly else "rw"]
    return _mount(os.path.normpath(mount.container_path), "bind", source.path, options)


def _propagation(mount: Mount, source: Source) -> str:
    wanted = _PROPAGATION[mount.propagation]
    if wanted == "rshared" and not source.shared:
        raise InvalidArgument(
            f"cannot mount {source.path} on {mount.container_path} with bidirectional propagation: it is not on a "
            "shared mount; run mount --make-rshared on its mount point"
        )
    if wanted == "rslave" and not (source.shared or source.slave):
        raise InvalidArgument(
            f"cannot mount {source.path} on {mount.container_path} with propagation from the host: it is on a private "
            "mount; run mount --make-rshared on its mount point"
        )
    return wanted


def _mount(destination: str, kind: str, source: str, options: list[str]) -> JsonObject:
    return {"destination": destination, "type": kind, "source": source, "options": options}
