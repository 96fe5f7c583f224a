"""Exec and attach: asks the crew for a session, and joins it to our terminal or our plain descriptors."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from criw.errors import FailedPrecondition, Unimplemented
from criw.rpc.client import Method, ask
from criw_ctl.door import Door
from criw_ctl.interruptions import Interruption, interruptions, unless
from criw_ctl.names import name_of, take_inventory
from criw_ctl.streams import PROTOCOL, Session, Streams, connected
from criw_ctl.terminal import DetachKeys, check_input, raw, window
from criw_proto.runtime.v1 import (
    AttachRequest,
    AttachResponse,
    ContainerStatusRequest,
    ExecRequest,
    ExecResponse,
    ExecSyncRequest,
    ExecSyncResponse,
    PortForwardRequest,
    PortForwardResponse,
)

A = TypeVar("A", AttachResponse, ExecResponse, PortForwardResponse)
_OURS: Final = Streams(stdin=0, stdout=1, stderr=2)


@dataclass(frozen=True)
class Shape:
    """Which streams a session has besides its output; with a terminal, stderr is part of that."""

    stdin: bool
    tty: bool

    def streams(self) -> Streams:
        """Of our own, those it is joined to."""
        return Streams(_OURS.stdin if self.stdin else None, _OURS.stdout, None if self.tty else _OURS.stderr)


async def url_of(method: Method[A], request: AttachRequest | ExecRequest | PortForwardRequest) -> str:
    """Where the session waits for us, for a minute and once. Raises what the crew answers."""
    try:
        return (await ask(method, request, timeout_s=30.0)).url
    except Unimplemented as err:
        raise Unimplemented(
            f"{err}; upgrade the crew, or run a command that needs no input with criwctl exec --sync"
        ) from err


async def execute(door: Door, name: str, command: Sequence[str], shape: Shape) -> int:
    """Run a command in a container, joined to our stdin if the shape has it; its exit code.

    Raises Detached, Interrupted, NotRun.
    """
    if shape.stdin and shape.tty:
        check_input(0, instead="give -i without -t for input from a pipe or a file")
    with interruptions() as interrupted:
        found = (await take_inventory(door)).target(name)
        return await run_command(door, found.id, command, shape.streams(), interrupted, tty=shape.tty)


async def run_command(
    door: Door,
    container_id: str,
    command: Sequence[str],
    streams: Streams,
    interrupted: Interruption,
    *,
    tty: bool = False,
) -> int:
    """Run a command in a container with these streams; its exit code. Raises as `execute`."""
    request = ExecRequest(
        container_id=container_id,
        cmd=list(command),
        tty=tty,
        stdin=streams.stdin is not None,
        stdout=streams.stdout is not None,
        stderr=streams.stderr is not None,
    )
    url = await unless(interrupted, url_of(door.runtime.exec, request))
    async with connected(url, PROTOCOL) as websocket:
        session = Session(websocket, streams)
        return await unless(interrupted, join(session, Shape(streams.stdin is not None, tty), detachable=True))


async def execute_sync(door: Door, name: str, command: Sequence[str]) -> ExecSyncResponse:
    """Run a command without input or streams; what it wrote, which the crew limits, when it has ended."""
    found = (await take_inventory(door)).target(name)
    request = ExecSyncRequest(container_id=found.id, cmd=list(command))
    return await ask(door.runtime.exec_sync, request, timeout_s=None)


async def join(session: Session, shape: Shape, *, detachable: bool) -> int:
    """Run a session to its end; with a terminal of its own, ours is raw meanwhile and its size is followed.

    Raises Detached, NotRun.
    """
    if not shape.tty:
        return await session.run()
    with window() as ours, raw(0) if shape.stdin else contextlib.nullcontext():
        return await session.run(window=ours, keys=DetachKeys() if detachable and shape.stdin else None)


async def attach(door: Door, name: str, *, stdin: bool | None) -> None:
    """Show what a container writes from now on until it ends; type into it if it has stdin and `stdin` is not False.

    Raises Detached, Interrupted, NotRun; FailedPrecondition if `stdin` is True and the container has none.
    """
    with interruptions() as interrupted:
        found = (await take_inventory(door)).target(name)
        made = await shape_of(door, found.id)
        if stdin and not made.stdin:
            raise FailedPrecondition(
                f"cannot type into {name_of(found)}: it was made without stdin; attach to it without -i"
            )
        shape = Shape(stdin=made.stdin and stdin is not False, tty=made.tty)
        if shape.stdin and shape.tty:
            check_input(0, instead="give --no-stdin to see the output only")
        async with attached(door, found.id, shape) as session:
            await unless(interrupted, join(session, shape, detachable=True))


@contextlib.asynccontextmanager
async def attached(door: Door, container_id: str, shape: Shape) -> AsyncIterator[Session]:
    """A session that has all output of a container from now on."""
    request = AttachRequest(
        container_id=container_id, stdin=shape.stdin, tty=shape.tty, stdout=True, stderr=not shape.tty
    )
    url = await url_of(door.runtime.attach, request)
    async with connected(url, PROTOCOL) as websocket:
        session = Session(websocket, shape.streams())
        await session.ready()
        yield session


async def shape_of(door: Door, container_id: str) -> Shape:
    """What the container was made with."""
    reply = await ask(door.runtime.container_status, ContainerStatusRequest(container_id=container_id, verbose=True))
    config = json.loads(reply.info.get("info", "{}")).get("config", {})
    return Shape(stdin=bool(config.get("stdin")), tty=bool(config.get("tty")))
