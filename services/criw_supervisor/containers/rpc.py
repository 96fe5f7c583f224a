"""The calls about containers."""

import asyncio
import json

from grpclib.const import Handler

from criw.ids import new_id
from criw.rpc.server import serialized
from criw_proto.runtime import v1 as cri
from criw_supervisor.containers.containers import Containers
from criw_supervisor.containers.log import reopen
from criw_supervisor.containers.lookups import Lookups
from criw_supervisor.containers.request import plan
from criw_supervisor.face import Face
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.index import list_reply
from criw_supervisor.ledger.ledger import Ledger
from criw_supervisor.ledger.places import Places
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.handlers import Handlers


class ContainersFace(Face):
    def __init__(self, ledger: Ledger, handlers: Handlers, containers: Containers) -> None:
        self._ledger = ledger
        self._handlers = handlers
        self._containers = containers
        self._lookups = Lookups()

    def answers(self) -> dict[str, Handler]:
        path = "/runtime.v1.RuntimeService/ListContainers"
        return {**super().answers(), **serialized(path, cri.ListContainersRequest, self._list)}

    async def create_container(self, message: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
        pod = self._ledger.pods.find(message.pod_sandbox_id)
        container_id = await self._containers.create(pod, plan(new_id(), message.config, pod))
        return cri.CreateContainerResponse(container_id=container_id)

    async def start_container(self, message: cri.StartContainerRequest) -> cri.StartContainerResponse:
        await self._containers.start(self._ledger.containers.find(message.container_id))
        return cri.StartContainerResponse()

    async def stop_container(self, message: cri.StopContainerRequest) -> cri.StopContainerResponse:
        if (container := self._ledger.containers.find_or_none(message.container_id)) is not None:
            await self._containers.stop(container, grace_s=message.timeout)
        return cri.StopContainerResponse()

    async def remove_container(self, message: cri.RemoveContainerRequest) -> cri.RemoveContainerResponse:
        if (container := self._ledger.containers.find_or_none(message.container_id)) is not None:
            await self._containers.remove(container)
        return cri.RemoveContainerResponse()

    async def container_status(self, message: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
        container = self._ledger.containers.find(message.container_id)
        info = {}
        if message.verbose:
            info = {"info": await asyncio.to_thread(_info, container, self._ledger.places)}
        return cri.ContainerStatusResponse(status=container.status(), info=info)

    async def _list(self, message: cri.ListContainersRequest) -> bytes:
        wanted = message.filter or cri.ContainerFilter()
        containers = self._ledger.containers.matching(wanted.id, wanted.label_selector)
        if wanted.pod_sandbox_id:
            containers = [one for one in containers if one.record.pod_id.startswith(wanted.pod_sandbox_id)]
        if wanted.state is not None:
            containers = [one for one in containers if one.state == wanted.state.state]
        return list_reply(containers)

    async def reopen_container_log(self, message: cri.ReopenContainerLogRequest) -> cri.ReopenContainerLogResponse:
        container = self._ledger.containers.find(message.container_id)
        await reopen(container, ledger=self._ledger, handlers=self._handlers, lookups=self._lookups)
        return cri.ReopenContainerLogResponse()

    async def update_container_resources(
        self, message: cri.UpdateContainerResourcesRequest
    ) -> cri.UpdateContainerResourcesResponse:
        container = self._ledger.containers.find(message.container_id)
        if message.linux is not None:
            await self._containers.update(container, message.linux)
        return cri.UpdateContainerResourcesResponse()


def _info(container: Container, places: Places) -> str:
    linux = container.config.linux
    security = linux.security_context if linux is not None else None
    return json.dumps(
        {
            "sandboxID": container.record.pod_id,
            "pid": container.record.pid,
            "privileged": security.privileged if security is not None else False,
            "runtimeHandler": container.record.runtime,
            "config": container.config.to_dict(),
            "runtimeSpec": Bundle(places.bundle(container.id)).read(),
        }
    )
