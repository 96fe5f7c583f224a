"""What the processes of a cgroup use: the kernel's counters, version 1 and 2."""

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

from criw.kernel import suppress_errno
from criw_supervisor.cgroups.hierarchies import Cgroups, flat_keyed


@dataclass(frozen=True)
class CgroupUsage:
    """One reading of a cgroup's counters; None for what the host does not count."""

    at_ns: int
    cpu_ns: int
    memory: int
    working_set: int
    rss: int
    page_faults: int
    major_page_faults: int
    memory_limit: int | None
    swap: int | None
    processes: int


def read_usage(cgroups: Cgroups, cgroup: str) -> CgroupUsage | None:
    """The counters of a cgroup with all below it; None if it is gone. Blocking."""
    try:
        return _read_v2(cgroups, cgroup) if cgroups.v2 else _read_v1(cgroups, cgroup)
    except OSError:  # it goes away while it is read
        return None


def _read_v1(cgroups: Cgroups, cgroup: str) -> CgroupUsage | None:
    cpu, memory = cgroups.directory("cpuacct", cgroup), cgroups.directory("memory", cgroup)
    if cpu is None or memory is None:
        return None
    used = int((memory / "memory.usage_in_bytes").read_text())
    limit = int((memory / "memory.limit_in_bytes").read_text())
    stat = flat_keyed(memory / "memory.stat")
    swap = memory / "memory.memsw.usage_in_bytes"
    return CgroupUsage(
        at_ns=time.time_ns(),
        cpu_ns=int((cpu / "cpuacct.usage").read_text()),
        memory=used,
        working_set=max(used - stat.get("total_inactive_file", 0), 0),
        rss=stat.get("total_rss", 0),
        page_faults=stat.get("total_pgfault", 0),
        major_page_faults=stat.get("total_pgmajfault", 0),
        memory_limit=limit if limit < 1 << 60 else None,
        swap=int(swap.read_text()) - used if swap.exists() else None,
        processes=_processes_below(memory),
    )


def _read_v2(cgroups: Cgroups, cgroup: str) -> CgroupUsage | None:
    directory = cgroups.directory("memory", cgroup)
    assert directory is not None
    used = int((directory / "memory.current").read_text())
    limit = (directory / "memory.max").read_text().strip()
    stat = flat_keyed(directory / "memory.stat")
    swap = directory / "memory.swap.current"
    return CgroupUsage(
        at_ns=time.time_ns(),
        cpu_ns=flat_keyed(directory / "cpu.stat").get("usage_usec", 0) * 1000,
        memory=used,
        working_set=max(used - stat.get("inactive_file", 0), 0),
        rss=stat.get("anon", 0),
        page_faults=stat.get("pgfault", 0),
        major_page_faults=stat.get("pgmajfault", 0),
        memory_limit=int(limit) if limit.isdecimal() else None,
        swap=int(swap.read_text()) if swap.exists() else None,
        processes=_processes_below(directory),
    )


def _processes_below(directory: Path) -> int:
    count = 0
    for below, _, _ in os.walk(directory):
        with suppress_errno(errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):  # it goes away while it is read
            count += len((Path(below) / "cgroup.procs").read_text().split())
    return count
