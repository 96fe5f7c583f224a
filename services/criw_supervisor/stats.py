"""What pods and containers use: read from their cgroups, the storage agent and the network agent when asked."""

import asyncio
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from criw.kernel import suppress_errno
from criw.rpc.client import call
from criw_proto.criw.network.v1 import NetworkStub, PodStats, StatsRequest
from criw_proto.criw.storage.v1 import DiskStub, DiskUsage, UsageRequest
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups import Cgroups, flat_keyed
from criw_supervisor.pod import Container, Pod
from criw_supervisor.records import ContainerState
from criw_supervisor.state import State

_AGENT_LIMIT_S = 5.0


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


class Stats:
    def __init__(self, state: State, cgroups: Cgroups, storage: DiskStub, network: NetworkStub) -> None:
        self._state = state
        self._cgroups = cgroups
        self._storage = storage
        self._network = network

    async def of_containers(self, containers: Sequence[Container]) -> list[cri.ContainerStats]:
        """The statistics of the containers that are there to be measured, exited ones included (their disk)."""
        usage = await call(self._storage.usage, UsageRequest(), timeout_s=_AGENT_LIMIT_S, agent="criw-storage")
        disks = {one.rootfs_id: one.writable for one in usage.rootfs if one.writable is not None}
        running = {one.id: one.record.cgroup for one in containers if _is_running(one)}
        by_id = await asyncio.to_thread(
            lambda: {container_id: read_usage(self._cgroups, cgroup) for container_id, cgroup in running.items()}
        )
        return [_container_stats(one, by_id.get(one.id), disks.get(one.id), usage.mountpoint) for one in containers]

    async def of_pods(self, pods: Sequence[Pod]) -> list[cri.PodSandboxStats]:
        """The statistics of pods with those of their containers."""
        members = {pod.id: list(self._state.containers_of(pod.id)) for pod in pods}
        everything = [one for containers in members.values() for one in containers]
        per_container = {one.attributes.id: one for one in await self.of_containers(everything) if one.attributes}
        network = await self._of_network([pod for pod in pods if pod.record.netns])
        readings = await asyncio.to_thread(lambda: [read_usage(self._cgroups, pod.record.cgroup) for pod in pods])
        return [
            cri.PodSandboxStats(
                attributes=pod.attributes(),
                linux=cri.LinuxPodSandboxStats(
                    cpu=_cpu(reading),
                    memory=_memory(reading),
                    network=_network_usage(network.get(pod.id)),
                    process=_process(reading),
                    containers=[per_container[one.id] for one in members[pod.id]],
                ),
            )
            for pod, reading in zip(pods, readings, strict=True)
        ]

    async def _of_network(self, pods: Sequence[Pod]) -> dict[str, PodStats]:
        if not pods:
            return {}
        request = StatsRequest(pod_ids=[pod.id for pod in pods])
        reply = await call(self._network.stats, request, timeout_s=_AGENT_LIMIT_S, agent="criw-network")
        return {one.pod_id: one for one in reply.pods}


def _is_running(container: Container) -> bool:
    return container.record.state is ContainerState.RUNNING


def _container_stats(
    container: Container, reading: CgroupUsage | None, disk: DiskUsage | None, mountpoint: str
) -> cri.ContainerStats:
    result = cri.ContainerStats(
        attributes=container.attributes(), cpu=_cpu(reading), memory=_memory(reading), swap=_swap(reading)
    )
    if disk is not None:
        result.writable_layer = cri.FilesystemUsage(
            timestamp=disk.timestamp_ns,
            fs_id=cri.FilesystemIdentifier(mountpoint=mountpoint),
            used_bytes=_number(disk.used_bytes),
            inodes_used=_number(disk.inodes_used),
        )
    return result


def _number(value: int) -> cri.UInt64Value:
    return cri.UInt64Value(value=value)


def _cpu(reading: CgroupUsage | None) -> cri.CpuUsage | None:
    if reading is None:
        return None
    return cri.CpuUsage(timestamp=reading.at_ns, usage_core_nano_seconds=_number(reading.cpu_ns))


def _memory(reading: CgroupUsage | None) -> cri.MemoryUsage | None:
    if reading is None:
        return None
    limit = reading.memory_limit
    return cri.MemoryUsage(
        timestamp=reading.at_ns,
        working_set_bytes=_number(reading.working_set),
        available_bytes=None if limit is None else _number(max(limit - reading.working_set, 0)),
        usage_bytes=_number(reading.memory),
        rss_bytes=_number(reading.rss),
        page_faults=_number(reading.page_faults),
        major_page_faults=_number(reading.major_page_faults),
    )


def _swap(reading: CgroupUsage | None) -> cri.SwapUsage | None:
    if reading is None or reading.swap is None:
        return None
    return cri.SwapUsage(timestamp=reading.at_ns, swap_usage_bytes=_number(max(reading.swap, 0)))


def _process(reading: CgroupUsage | None) -> cri.ProcessUsage | None:
    if reading is None:
        return None
    return cri.ProcessUsage(timestamp=reading.at_ns, process_count=_number(reading.processes))


def _network_usage(stats: PodStats | None) -> cri.NetworkUsage | None:
    if stats is None or not stats.interfaces:
        return None
    interfaces = [
        cri.NetworkInterfaceUsage(
            name=one.name,
            rx_bytes=_number(one.rx_bytes),
            rx_errors=_number(one.rx_errors),
            tx_bytes=_number(one.tx_bytes),
            tx_errors=_number(one.tx_errors),
        )
        for one in stats.interfaces
    ]
    return cri.NetworkUsage(timestamp=stats.timestamp_ns, default_interface=interfaces[0], interfaces=interfaces)
