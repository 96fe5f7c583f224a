"""The storage agent: root filesystems of containers, and what they take on the disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.rpc.client import call
from criw_proto.criw.storage.v1 import (
    CreateRootfsRequest,
    DiskStub,
    DiskUsage,
    ListRootfsRequest,
    RemoveRootfsRequest,
    RootfsStub,
    UsageRequest,
)

_AGENT: Final = "criw-storage"
_LIMIT_S: Final = 60.0
_USAGE_LIMIT_S: Final = 2.0  # it comes from memory


@dataclass(frozen=True)
class Disks:
    """What containers have written over their images."""

    mountpoint: str  # of the file system that holds them
    writable: Mapping[str, DiskUsage]  # by container id


class Storage:
    """Its methods raise the agent's faults, and Unavailable while it is away."""

    def __init__(self, rootfs: RootfsStub, disk: DiskStub) -> None:
        self._rootfs = rootfs
        self._disk = disk

    async def create_rootfs(self, container_id: str, image_id: str) -> Path:
        """Mount a writable root filesystem of an image; its directory. Raises NotFound for an unknown image."""
        request = CreateRootfsRequest(rootfs_id=container_id, image_id=image_id)
        return Path((await call(self._rootfs.create_rootfs, request, timeout_s=_LIMIT_S, agent=_AGENT)).path)

    async def remove_rootfs(self, container_id: str, *, limit_s: float = _LIMIT_S) -> None:
        """Remove a root filesystem with all that was written to it; an unknown one is a success."""
        request = RemoveRootfsRequest(rootfs_id=container_id)
        await call(self._rootfs.remove_rootfs, request, timeout_s=limit_s, agent=_AGENT)

    async def rootfs_ids(self) -> list[str]:
        """The containers that have a root filesystem."""
        reply = await call(self._rootfs.list_rootfs, ListRootfsRequest(), timeout_s=_LIMIT_S, agent=_AGENT)
        return reply.rootfs_ids

    async def usage(self) -> Disks:
        """What was measured last."""
        reply = await call(self._disk.usage, UsageRequest(), timeout_s=_USAGE_LIMIT_S, agent=_AGENT)
        return Disks(
            reply.mountpoint, {one.rootfs_id: one.writable for one in reply.rootfs if one.writable is not None}
        )
