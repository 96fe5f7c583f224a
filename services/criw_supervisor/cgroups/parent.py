"""Names of pods' cgroups."""

from typing import Final

from criw.errors import InvalidArgument

_NAME_BYTES: Final = 255
_PATH_BYTES: Final = 2048  # a container's is below it, and all of it below a mount point


def check_parent(path: str) -> str:
    """A pod's cgroup as requested, normalised to an absolute path. Raises InvalidArgument."""
    if path.endswith(".slice"):
        raise InvalidArgument(
            f"cannot use cgroup parent {path}: this runtime uses the cgroupfs driver; give a path, or let the kubelet "
            "take the driver from RuntimeConfig"
        )
    parts = [part for part in path.split("/") if part]
    if ".." in parts or "." in parts:
        raise InvalidArgument(f"cannot use cgroup parent {path}: it must not contain . or ..")
    if any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in path):
        raise InvalidArgument(f"cannot use cgroup parent {path!r}: it must not contain control characters")
    if len(path.encode()) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
        raise InvalidArgument(f"cannot use cgroup parent {path[:100]}…: it is too long")
    return "/" + "/".join(parts)
