"""What containers use, from two samples a moment apart."""

import asyncio
from collections.abc import Collection
from typing import Final

from criw.rpc.client import ask
from criw_ctl.door import Door
from criw_ctl.tables import short, size
from criw_proto.runtime.v1 import ContainerStats, FilesystemUsage, ListContainerStatsRequest, ListContainerStatsResponse

COLUMNS: Final = ("CONTAINER", "NAME", "CPU %", "MEMORY", "DISK", "INODES")
INTERVAL_S: Final = 1.0


async def sample(door: Door, wanted: Collection[str] | None) -> ListContainerStatsResponse:
    """The numbers of the containers with these ids, of all if None."""
    reply = await ask(door.runtime.list_container_stats, ListContainerStatsRequest())
    stats = [item for item in reply.stats if wanted is None or _id(item) in wanted]
    return ListContainerStatsResponse(stats=sorted(stats, key=_id))


async def rows(door: Door, wanted: Collection[str] | None) -> list[tuple[str, ...]]:
    """A row per container that was there at both times."""
    before = {_id(item): item for item in (await sample(door, wanted)).stats}
    await asyncio.sleep(INTERVAL_S)
    return [_row(before[_id(item)], item) for item in (await sample(door, wanted)).stats if _id(item) in before]


def _id(stats: ContainerStats) -> str:
    return stats.attributes.id if stats.attributes else ""


def cpu_percent(before: ContainerStats, after: ContainerStats) -> float | None:
    """CPU time used between two samples, 100 for one CPU's whole time; None if a sample lacks it or none passed."""
    first, second = before.cpu, after.cpu
    if first is None or first.usage_core_nano_seconds is None:
        return None
    if second is None or second.usage_core_nano_seconds is None or second.timestamp <= first.timestamp:
        return None
    used = second.usage_core_nano_seconds.value - first.usage_core_nano_seconds.value
    return 100 * used / (second.timestamp - first.timestamp)


def _row(before: ContainerStats, after: ContainerStats) -> tuple[str, ...]:
    percent = cpu_percent(before, after)
    memory = None if after.memory is None else after.memory.working_set_bytes
    layer = after.writable_layer or FilesystemUsage()
    return (
        short(_id(after)),
        after.attributes.metadata.name if after.attributes and after.attributes.metadata else "",
        "-" if percent is None else f"{percent:.2f}",
        "-" if memory is None else size(memory.value),
        "-" if layer.used_bytes is None else size(layer.used_bytes.value),
        "-" if layer.inodes_used is None else str(layer.inodes_used.value),
    )
