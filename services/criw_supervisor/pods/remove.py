"""RemovePodSandbox."""

import asyncio

from criw.operations import together
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.containers.containers import Containers
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.pods import namespaces


async def remove(pod: Pod, *, ledger: Ledger, containers: Containers, cgroups: Cgroups) -> None:
    """Remove a stopped pod with its containers. One that is gone already is a success."""
    async with ledger.pod_locks.hold(pod.id):
        if ledger.pods.get(pod.id) is None:
            return
        await together(*(containers.remove(one) for one in ledger.containers_of(pod.id)))
        await asyncio.to_thread(namespaces.remove, pod.files)
        await asyncio.to_thread(cgroups.remove_empty, pod.record.cgroup, pod.record.owned)
        await ledger.forget(pod)
