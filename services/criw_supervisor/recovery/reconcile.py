"""Giving back what other agents hold for pods and containers that are no more.

An undo may find the storage or network agent away. What it holds is compared with what is known here once it is back:
at start, and whenever something was not finished.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from criw.errors import Fault
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.peers.network import Network
from criw_supervisor.peers.storage import Storage

log = logging.getLogger(__name__)
_PAUSE_S: Final = 2.0


class Reconcile:
    """`run()` compares at once and then whenever the ledger tells of something unfinished, in a task of its own."""

    def __init__(self, ledger: Ledger, storage: Storage, network: Network) -> None:
        self._ledger = ledger
        self._storage = storage
        self._network = network
        self._wanted = asyncio.Event()
        self._wanted.set()
        ledger.listen(self._wanted.set)

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
        for container_id in self._unknown(await self._storage.rootfs_ids()):
            log.info("removing a root filesystem without a container", extra={"container": container_id})
            await self._storage.remove_rootfs(container_id)
        for pod_id in self._unknown(await self._network.pod_ids()):
            log.info("detaching the network of a pod that is no more", extra={"pod": pod_id})
            await self._network.detach(pod_id)

    def _unknown(self, ids: Collection[str]) -> list[str]:
        return [one for one in ids if not self._ledger.knows(one)]
