"""The operations on pod sandboxes: each runs once at a time, outlives its caller, and is joined by a second one."""

import asyncio

from criw.operations import Operations
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.containers.containers import Containers
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.peers.network import Network
from criw_supervisor.pods.remove import remove
from criw_supervisor.pods.request import PodPlan
from criw_supervisor.pods.run import RunPod
from criw_supervisor.pods.stop import is_whole, lose, stop


class Pods:
    def __init__(self, ledger: Ledger, cgroups: Cgroups, containers: Containers, network: Network, run: RunPod) -> None:
        self._ledger = ledger
        self._cgroups = cgroups
        self._containers = containers
        self._network = network
        self._run = run
        self._operations = Operations()

    async def drain(self) -> None:
        """Wait until every operation in progress has ended."""
        await self._operations.drain()

    async def run(self, plan: PodPlan) -> str:
        """RunPodSandbox: its id. The same request again, also while the first is in progress, gives the same id."""
        key = f"run {plan.name} {plan.runtime_handler} {plan.digest}"
        return await self._operations.run(key, lambda: self._run.run(plan))

    async def stop(self, pod: Pod) -> None:
        """Stop the pod's containers and give back its network, namespaces and infra container."""
        await self._operations.run(
            f"stop {pod.id}",
            lambda: stop(pod, ledger=self._ledger, containers=self._containers, network=self._network),
        )

    async def remove(self, pod: Pod) -> None:
        """Stop the pod if need be and remove it with its containers."""
        await self._operations.run(f"remove {pod.id}", lambda: self._stop_and_remove(pod))

    async def _stop_and_remove(self, pod: Pod) -> None:
        await self.stop(pod)
        await remove(pod, ledger=self._ledger, containers=self._containers, cgroups=self._cgroups)

    async def lose(self, pod: Pod) -> None:
        """Record that the sandbox is broken for good."""
        await lose(pod, ledger=self._ledger)

    async def lose_broken(self) -> None:
        """Record which ready sandboxes have lost a namespace or their infra process (a reboot takes them)."""
        ready = [pod for pod in self._ledger.pods if pod.ready]
        for pod in await asyncio.to_thread(lambda: [one for one in ready if not is_whole(one, self._ledger)]):
            await self.lose(pod)
