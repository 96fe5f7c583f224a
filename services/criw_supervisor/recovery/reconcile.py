"""Comparing with the other agents: giving back what they hold for nobody, and noticing what they have lost.

An undo may find the storage or network agent away, and a namespace or an attachment may go without a word. So all is
compared at start, whenever something was not finished, and now and then.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Final

from criw.errors import Fault
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.peers.network import Network
from criw_supervisor.peers.storage import Storage
from criw_supervisor.pods.pods import Pods

log = logging.getLogger(__name__)
_PAUSE_S: Final = 2.0
_INTERVAL_S: Final = 30.0


class Reconcile:
    """`run()` compares at once and then whenever the ledger tells of something unfinished, in a task of its own."""

    def __init__(self, ledger: Ledger, storage: Storage, network: Network, pods: Pods) -> None:
        self._ledger = ledger
        self._storage = storage
        self._network = network
        self._pods = pods
        self._wanted = asyncio.Event()
        self._wanted.set()
        ledger.listen(self._wanted.set)

    async def run(self) -> None:
        """Make the comparisons, each until it succeeds, for ever."""
        while True:
            # Nobody need want it: what is lost without a word is found by looking now and then.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.compare()
            except (Fault, OSError) as err:
                log.warning("cannot compare with the other agents yet", extra={"error": str(err)})
                await asyncio.sleep(_PAUSE_S)
                self._wanted.set()

    async def compare(self) -> None:
        """Compare once. One agent that is away does not keep the comparison with the other."""
        outcomes = await asyncio.gather(
            self._compare_storage(), self._compare_network(), self._pods.lose_broken(), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _compare_storage(self) -> None:
        # What is known is read after the answers: whatever was begun before them has its intent by then.
        for container_id in self._unknown(await self._storage.rootfs_ids()):
            log.info("removing a root filesystem without a container", extra={"container": container_id})
            await self._storage.remove_rootfs(container_id)

    async def _compare_network(self) -> None:
        attached = [pod for pod in self._ledger.pods if pod.ready and pod.record.netns]
        there = set(await self._network.pod_ids())
        for pod in attached:
            if pod.id not in there:
                await self._pods.lose(pod)  # its address may be another's by now
        for pod_id in self._unknown(there):
            log.info("detaching the network of a pod that is no more", extra={"pod": pod_id})
            await self._network.detach(pod_id)

    def _unknown(self, ids: Collection[str]) -> list[str]:
        return [one for one in ids if not self._ledger.knows(one)]
