"""The image agent with code in it that is not its own, as after an attack: it tries what it must not get.

A program for test_privileges.py. It prints what came of each attempt, as JSON, before it serves.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path

from criw.config.common import AgentName
from criw.config.image import ImageSettings
from criw.errors import Fault
from criw.ids import new_id
from criw.rpc.client import Channel, ask
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw_image.__main__ import image_agent
from criw_proto.criw.network import v1 as network
from criw_proto.criw.storage import v1 as storage
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthStub
from criw_proto.runtime import v1 as cri

LAYER = "sha256:" + 64 * "0"


class Attempts:
    """What was tried, and the fault or error it met; "done" if it met none."""

    def __init__(self, settings: ImageSettings) -> None:
        self.outcomes: dict[str, str] = {}
        self._settings = settings

    async def asking(self, what: str, agent: AgentName, question: Callable[[Channel], Awaitable[object]]) -> None:
        with contextlib.closing(Channel(self._settings.socket(agent))) as channel:
            try:
                await question(channel)
            except Fault as err:
                self.outcomes[what] = f"{type(err).__name__}: {err}"
            else:
                self.outcomes[what] = "done"

    def doing(self, what: str, deed: Callable[[], object]) -> None:
        try:
            deed()
        except OSError as err:
            self.outcomes[what] = type(err).__name__
        else:
            self.outcomes[what] = "done"

    async def unpacking(self, what: str, blob: str) -> None:
        request = storage.UnpackLayerRequest(image_id="evil", diff_id=LAYER, blob=blob)
        await self.asking(what, "storage", lambda channel: ask(storage.LayersStub(channel).unpack_layer, request))


async def ask_the_others(attempts: Attempts) -> None:
    pod = new_id()
    await attempts.asking(
        "supervisor list",
        "supervisor",
        lambda channel: ask(cri.RuntimeServiceStub(channel).list_pod_sandbox, cri.ListPodSandboxRequest()),
    )
    stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
    await attempts.asking(
        "supervisor stop", "supervisor", lambda channel: ask(cri.RuntimeServiceStub(channel).stop_pod_sandbox, stop)
    )
    detach = network.DetachRequest(pod_id=pod)
    await attempts.asking("network", "network", lambda channel: ask(network.NetworkStub(channel).detach, detach))
    await attempts.asking(
        "network status",
        "network",
        lambda channel: ask(network.NetworkStatusStub(channel).status, network.StatusRequest()),
    )
    remove = storage.RemoveRootfsRequest(rootfs_id=pod)
    await attempts.asking("rootfs", "storage", lambda channel: ask(storage.RootfsStub(channel).remove_rootfs, remove))
    await attempts.asking(
        "layers", "storage", lambda channel: ask(storage.LayersStub(channel).list_images, storage.ListImagesRequest())
    )
    await attempts.asking(
        "door", "cri", lambda channel: ask(cri.RuntimeServiceStub(channel).version, cri.VersionRequest())
    )
    await attempts.asking("health", "supervisor", lambda channel: ask(HealthStub(channel).check, HealthCheckRequest()))


async def have_storage_read(attempts: Attempts, blobs: Path, secret: Path) -> None:
    """`secret` is a file of root's on the same file system."""
    (blobs / "link").symlink_to(secret)
    (blobs / "way").symlink_to(secret.parent)
    attempts.doing("hard link", lambda: (blobs / "hard").hardlink_to(secret))
    await attempts.unpacking("blob that is a link", "link")
    await attempts.unpacking("blob behind a link", f"way/{secret.name}")
    await attempts.unpacking("blob by its path", str(secret))
    await attempts.unpacking("blob above", f"../../../{secret.name}")
    await attempts.unpacking("blob of storage's", "../../storage/storage.db")
    for name in ("link", "way"):
        (blobs / name).unlink()
    (blobs / "hard").unlink(missing_ok=True)


def try_the_kernel(attempts: Attempts, settings: ImageSettings, secret: Path, supervisor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def mount() -> None:
        if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None):
            raise OSError(ctypes.get_errno(), "mount")

    attempts.doing("read what is root's", lambda: secret.read_bytes())
    attempts.doing("read another agent's state", lambda: list(settings.state_dir("storage").iterdir()))
    attempts.doing("write in the crew's directory", lambda: (settings.run / "evil").touch())
    attempts.doing("become root", lambda: os.setuid(0))
    attempts.doing("signal the supervisor", lambda: os.kill(supervisor, signal.SIGTERM))
    attempts.doing("mount", mount)
    attempts.doing("open a raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))


@contextlib.asynccontextmanager
async def build(context: Context[ImageSettings]) -> AsyncIterator[Collection[Servable]]:
    """The real agent's, and then the attack, in its process and on its event loop."""
    settings, secret, supervisor = context.config, Path(os.environ["SECRET"]), int(os.environ["SUPERVISOR"])
    async with image_agent(context) as services:
        attempts = Attempts(settings)
        await ask_the_others(attempts)
        await have_storage_read(attempts, settings.blobs, secret)
        await asyncio.to_thread(try_the_kernel, attempts, settings, secret, supervisor)
        Path(os.environ["OUTCOMES"]).write_text(json.dumps(attempts.outcomes))
        yield services


if __name__ == "__main__":
    run_service("image", ImageSettings, build, sys.argv[1:])
