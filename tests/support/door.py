"""A door in front of agents that a test scripts: all in the test's own process, but behind real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from criw.config.common import AgentName
from criw.rpc.client import Channel
from criw.rpc.server import Servable
from criw_cri.forward import Forwarder
from criw_cri.instances import Instances
from criw_cri.merged import Merged
from criw_cri.routes import routes
from criw_proto.runtime import v1 as cri
from support.serving import serving

_BEHIND: Final[tuple[AgentName, ...]] = ("supervisor", "image")


class Supervisor(cri.RuntimeServiceBase):
    """`calls` are the ids it was asked about. A call sets `begun`, and is answered once the test lets it: `open`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def _called(self, what: str) -> None:
        self.calls.append(what)
        self.begun.set()
        await self.open.wait()

    async def stop_container(self, message: cri.StopContainerRequest) -> cri.StopContainerResponse:
        await self._called(message.container_id)
        return cri.StopContainerResponse()

    async def start_container(self, message: cri.StartContainerRequest) -> cri.StartContainerResponse:
        await self._called(message.container_id)
        return cri.StartContainerResponse()

    async def version(self, message: cri.VersionRequest) -> cri.VersionResponse:
        await self._called("version")
        return cri.VersionResponse(
            version="0.1.0", runtime_name="criw", runtime_version="0.0.9", runtime_api_version="v1"
        )

    async def status(self, message: cri.StatusRequest) -> cri.StatusResponse:
        await self._called("status")
        return cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=[cri.RuntimeCondition(type="RuntimeReady", status=True)]),
            info={"config": "{}"} if message.verbose else {},
            runtime_handlers=[cri.RuntimeHandler(name="runc")],
        )


class Doorway:
    """`client` talks to the door. Agents listen below `directory`, while the test has them."""

    def __init__(self, directory: Path, client: Channel) -> None:
        self.directory = directory
        self.client = client
        self.runtime = cri.RuntimeServiceStub(client, timeout=10)
        self.images = cri.ImageServiceStub(client, timeout=10)

    @contextlib.asynccontextmanager
    async def agent(self, name: AgentName, *services: Servable, instance: int = 0) -> AsyncIterator[None]:
        """An agent's instance; when the block is left, its connections break as those of a killed process."""
        async with serving(self.directory / name / f"{instance}.sock", *services):
            yield


@contextlib.asynccontextmanager
async def open_door(directory: Path) -> AsyncIterator[Doorway]:
    for agent in (*_BEHIND, "network"):
        (directory / agent).mkdir()
    instances = {agent: Instances(agent, directory / agent) for agent in _BEHIND}
    forwarder = Forwarder(routes(), instances)
    with contextlib.ExitStack() as open_channels:
        network = open_channels.enter_context(contextlib.closing(Channel(directory / "network" / "0.sock")))
        client = open_channels.enter_context(contextlib.closing(Channel(directory / "criw.sock")))
        for one in instances.values():
            open_channels.callback(one.close)
        async with serving(directory / "criw.sock", forwarder, Merged(forwarder, network)):
            yield Doorway(directory, client)
