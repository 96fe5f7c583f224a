"""What pods use, in the form the CRI has: their own cgroups and interfaces, and their containers."""

import asyncio
from collections.abc import Sequence

from criw_proto.criw.network.v1 import PodStats as Counters
from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.cgroups.usage import CgroupUsage, read_usage
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.peers.network import Network
from criw_supervisor.stats.of_containers import ContainerStats, cpu, memory, number


class PodStats:
    def __init__(self, ledger: Ledger, cgroups: Cgroups, network: Network, containers: ContainerStats) -> None:
        self._ledger = ledger
        self._cgroups = cgroups
        self._network = network
        self._containers = containers

    async def of(self, pods: Sequence[Pod]) -> list[cri.PodSandboxStats]:
        """The statistics of pods with those of their containers."""
        members = {pod.id: list(self._ledger.containers_of(pod.id)) for pod in pods}
        everything = [one for containers in members.values() for one in containers]
        per_container = {one.attributes.id: one for one in await self._containers.of(everything) if one.attributes}
        network = await self._network.counters([pod.id for pod in pods if pod.record.netns])
        readings = await asyncio.to_thread(lambda: [read_usage(self._cgroups, pod.record.cgroup) for pod in pods])
        return [
            cri.PodSandboxStats(
                attributes=pod.attributes(),
                linux=cri.LinuxPodSandboxStats(
                    cpu=cpu(reading),
                    memory=memory(reading),
                    network=_network_usage(network.get(pod.id)),
                    process=_process(reading),
                    containers=[per_container[one.id] for one in members[pod.id]],
                ),
            )
            for pod, reading in zip(pods, readings, strict=True)
        ]


def _process(reading: CgroupUsage | None) -> cri.ProcessUsage | None:
    if reading is None:
        return None
    return cri.ProcessUsage(timestamp=reading.at_ns, process_count=number(reading.processes))


def _network_usage(stats: Counters | None) -> cri.NetworkUsage | None:
    if stats is None or not stats.interfaces:
        return None
    interfaces = [
        cri.NetworkInterfaceUsage(
            name=one.name,
            rx_bytes=number(one.rx_bytes),
            rx_errors=number(one.rx_errors),
            tx_bytes=number(one.tx_bytes),
            tx_errors=number(one.tx_errors),
        )
        for one in stats.interfaces
    ]
    return cri.NetworkUsage(timestamp=stats.timestamp_ns, default_interface=interfaces[0], interfaces=interfaces)
