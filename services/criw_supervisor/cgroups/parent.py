"""Names of pods' cgroups."""

from criw.errors import InvalidArgument


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
    return "/" + "/".join(parts)
