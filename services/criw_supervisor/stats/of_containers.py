"""What containers use, in the form the CRI has."""

import logging
from collections import defaultdict
from collections.abc import Sequence

from criw.errors import DeadlineExceeded, Unavailable
from criw_proto.criw.storage.v1 import DiskUsage
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups.usage import CgroupUsage
from criw_supervisor.ledger.container import Container
from criw_supervisor.peers.storage import Disks, Storage
from criw_supervisor.runtimes.handler import Task, task_of
from criw_supervisor.runtimes.handlers import Handlers

log = logging.getLogger(__name__)


class ContainerStats:
    def __init__(self, handlers: Handlers, storage: Storage) -> None:
        self._handlers = handlers
        self._storage = storage

    async def of(self, containers: Sequence[Container]) -> list[cri.ContainerStats]:
        """The statistics of the containers that are there to be measured, exited ones included (their disk)."""
        disks = await self._disks()
        running: dict[str, list[Task]] = defaultdict(list)
        for one in containers:
            if one.running:
                running[one.record.runtime].append(task_of(one.record))
        readings: dict[str, CgroupUsage] = {}
        for runtime, tasks in running.items():
            readings |= await self._handlers.of_record(runtime).usage(tasks)
        return [_stats(one, readings.get(one.id), disks.writable.get(one.id), disks.mountpoint) for one in containers]

    async def _disks(self) -> Disks:
        """What is on the disk; nothing while the storage agent is away: the rest is known all the same."""
        try:
            return await self._storage.usage()
        except (Unavailable, DeadlineExceeded) as err:
            log.warning("cannot tell what containers have written", extra={"error": str(err)})
            return Disks("", {})


def _stats(
    container: Container, reading: CgroupUsage | None, disk: DiskUsage | None, mountpoint: str
) -> cri.ContainerStats:
    result = cri.ContainerStats(
        attributes=container.attributes(), cpu=cpu(reading), memory=memory(reading), swap=_swap(reading)
    )
    if disk is not None:
        result.writable_layer = cri.FilesystemUsage(
            timestamp=disk.timestamp_ns,
            fs_id=cri.FilesystemIdentifier(mountpoint=mountpoint),
            used_bytes=number(disk.used_bytes),
            inodes_used=number(disk.inodes_used),
        )
    return result


def number(value: int) -> cri.UInt64Value:
    return cri.UInt64Value(value=value)


def cpu(reading: CgroupUsage | None) -> cri.CpuUsage | None:
    if reading is None:
        return None
    return cri.CpuUsage(timestamp=reading.at_ns, usage_core_nano_seconds=number(reading.cpu_ns))


def memory(reading: CgroupUsage | None) -> cri.MemoryUsage | None:
    if reading is None:
        return None
    limit = reading.memory_limit
    return cri.MemoryUsage(
        timestamp=reading.at_ns,
        working_set_bytes=number(reading.working_set),
        available_bytes=None if limit is None else number(max(limit - reading.working_set, 0)),
        usage_bytes=number(reading.memory),
        rss_bytes=number(reading.rss),
        page_faults=number(reading.page_faults),
        major_page_faults=number(reading.major_page_faults),
    )


def _swap(reading: CgroupUsage | None) -> cri.SwapUsage | None:
    if reading is None or reading.swap is None:
        return None
    return cri.SwapUsage(timestamp=reading.at_ns, swap_usage_bytes=number(max(reading.swap, 0)))
