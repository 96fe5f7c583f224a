"""Control groups: where they are mounted, making and removing a pod's, and what is in them.

The OCI runtime makes and configures the container's cgroup; the pod's above it is ours when the request named none.
Version 2 is one hierarchy at /sys/fs/cgroup; version 1, hybrid included, is one for each controller (cgroups(7)).
"""

import asyncio
import contextlib
import errno
import functools
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from criw import mountinfo
from criw.errors import Failed, InvalidArgument, ResourceExhausted, Unavailable
from criw.kernel import suppress_errno
from criw.operations import until_gone
from criw_supervisor.cgroups import killing

T = TypeVar("T")
ROOT: Final = Path("/sys/fs/cgroup")
_BUSY_LIMIT_S: Final = 5.0
_MAKE_ATTEMPTS: Final = 20
_THREADS: Final = 2
_V1_CONTROLLERS: Final = frozenset(
    {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "net_cls", "net_prio", "perf_event",
     "hugetlb", "rdma", "misc"}
)  # fmt: skip


class Cgroups:
    """The host's hierarchies: see `parse` and `of_host`."""

    def __init__(self, root: Path, hierarchies: Collection[Path], controllers: Mapping[str, Path], *, v2: bool) -> None:
        self._root = root
        self._hierarchies = sorted(hierarchies)
        self.controllers = controllers  # v1: controller -> mount point
        self.v2 = v2
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="cgroups")

    async def ask(self, look: Callable[[], T]) -> T:
        """Have a look at cgroups in a thread: one of a few of their own, lest a hundred ends keep all others busy."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, look)

    @property
    def version(self) -> int:
        return 2 if self.v2 else 1

    def directory(self, controller: str, cgroup: str) -> Path | None:
        """The directory of a cgroup in the hierarchy of a controller; None if the host does not have it."""
        mounted = self._root if self.v2 else self.controllers.get(controller)
        return None if mounted is None else mounted / cgroup.lstrip("/")

    def children(self, cgroup: str) -> set[str]:
        """Names of the cgroups directly below, in any hierarchy."""
        found: set[str] = set()
        for root in self._hierarchies:
            directory = root / cgroup.lstrip("/")
            if directory.is_dir():
                found.update(entry.name for entry in directory.iterdir() if entry.is_dir())
        return found

    def tops(self, cgroup: str, *, ours: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """In each hierarchy the topmost directory of the cgroup's path that is not there yet, or is one of `ours`.

        It is what `create` would make, with all below it, and what `remove_empty` may take away again.
        """
        found, ours = [], functools.cache(ours)
        for root in self._hierarchies:
            for directory in _path(root, cgroup):
                if not directory.exists() or os.fspath(directory) in ours():
                    found.append(os.fspath(directory))
                    break
        return tuple(found)

    def create(self, cgroup: str) -> None:
        """Make a cgroup in every hierarchy that lacks it.

        Raises InvalidArgument for a path that cannot be one, ResourceExhausted if the kernel allows no more cgroups.
        """
        for root in self._hierarchies:
            path = _path(root, cgroup)
            for _ in range(_MAKE_ATTEMPTS):
                # Its parents mostly are there.
                if all(_make(one, cgroup) for one in path[-1:]) or all(_make(one, cgroup) for one in path):
                    break
            else:
                raise Unavailable(f"cannot make cgroup {cgroup}: its parents are being removed; try again")
            if not self.v2 and root == self.controllers.get("cpuset"):
                _inherit_cpuset(root, root / cgroup.lstrip("/"))

    def enter(self, cgroup: str, pid: int) -> None:
        """Put a process into a cgroup, made if need be. Raises as `create`, and Failed if it cannot be in it."""
        self.create(cgroup)
        for directory in self.directories(cgroup):
            try:
                (directory / "cgroup.procs").write_text(str(pid))
            except OSError as err:
                raise Failed(f"cannot put process {pid} into cgroup {directory}: {err.strerror}") from err

    async def remove(self, cgroup: str) -> None:
        """Remove a cgroup with its (empty) children. Raises Unavailable if processes stay in it."""

        def look() -> OSError | None:
            return next(filter(None, map(_remove_tree, self.directories(cgroup))), None)

        if (err := await until_gone(_BUSY_LIMIT_S, look, threads=self._threads)) is not None:
            raise Unavailable(f"cannot remove cgroup {err.filename}: processes are in it; try again") from err

    def remove_empty(self, cgroup: str, tops: Collection[str]) -> None:
        """Remove a cgroup where nothing is in it, then its parents likewise up to the one of `tops` above it.

        Hierarchies without one of them are left as they are.
        """
        for root in self._hierarchies:
            path = _path(root, cgroup)
            first = next((n for n, directory in enumerate(path) if os.fspath(directory) in tops), len(path))
            for directory in reversed(path[first:]):
                with suppress_errno(errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
                    directory.rmdir()

    def processes(self, cgroup: str) -> set[int]:
        """Processes in the cgroup and below it, in any hierarchy."""
        return set().union(*(killing.members(top) for top in self.directories(cgroup)))

    async def kill(self, cgroup: str) -> None:
        """SIGKILL everything in the cgroup until nothing is left. Raises Unavailable after some seconds."""
        tops = self.directories(cgroup)
        seen: set[int] = set()

        def look() -> set[int]:
            pids = self.processes(cgroup)
            forks = bool(seen) and not pids <= seen
            seen.update(pids)
            if pids:
                for top in tops if forks else ():
                    killing.freeze(top)
                for top in tops:
                    killing.kill_members(top)
                for top in tops:
                    killing.thaw(top)
            return pids

        if left := await until_gone(_BUSY_LIMIT_S, look, threads=self._threads):
            raise Unavailable(f"cannot kill the processes {sorted(left)} of cgroup {cgroup}; try again")

    def thaw(self, cgroup: str) -> None:
        """Have nothing in the cgroup or below it be frozen that could not die so: on version 2 it can (cgroups(7))."""
        if not self.v2 and (freezer := self.directory("freezer", cgroup)) is not None:
            killing.thaw(freezer)

    def directories(self, cgroup: str) -> list[Path]:
        """The cgroup's directory in each hierarchy, there or not."""
        return [root / cgroup.lstrip("/") for root in self._hierarchies]

    def oom_kills(self, cgroup: str) -> int:
        """How many processes of the cgroup the kernel has killed for want of memory."""
        directory = self.directory("memory", cgroup)
        if directory is None:
            return 0
        return flat_keyed(directory / ("memory.events" if self.v2 else "memory.oom_control")).get("oom_kill", 0)


