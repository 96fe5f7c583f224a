"""The calls about pod sandboxes."""

import asyncio
import json

from grpclib.const import Handler

from criw.ids import new_id
from criw.rpc.server import serialized
from criw_proto.runtime import v1 as cri
from criw_supervisor.face import Face
from criw_supervisor.ledger.index import list_reply
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.pods.pods import Pods
from criw_supervisor.pods.request import plan
from criw_supervisor.runtimes.bundle import Bundle


class PodsFace(Face):
    def __init__(self, ledger: Ledger, pods: Pods, *, cgroup_parent: str) -> None:
        self._ledger = ledger
        self._pods = pods
        self._cgroup_parent = cgroup_parent

    def answers(self) -> dict[str, Handler]:
        path = "/runtime.v1.RuntimeService/ListPodSandbox"
        return {**super().answers(), **serialized(path, cri.ListPodSandboxRequest, self._list)}

    async def run_pod_sandbox(self, message: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
        asked = plan(new_id(), message.config, message.runtime_handler, cgroup_parent=self._cgroup_parent)
        return cri.RunPodSandboxResponse(pod_sandbox_id=await self._pods.run(asked))

    async def stop_pod_sandbox(self, message: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
        if (pod := self._ledger.pods.find_or_none(message.pod_sandbox_id)) is not None:
            await self._pods.stop(pod)
        return cri.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, message: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
        if (pod := self._ledger.pods.find_or_none(message.pod_sandbox_id)) is not None:
            await self._pods.remove(pod)
        return cri.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, message: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse:
        pod = self._ledger.pods.find(message.pod_sandbox_id)
        info = {"info": await asyncio.to_thread(self._info, pod)} if message.verbose else {}
        return cri.PodSandboxStatusResponse(status=pod.status(), info=info)

    def _info(self, pod: Pod) -> str:
        infra = self._ledger.infra.get(pod.id)
        shared = {"pid": f"/proc/{infra.record.pid}/ns/pid"} if infra is not None else {}
        return json.dumps(
            {
                "pid": infra.record.pid if infra is not None else 0,
                "runtimeHandler": pod.record.runtime,
                "netns": pod.record.netns,
                "cgroup": pod.record.cgroup,
                "namespaces": pod.namespaces() | shared,
                "config": pod.config.to_dict(),
                "runtimeSpec": Bundle(self._ledger.places.bundle(pod.id)).read() if infra is not None else {},
            }
        )

    async def _list(self, message: cri.ListPodSandboxRequest) -> bytes:
        wanted = message.filter or cri.PodSandboxFilter()
        pods = self._ledger.pods.matching(wanted.id, wanted.label_selector)
        if wanted.state is not None:
            pods = [pod for pod in pods if pod.state == wanted.state.state]
        return list_reply(pods)
