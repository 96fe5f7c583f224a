"""runtime.v1.RuntimeService as the supervisor answers it: requests translated, nothing decided.

Calls that are not here yet answer UNIMPLEMENTED. The door adds the other agents' part to Status.
"""

import asyncio
import json
from collections.abc import Mapping

from grpclib.const import Handler as RpcHandler

from criw import __version__
from criw.config.supervisor import SupervisorSection
from criw.errors import InvalidArgument
from criw.rpc.client import call
from criw.rpc.server import serialized
from criw_proto.criw.network.v1 import NetworkStub, UpdateConfigRequest
from criw_proto.runtime import v1 as cri
from criw_supervisor import logs
from criw_supervisor.containers import Containers, read_spec
from criw_supervisor.exec import Execs
from criw_supervisor.index import list_reply
from criw_supervisor.pod import Container, Pod
from criw_supervisor.pods import Pods
from criw_supervisor.runtime import Handlers
from criw_supervisor.state import State
from criw_supervisor.stats import Stats
from criw_supervisor.update import Updates

RUNTIME_NAME = "criw"
KUBELET_API = "0.1.0"
_SERVICE = "/runtime.v1.RuntimeService/"


class RuntimeRpc(cri.RuntimeServiceBase):
    def __init__(
        self, section: SupervisorSection, state: State, handlers: Handlers, pods: Pods, containers: Containers,
        execs: Execs, updates: Updates, stats: Stats, network: NetworkStub,
    ) -> None:  # fmt: skip
        self._section = section
        self._state = state
        self._handlers = handlers
        self._pods = pods
        self._containers = containers
        self._execs = execs
        self._updates = updates
        self._stats = stats
        self._network = network

    def __mapping__(self) -> dict[str, RpcHandler]:
        return {
            **super().__mapping__(),
            **serialized(f"{_SERVICE}ListPodSandbox", cri.ListPodSandboxRequest, self._pod_list),
            **serialized(f"{_SERVICE}ListContainers", cri.ListContainersRequest, self._container_list),
        }

    # --- the runtime

    async def version(self, message: cri.VersionRequest) -> cri.VersionResponse:
        return cri.VersionResponse(
            version=KUBELET_API, runtime_name=RUNTIME_NAME, runtime_version=__version__, runtime_api_version="v1"
        )

    async def status(self, message: cri.StatusRequest) -> cri.StatusResponse:
        ready = bool(self._handlers.default) and self._handlers.default in self._handlers.working
        why = "; ".join(f"{name}: {text}" for name, text in self._handlers.broken.items())
        condition = cri.RuntimeCondition(
            type="RuntimeReady",
            status=ready,
            reason="" if ready else "NoRuntimeHandlerWorks",
            message="" if ready else f"no OCI runtime works on this host ({why}); install runc or crun",
        )
        names = ["", *self._handlers.working] if ready else list(self._handlers.working)
        return cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=[condition]),
            runtime_handlers=[cri.RuntimeHandler(name=name, features=cri.RuntimeHandlerFeatures()) for name in names],
            features=cri.RuntimeFeatures(supplemental_groups_policy=True),
            info=self._verbose() if message.verbose else {},
        )

    def _verbose(self) -> dict[str, str]:
        config = self._section.model_dump(mode="json") | {"stateDir": str(self._state.places.run)}
        return {
            "config": json.dumps(config),
            "handlers": json.dumps({"default": self._handlers.default, "broken": self._handlers.broken}),
        }

    async def runtime_config(self, message: cri.RuntimeConfigRequest) -> cri.RuntimeConfigResponse:
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CgroupDriver.CGROUPFS))

    async def update_runtime_config(self, message: cri.UpdateRuntimeConfigRequest) -> cri.UpdateRuntimeConfigResponse:
        config = message.runtime_config
        text = config.network_config.pod_cidr if config is not None and config.network_config is not None else ""
        if cidrs := [part.strip() for part in text.split(",") if part.strip()]:
            await call(self._network.update_config, UpdateConfigRequest(pod_cidrs=cidrs), agent="criw-network")
        return cri.UpdateRuntimeConfigResponse()

    # --- pod sandboxes

    async def run_pod_sandbox(self, message: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
        if message.config is None:
            raise InvalidArgument("cannot run the pod sandbox: config is missing")
        return cri.RunPodSandboxResponse(pod_sandbox_id=await self._pods.run(message.config, message.runtime_handler))

    async def stop_pod_sandbox(self, message: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
        if (pod := self._state.pods.find_or_none(message.pod_sandbox_id)) is not None:
            await self._pods.stop(pod)
        return cri.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, message: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
        if (pod := self._state.pods.find_or_none(message.pod_sandbox_id)) is not None:
            await self._pods.remove(pod)
        return cri.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, message: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse:
        pod = self._state.pods.find(message.pod_sandbox_id)
        info = {"info": await asyncio.to_thread(self._pod_info, pod)} if message.verbose else {}
        return cri.PodSandboxStatusResponse(status=pod.status(), info=info)

    def _pod_info(self, pod: Pod) -> str:
        infra = self._state.infra.get(pod.id)
        return json.dumps(
            {
                "pid": infra.record.pid if infra is not None else 0,
                "runtimeHandler": pod.record.runtime,
                "netns": pod.record.netns,
                "cgroup": pod.record.cgroup,
                "namespaces": pod.namespaces(infra.record if infra is not None else None),
                "config": pod.config.to_dict(),
                "runtimeSpec": read_spec(infra) if infra is not None else {},
            }
        )

    async def _pod_list(self, message: cri.ListPodSandboxRequest) -> bytes:
        wanted = message.filter or cri.PodSandboxFilter()
        pods = self._state.pods.matching(wanted.id, wanted.label_selector)
        if wanted.state is not None:
            pods = [pod for pod in pods if pod.state == wanted.state.state]
        return list_reply(pods)

    # --- containers

    async def create_container(self, message: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
        if message.config is None:
            raise InvalidArgument("cannot create the container: config is missing")
        container_id = await self._containers.create(message.pod_sandbox_id, message.config)
        return cri.CreateContainerResponse(container_id=container_id)

    async def start_container(self, message: cri.StartContainerRequest) -> cri.StartContainerResponse:
        await self._containers.start(self._state.containers.find(message.container_id))
        return cri.StartContainerResponse()

    async def stop_container(self, message: cri.StopContainerRequest) -> cri.StopContainerResponse:
        if (container := self._state.containers.find_or_none(message.container_id)) is not None:
            await self._containers.stop(container, grace_s=message.timeout)
        return cri.StopContainerResponse()

    async def remove_container(self, message: cri.RemoveContainerRequest) -> cri.RemoveContainerResponse:
        if (container := self._state.containers.find_or_none(message.container_id)) is not None:
            await self._containers.remove(container)
        return cri.RemoveContainerResponse()

    async def container_status(self, message: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
        container = self._state.containers.find(message.container_id)
        info = {"info": await asyncio.to_thread(_container_info, container)} if message.verbose else {}
        return cri.ContainerStatusResponse(status=container.status(), info=info)

    async def _container_list(self, message: cri.ListContainersRequest) -> bytes:
        wanted = message.filter or cri.ContainerFilter()
        containers = self._state.containers.matching(wanted.id, wanted.label_selector)
        if wanted.pod_sandbox_id:
            containers = [one for one in containers if one.record.pod_id.startswith(wanted.pod_sandbox_id)]
        if wanted.state is not None:
            containers = [one for one in containers if one.state == wanted.state.state]
        return list_reply(containers)

    async def exec_sync(self, message: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
        container = self._state.containers.find(message.container_id)
        result = await self._execs.run_sync(container, message.cmd, timeout_s=message.timeout)
        return cri.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code)

    async def reopen_container_log(self, message: cri.ReopenContainerLogRequest) -> cri.ReopenContainerLogResponse:
        await logs.reopen(self._state.containers.find(message.container_id), self._state.container_locks)
        return cri.ReopenContainerLogResponse()

    async def update_container_resources(
        self, message: cri.UpdateContainerResourcesRequest
    ) -> cri.UpdateContainerResourcesResponse:
        container = self._state.containers.find(message.container_id)
        if message.linux is not None:
            await self._updates.update(container, message.linux)
        return cri.UpdateContainerResourcesResponse()

    # --- statistics

    async def container_stats(self, message: cri.ContainerStatsRequest) -> cri.ContainerStatsResponse:
        container = self._state.containers.find(message.container_id)
        return cri.ContainerStatsResponse(stats=(await self._stats.of_containers([container]))[0])

    async def list_container_stats(self, message: cri.ListContainerStatsRequest) -> cri.ListContainerStatsResponse:
        wanted = message.filter or cri.ContainerStatsFilter()
        containers = self._state.containers.matching(wanted.id, wanted.label_selector)
        if wanted.pod_sandbox_id:
            containers = [one for one in containers if one.record.pod_id.startswith(wanted.pod_sandbox_id)]
        return cri.ListContainerStatsResponse(stats=await self._stats.of_containers(containers))

    async def pod_sandbox_stats(self, message: cri.PodSandboxStatsRequest) -> cri.PodSandboxStatsResponse:
        pod = self._state.pods.find(message.pod_sandbox_id)
        return cri.PodSandboxStatsResponse(stats=(await self._stats.of_pods([pod]))[0])

    async def list_pod_sandbox_stats(self, message: cri.ListPodSandboxStatsRequest) -> cri.ListPodSandboxStatsResponse:
        wanted = message.filter or cri.PodSandboxStatsFilter()
        pods = self._state.pods.matching(wanted.id, wanted.label_selector)
        return cri.ListPodSandboxStatsResponse(stats=await self._stats.of_pods(pods))


def _container_info(container: Container) -> str:
    spec: Mapping[str, object] = read_spec(container)
    linux = container.config.linux
    security = linux.security_context if linux is not None else None
    return json.dumps(
        {
            "sandboxID": container.record.pod_id,
            "pid": container.record.pid,
            "privileged": security.privileged if security is not None else False,
            "runtimeHandler": container.record.runtime,
            "config": container.config.to_dict(),
            "runtimeSpec": spec,
        }
    )
