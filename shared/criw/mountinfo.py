"""What is mounted in this mount namespace, as the kernel tells it: proc_pid_mountinfo(5)."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_SELF: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")  # how blanks, line breaks and backslashes are written


class Mount(NamedTuple):
    """A mount; bytes of `point` that are no text are as in `os.fsdecode`."""

    id: int
    point: str
    shared: bool  # has a peer group, to which its mounts and unmounts go
    slave: bool  # receives those of a peer group
    fstype: str
    options: str  # of the file system, separated by commas: a v1 cgroup's controllers are among them


def parse(text: bytes) -> Iterator[Mount]:
    """The mounts of a mountinfo file; each comes after the one it sits on."""
    for line in os.fsdecode(text).split("\n"):
        if line:
            before, _, after = line.partition(" - ")
            number, _parent, _device, _root, point, _rest = before.split(" ", 5)
            fstype, _source, options = after.split(" ", 2)
            if "\\" in point:
                point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), point)
            # Blanks in names are escaped, so these begin a field.
            yield Mount(int(number), point, " shared:" in before, " master:" in before, fstype, options)


def mounts() -> Iterator[Mount]:
    """All mounts of this mount namespace; each comes after the one it sits on."""
    return parse(_SELF.read_bytes())


def mounts_below(directory: Path) -> list[Path]:
    """Mount points at or below `directory`, deepest first: the order they can be unmounted in."""
    top = f"{os.fspath(directory).rstrip('/')}/"
    found = [Path(mount.point) for mount in mounts() if f"{mount.point}/".startswith(top)]
    found.reverse()
    return found


def mount_of(path: Path) -> Mount:
    """The mount that `path` is on, links followed. Raises OSError if there is no such path."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        told = Path(f"/proc/self/fdinfo/{fd}").read_text()
        found = next(int(line.split()[1]) for line in told.splitlines() if line.startswith("mnt_id:"))
        return next(mount for mount in mounts() if mount.id == found)
    finally:
        os.close(fd)
