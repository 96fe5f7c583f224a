"""CPU, memory and other limits: from the CRI's form to the runtime's, and what an update leaves in force."""

import logging
from pathlib import Path
from typing import Final

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import LinuxContainerResources
from criw_supervisor.oci import JsonObject

log = logging.getLogger(__name__)

OOM_SCORE_RANGE: Final = range(-1000, 1001)
_LEAST_MEMORY: Final = 1024 * 1024  # a container cannot even start in less


def check(resources: LinuxContainerResources) -> None:
    """Raises InvalidArgument for numbers that mean nothing."""
    for name in ("cpu_period", "cpu_shares", "memory_limit_in_bytes"):
        if getattr(resources, name) < 0:
            raise InvalidArgument(f"cannot limit the container: {name} must not be negative")
    if 0 < resources.memory_limit_in_bytes < _LEAST_MEMORY:
        raise InvalidArgument("cannot limit the container: memory_limit_in_bytes is below 1 MiB")
    if resources.oom_score_adj not in OOM_SCORE_RANGE:
        raise InvalidArgument("cannot limit the container: oom_score_adj must be from -1000 to 1000")


def oci(resources: LinuxContainerResources) -> JsonObject:
    """The `linux.resources` object, without devices. 0 and "" mean "not set" in the CRI and are left out."""
    cpu = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    memory = {"limit": resources.memory_limit_in_bytes, "swap": resources.memory_swap_limit_in_bytes}
    result: JsonObject = {}
    if cpu := {key: value for key, value in cpu.items() if value}:
        result["cpu"] = cpu
    if memory := {key: value for key, value in memory.items() if value}:
        result["memory"] = memory
    if resources.hugepage_limits:
        result["hugepageLimits"] = [
            {"pageSize": limit.page_size, "limit": limit.limit} for limit in resources.hugepage_limits
        ]
    if resources.unified:
        result["unified"] = dict(resources.unified)
    return result


def merged(now: LinuxContainerResources, change: LinuxContainerResources) -> LinuxContainerResources:
    """What is in force after an update: unset fields of `change` leave `now` alone."""
    result = LinuxContainerResources.parse(bytes(now))
    for name in (
        "cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "memory_swap_limit_in_bytes", "oom_score_adj",
        "cpuset_cpus", "cpuset_mems", "hugepage_limits",
    ):  # fmt: skip
        if value := getattr(change, name):
            setattr(result, name, value)
    result.unified = {**now.unified, **change.unified}
    return result


def supported(resources: LinuxContainerResources, *, cgroup_v2: bool, swap: bool) -> LinuxContainerResources:
    """The request without what this host's kernel cannot do, as other runtimes do it: huge pages, swap, v2's keys.

    Huge page limits of sizes the host does not have and a swap limit where swap is not accounted are dropped.
    Raises InvalidArgument for `unified` keys on a v1 host.
    """
    result = LinuxContainerResources.parse(bytes(resources))
    sizes = _huge_page_sizes(cgroup_v2=cgroup_v2)
    result.hugepage_limits = [limit for limit in resources.hugepage_limits if limit.page_size in sizes]
    if not swap:
        result.memory_swap_limit_in_bytes = 0
    if resources.unified and not cgroup_v2:
        raise InvalidArgument("cannot limit the container: resources.unified needs a host with cgroup v2")
    return result


def _huge_page_sizes(*, cgroup_v2: bool) -> set[str]:
    root = Path("/sys/fs/cgroup")
    if not cgroup_v2 and not (root / "hugetlb").is_dir():
        return set()
    sizes = set()
    for directory in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        kilobytes = int(directory.name.removeprefix("hugepages-").removesuffix("kB"))
        sizes.add(f"{kilobytes // 1024**2}GB" if kilobytes >= 1024**2 else f"{kilobytes // 1024}MB")
    return sizes


class OomScore:
    """oom_score_adj as far as this process may set it: without CAP_SYS_RESOURCE it cannot go below our own."""

    def __init__(self, *, may_lower: bool) -> None:
        self._least = OOM_SCORE_RANGE.start if may_lower else int(Path("/proc/self/oom_score_adj").read_text())
        self._told = False

    def clamped(self, wanted: int) -> int:
        if wanted < self._least and not self._told:
            self._told = True
            log.warning(
                "oom_score_adj is raised to what this process may set: it lacks CAP_SYS_RESOURCE",
                extra={"wanted": wanted, "set": self._least},
            )
        return max(wanted, self._least)