def parse(text: bytes, root: Path = ROOT) -> Cgroups:
    """The hierarchies mounted below `root`, from the text of a mountinfo file."""
    controllers: dict[str, Path] = {}
    hierarchies: set[Path] = set()
    v2 = False
    for mount in mountinfo.parse(text):
        point = Path(mount.point)
        if mount.fstype not in {"cgroup", "cgroup2"} or not point.is_relative_to(root):
            continue
        hierarchies.add(point)
        if mount.fstype == "cgroup2":
            v2 = v2 or point == root
        else:
            controllers |= dict.fromkeys(_V1_CONTROLLERS & set(mount.options.split(",")), point)
    return Cgroups(root, hierarchies, controllers, v2=v2)


def of_host() -> Cgroups:
    """The hierarchies of this host, as mounted now."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def _path(root: Path, cgroup: str) -> list[Path]:
    """The directories of a cgroup's path in one hierarchy, from the top and without the root."""
    parts = [part for part in cgroup.split("/") if part]
    return [root.joinpath(*parts[: n + 1]) for n in range(len(parts))]


def _make(directory: Path, cgroup: str) -> bool:
    """Make one directory of a cgroup's path, if it is not there. False if its parent went with the last pod in it."""
    try:
        directory.mkdir()
    except FileExistsError as err:
        if directory.exists() and not directory.is_dir():
            raise InvalidArgument(f"cannot make cgroup {cgroup}: {directory} is a file; give another path") from err
    except FileNotFoundError:
        return False
    except OSError as err:
        if err.errno in {errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG}:
            raise InvalidArgument(f"cannot make cgroup {cgroup}: {err.strerror}; give another path") from err
        if err.errno == errno.EAGAIN:  # cgroup.max.descendants or cgroup.max.depth
            raise ResourceExhausted(f"cannot make cgroup {cgroup}: the kernel allows no more; remove some") from err
        raise
    return True


def _inherit_cpuset(root: Path, directory: Path) -> None:
    """A v1 cpuset takes no process until it has CPUs and memory nodes: give it its parents'."""
    for parent in [*reversed(directory.relative_to(root).parents), directory.relative_to(root)]:
        for name in ("cpuset.cpus", "cpuset.mems"):
            here = root / parent / name
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile; made again by the caller's loop
                if parent != Path() and not here.read_text().strip():
                    here.write_text((root / parent).parent.joinpath(name).read_text())


def _remove_tree(top: Path) -> OSError | None:
    """Remove a cgroup and those below it; why not, if one is busy: it is for a moment after its last process died."""
    for below, _, _ in os.walk(top, topdown=False):
        try:
            Path(below).rmdir()
        except FileNotFoundError:
            continue
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
            return err
    return None


def flat_keyed(path: Path) -> dict[str, int]:
    """A file of "key number" lines; empty if there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:  # gone; or going, which is ENODEV
        return {}
    return {key: int(value) for key, _, value in (line.partition(" ") for line in lines) if value.isdecimal()}
