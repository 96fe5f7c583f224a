"""StopPodSandbox, and what is done when a sandbox breaks by itself."""

import asyncio
import logging
from pathlib import Path

from criw.namespaces import is_pinned
from criw.operations import together
from criw_proto.runtime.v1 import NamespaceMode
from criw_supervisor.containers.containers import Containers
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.states import PodState
from criw_supervisor.peers.network import Network
from criw_supervisor.pods import namespaces

log = logging.getLogger(__name__)


async def stop(pod: Pod, *, ledger: Ledger, containers: Containers, network: Network) -> None:
    """Stop the pod's containers and give back its network, namespaces and infra container."""
    async with ledger.pod_locks.hold(pod.id):  # a container being made comes first, and is stopped then
        if pod.record.state is PodState.STOPPED:
            return
        if pod.record.state is PodState.READY:
            await ledger.save(pod, pod.record.moved(PodState.STOPPING))
        await together(*(containers.stop(one, grace_s=0) for one in ledger.containers_of(pod.id)))
        if (infra := ledger.infra.get(pod.id)) is not None:
            await containers.remove(infra)
        await together(
            *((network.detach(pod.id),) if pod.record.netns else ()),
            asyncio.to_thread(namespaces.unpin, pod.files),
        )
        await ledger.save(pod, pod.record.moved(PodState.STOPPED, netns=""))


def is_whole(pod: Pod, ledger: Ledger) -> bool:
    """Whether the sandbox has the namespaces and the infra process it was made with. Blocks."""
    infra = ledger.infra.get(pod.id)
    own_network = pod.options.network != NamespaceMode.NODE
    return (
        (infra is None or infra.running)
        and (not own_network or is_pinned(Path(pod.record.netns)))
        and namespaces.are_whole(pod.files, own_uts=own_network, own_ipc=pod.options.ipc != NamespaceMode.NODE)
    )


async def lose(pod: Pod, *, ledger: Ledger) -> None:
    """Record that the sandbox is broken for good: its infra process or one of its namespaces is gone."""
    async with ledger.pod_locks.hold(pod.id):
        if pod.record.state is PodState.READY:
            log.warning("pod sandbox is broken", extra={"pod": pod.id})
            await ledger.save(pod, pod.record.moved(PodState.STOPPING))
