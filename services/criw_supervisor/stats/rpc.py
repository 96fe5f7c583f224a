"""The calls for statistics."""

from criw_proto.runtime import v1 as cri
from criw_supervisor.face import Face
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.stats.of_containers import ContainerStats
from criw_supervisor.stats.of_pods import PodStats


class StatsFace(Face):
    def __init__(self, ledger: Ledger, containers: ContainerStats, pods: PodStats) -> None:
        self._ledger = ledger
        self._containers = containers
        self._pods = pods

    async def container_stats(self, message: cri.ContainerStatsRequest) -> cri.ContainerStatsResponse:
        container = self._ledger.containers.find(message.container_id)
        return cri.ContainerStatsResponse(stats=(await self._containers.of([container]))[0])

    async def list_container_stats(self, message: cri.ListContainerStatsRequest) -> cri.ListContainerStatsResponse:
        wanted = message.filter or cri.ContainerStatsFilter()
        containers = self._ledger.containers.matching(wanted.id, wanted.label_selector)
        if wanted.pod_sandbox_id:
            containers = [one for one in containers if one.record.pod_id.startswith(wanted.pod_sandbox_id)]
        return cri.ListContainerStatsResponse(stats=await self._containers.of(containers))

    async def pod_sandbox_stats(self, message: cri.PodSandboxStatsRequest) -> cri.PodSandboxStatsResponse:
        pod = self._ledger.pods.find(message.pod_sandbox_id)
        return cri.PodSandboxStatsResponse(stats=(await self._pods.of([pod]))[0])

    async def list_pod_sandbox_stats(self, message: cri.ListPodSandboxStatsRequest) -> cri.ListPodSandboxStatsResponse:
        wanted = message.filter or cri.PodSandboxStatsFilter()
        pods = self._ledger.pods.matching(wanted.id, wanted.label_selector)
        return cri.ListPodSandboxStatsResponse(stats=await self._pods.of(pods))
