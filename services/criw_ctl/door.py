"""The way to the crew: the sockets of the door and of single agents, checked before a call waits for them."""

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from criw.config.common import AgentName, Common
from criw.errors import PermissionDenied, Unavailable
from criw.rpc.client import Channel
from criw_proto.runtime.v1 import ImageServiceStub, RuntimeServiceStub


@dataclass(frozen=True)
class Door:
    """The CRI as the crew serves it."""

    config: Common
    runtime: RuntimeServiceStub
    images: ImageServiceStub


def check_socket(path: Path) -> None:
    """Raises Unavailable if nobody listens at `path`, PermissionDenied if we may not connect."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as err:
            raise Unavailable(
                f"cannot reach the crew: nothing listens on {path}; start it with criwctl up, "
                "or name its configuration with --config"
            ) from err
        except PermissionError as err:
            raise PermissionDenied(
                f"cannot use {path}: permission denied; become root or a member of the socket's group"
            ) from err


@contextlib.asynccontextmanager
async def channel_to(config: Common, agent: AgentName) -> AsyncIterator[Channel]:
    """A connection to an agent that runs. Raises as `check_socket`."""
    path = config.socket(agent)
    check_socket(path)
    channel = Channel(path)
    try:
        yield channel
    finally:
        channel.close()


@contextlib.asynccontextmanager
async def open_door(config: Common) -> AsyncIterator[Door]:
    """A connection to the door. Raises as `check_socket`."""
    async with channel_to(config, "cri") as channel:
        yield Door(config, RuntimeServiceStub(channel), ImageServiceStub(channel))
