"""The other agents as the supervisor sees them, in memory behind a real socket: for tests that need one to fail.

What they promise is held to the real agents by the contract suites in tests/unit/criw_supervisor/peers.
"""

import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grpclib.const import Handler

from criw.errors import Fault, NotFound
from criw.rpc.client import Channel
from criw_proto.criw.image.v1 import ImagesBase, ImagesStub, InspectRequest, InspectResponse
from criw_proto.criw.network.v1 import (
    AttachRequest,
    AttachResponse,
    DetachRequest,
    DetachResponse,
    InterfaceStats,
    ListRequest,
    ListResponse,
    NetworkBase,
    NetworkStub,
    PodStats,
    StatsRequest,
    StatsResponse,
    UpdateConfigRequest,
    UpdateConfigResponse,
)
from criw_proto.criw.storage.v1 import (
    CreateRootfsRequest,
    CreateRootfsResponse,
    DiskBase,
    DiskStub,
    DiskUsage,
    ListRootfsRequest,
    ListRootfsResponse,
    RemoveRootfsRequest,
    RemoveRootfsResponse,
    RootfsBase,
    RootfsStub,
    RootfsUsage,
    UsageRequest,
    UsageResponse,
)
from criw_supervisor.peers.images import Images
from criw_supervisor.peers.network import Network
from criw_supervisor.peers.storage import Storage
from support.serving import serving

IMAGE: Final = f"sha256:{'1' * 64}"
NAME: Final = "registry.test/busybox:latest"
REPO_DIGEST: Final = f"registry.test/busybox@sha256:{'d' * 64}"
IMAGE_CONFIG: Final = json.dumps({"config": {"Cmd": ["sh"]}}).encode()


class Faults:
    """`fail[method]` is raised by the method's next call, before it does anything (`attached`: after it has)."""

    def __init__(self) -> None:
        self.fail: dict[str, Fault] = {}

    def may_fail(self, method: str) -> None:
        if (fault := self.fail.pop(method, None)) is not None:
            raise fault


class FakeImages(Faults, ImagesBase):
    """Has one image: `IMAGE`, called `NAME`."""

    async def inspect(self, message: InspectRequest) -> InspectResponse:
        self.may_fail("inspect")
        if message.image not in {IMAGE, NAME, REPO_DIGEST}:
            raise NotFound(f"cannot find image {message.image}: it is not on this node; pull it first")
        return InspectResponse(
            id=IMAGE, repo_tags=[NAME], repo_digests=[REPO_DIGEST], config=IMAGE_CONFIG, size_bytes=1
        )


class FakeStorage(Faults, RootfsBase, DiskBase):
    """Root filesystems are directories below `directory`."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self.rootfs: dict[str, str] = {}  # rootfs id -> image id

    def __mapping__(self) -> dict[str, Handler]:
        return {**RootfsBase.__mapping__(self), **DiskBase.__mapping__(self)}

    async def create_rootfs(self, message: CreateRootfsRequest) -> CreateRootfsResponse:
        self.may_fail("create_rootfs")
        if message.image_id != IMAGE:
            raise NotFound(f"cannot make a root filesystem: there is no image {message.image_id}")
        path = self._directory / message.rootfs_id
        path.mkdir(parents=True, exist_ok=True)
        self.rootfs[message.rootfs_id] = message.image_id
        self.may_fail("created_rootfs")
        return CreateRootfsResponse(path=str(path))

    async def remove_rootfs(self, message: RemoveRootfsRequest) -> RemoveRootfsResponse:
        self.may_fail("remove_rootfs")
        if self.rootfs.pop(message.rootfs_id, None) is not None:
            (self._directory / message.rootfs_id).rmdir()
        return RemoveRootfsResponse()

    async def list_rootfs(self, message: ListRootfsRequest) -> ListRootfsResponse:
        self.may_fail("list_rootfs")
        return ListRootfsResponse(rootfs_ids=sorted(self.rootfs))

    async def usage(self, message: UsageRequest) -> UsageResponse:
        self.may_fail("usage")
        measured = [RootfsUsage(rootfs_id=one, writable=DiskUsage(timestamp_ns=1)) for one in sorted(self.rootfs)]
        return UsageResponse(mountpoint=str(self._directory.parent), images=DiskUsage(timestamp_ns=1), rootfs=measured)


class FakeNetwork(Faults, NetworkBase):
    def __init__(self) -> None:
        super().__init__()
        self.attached: dict[str, AttachResponse] = {}
        self.requests: dict[str, AttachRequest] = {}
        self.ranges = ["10.88.0.0/16"]
        self.given = 0

    async def attach(self, message: AttachRequest) -> AttachResponse:
        self.may_fail("attach")
        self.requests[message.pod_id] = message
        self.given += 1
        ips = [str(ipaddress.ip_network(one)[self.given + 1]) for one in self.ranges]
        made = AttachResponse(netns_path=f"/run/netns/{message.pod_id}", ips=ips)
        answer = self.attached.setdefault(message.pod_id, made)
        self.may_fail("attached")
        return answer

    async def detach(self, message: DetachRequest) -> DetachResponse:
        self.may_fail("detach")
        self.attached.pop(message.pod_id, None)
        return DetachResponse()

    async def list(self, message: ListRequest) -> ListResponse:
        self.may_fail("list")
        return ListResponse(pod_ids=sorted(self.attached))

    async def update_config(self, message: UpdateConfigRequest) -> UpdateConfigResponse:
        self.may_fail("update_config")
        self.ranges = message.pod_cidrs
        return UpdateConfigResponse()

    async def stats(self, message: StatsRequest) -> StatsResponse:
        self.may_fail("stats")
        found = [one for one in self.attached if one in message.pod_ids]
        return StatsResponse(
            pods=[PodStats(pod_id=one, timestamp_ns=1, interfaces=[InterfaceStats(name="eth0")]) for one in found]
        )


@dataclass
class FakeAgents:
    """The fakes, and the peers that speak to them."""

    images: FakeImages
    storage: FakeStorage
    network: FakeNetwork
    ask_images: Images
    ask_storage: Storage
    ask_network: Network


@contextlib.asynccontextmanager
async def running_fakes(directory: Path) -> AsyncIterator[FakeAgents]:
    """Serve all three on one socket in `directory`."""
    images, storage, network = FakeImages(), FakeStorage(directory / "rootfs"), FakeNetwork()
    socket = directory / "agents.sock"
    async with serving(socket, images, storage, network):
        with contextlib.closing(Channel(socket)) as channel:
            yield FakeAgents(
                images,
                storage,
                network,
                Images(ImagesStub(channel)),
                Storage(RootfsStub(channel), DiskStub(channel)),
                Network(NetworkStub(channel)),
            )
