"""Giving back what other agents hold for pods and containers that are no more.

An undo may find the storage or network agent away. What it holds is compared with what is known here once it is back:
at start, and whenever an undo could not finish.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from criw.errors import Fault
from criw.rpc.client import call
from criw_proto.criw.network.v1 import DetachRequest, ListRequest, NetworkStub
from criw_proto.criw.storage.v1 import ListRootfsRequest, RemoveRootfsRequest, RootfsStub
from criw_supervisor.state import State

log = logging.getLogger(__name__)
_PAUSE_S: Final = 2.0


class Reconcile:
    """`request()` asks for a comparison; `run()` makes them, in a task of its own."""

    def __init__(self, state: State, storage: RootfsStub, network: NetworkStub) -> None:
        self._state = state
        self._storage = storage
        self._network = network
        self._wanted = asyncio.Event()

    def request(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        """Make the comparisons asked for, each until it succeeds, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._compare()
            except Fault as err:
                log.warning("cannot compare with the other agents yet", extra={"error": str(err)})
                await asyncio.sleep(_PAUSE_S)
                self._wanted.set()

    async def _compare(self) -> None:
        # What is known is read after the answers: whatever was begun before them has its intent by then.
        rootfs = await call(self._storage.list_rootfs, ListRootfsRequest(), agent="criw-storage")
        for rootfs_id in self._unknown(rootfs.rootfs_ids):
            log.info("removing a root filesystem without a container", extra={"container": rootfs_id})
            await call(self._storage.remove_rootfs, RemoveRootfsRequest(rootfs_id=rootfs_id), agent="criw-storage")
        attached = await call(self._network.list, ListRequest(), agent="criw-network")
        for pod_id in self._unknown(attached.pod_ids):
            log.info("detaching the network of a pod that is no more", extra={"pod": pod_id})
            await call(self._network.detach, DetachRequest(pod_id=pod_id), agent="criw-network")

    def _unknown(self, ids: Collection[str]) -> list[str]:
        known = {one.id for one in self._state.containers} | {pod.id for pod in self._state.pods} | self._state.pending
        return [one for one in ids if one not in known]
