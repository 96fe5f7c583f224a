"""Device nodes of a container and the rules that let it use them."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import Device
from criw_supervisor.oci import JsonObject

# (type, major, minor) of null, zero, full, random, urandom, tty, console, ptmx and the pseudo terminals.
_ALWAYS: Final = (
    ("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 1), ("c", 5, 2),
    ("c", 136, None),
)  # fmt: skip


Found = Mapping[str, os.stat_result]


def rules(devices: Sequence[JsonObject], *, privileged: bool) -> list[JsonObject]:
    """`linux.resources.devices`: everything for a privileged container, else nothing but the usual and its own."""
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    result: list[JsonObject] = [
        {"allow": False, "access": "rwm"},
        # Making a node is harmless without the right to open it.
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    for kind, major, minor in _ALWAYS:
        rule: JsonObject = {"allow": True, "type": kind, "major": major, "access": "rwm"}
        result.append(rule if minor is None else rule | {"minor": minor})
    for device in devices:
        access = device["access"]
        result.append({"allow": True, "access": access, **{key: device[key] for key in ("type", "major", "minor")}})
    return result


def nodes(devices: Sequence[Device], found: Mapping[str, Found], *, privileged: bool) -> list[JsonObject]:
    """A container's device nodes: those of the request, and all of the host's for a privileged one.

    `found` is what `look` found at each host path. Raises InvalidArgument.
    """
    result = [node for device in devices for node in _requested(device, found[device.host_path])]
    if privileged:
        given = {node["path"] for node in result}
        result += [node for node in host_devices() if node["path"] not in given]
    return result


def look(host_path: str) -> Found:
    """The device at a path of the host, or every device below it, by what is added to the path.

    Blocking, and for ever on a file server that does not answer. Raises InvalidArgument if there is none.
    """
    try:
        found = dict(_devices(Path(host_path), ""))
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else err
        raise InvalidArgument(f"cannot give device {host_path}: {why}") from err
    if not found:
        raise InvalidArgument(f"cannot give device {host_path}: it is not a device")
    return found


def _requested(device: Device, found: Found) -> Iterator[JsonObject]:
    if set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"cannot give device {device.host_path}: permissions {device.permissions} is not of rwm")
    for below, info in found.items():
        yield _node(f"{device.container_path or device.host_path}{below}", info, device.permissions or "rwm")


def host_devices() -> list[JsonObject]:
    """Every device of the host, for a privileged container; terminals, shared memory and queues are its own."""
    own = {"pts", "shm", "fd", "mqueue", "console", "ptmx"}
    result: list[JsonObject] = []
    for entry in Path("/dev").iterdir():
        if entry.name not in own and not entry.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # unplugged meanwhile
                result += [_node(f"/dev/{entry.name}{below}", info, "rwm") for below, info in _devices(entry, "")]
    return result


def oci(devices: Sequence[JsonObject]) -> list[JsonObject]:
    """`linux.devices`: the nodes to make."""
    return [{key: value for key, value in device.items() if key != "access"} for device in devices]


def _devices(host: Path, below: str) -> Iterator[tuple[str, os.stat_result]]:
    info = host.stat()
    if stat.S_ISDIR(info.st_mode):
        for entry in sorted(host.iterdir()):
            if not entry.is_symlink():
                with contextlib.suppress(FileNotFoundError):  # unplugged meanwhile
                    yield from _devices(entry, f"{below}/{entry.name}")
    elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        yield below, info


def _node(path: str, info: os.stat_result, access: str) -> JsonObject:
    return {
        "path": path,
        "type": "c" if stat.S_ISCHR(info.st_mode) else "b",
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "access": access,
    }
