"""Exec, Attach and PortForward: who may have which session. The streams process serves it."""

import asyncio
from pathlib import Path

from criw.errors import FailedPrecondition, InvalidArgument
from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.places import Places
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.peers.streams import Ends, Streams
from criw_supervisor.runtimes.bundle import Bundle
from criw_supervisor.runtimes.handler import task_of
from criw_supervisor.runtimes.handlers import Handlers


class Sessions:
    """`scratch` is a directory the streams process has for what a command needs while it starts."""

    def __init__(self, handlers: Handlers, places: Places, streams: Streams, scratch: Path) -> None:
        self._handlers = handlers
        self._places = places
        self._streams = streams
        self._scratch = scratch

    async def exec(self, container: Container, command: list[str], ends: Ends) -> str:
        """A URL for a session with a further command, under what the container is under.

        Raises FailedPrecondition if the container does not run.
        """
        _check_running(container, "run a command in")
        bundle = Bundle(self._places.bundle(container.id))
        process = await asyncio.to_thread(bundle.process, command, terminal=ends.terminal)
        handler = self._handlers.of_record(container.record.runtime)
        session = handler.session(task_of(container.record), process, scratch=self._scratch)
        return await self._streams.exec(container.id, ends, session)

    async def attach(self, container: Container, ends: Ends) -> str:
        """A URL for a session with the container's own streams, also before its start, so that nothing is missed.

        Raises FailedPrecondition if it has ended.
        """
        if container.record.state is not ContainerState.CREATED:
            _check_running(container, "attach to")
        if ends.terminal != container.config.tty:
            has = "has a terminal" if container.config.tty else "has no terminal"
            raise InvalidArgument(f"cannot attach to container {container.id}: it {has}; say so in tty")
        handler = self._handlers.of_record(container.record.runtime)
        return await self._streams.attach(container.id, ends, await handler.streams(task_of(container.record)))

    async def port_forward(self, pod: Pod, ports: list[int]) -> str:
        """A URL for connections to ports of the pod. Raises FailedPrecondition if it is not ready."""
        if not pod.ready:
            raise FailedPrecondition(f"cannot forward ports to pod sandbox {pod.id}: it is not ready")
        return await self._streams.port_forward(pod.id, pod.record.netns, ports)


def _check_running(container: Container, what: str) -> None:
    if not container.running:
        raise FailedPrecondition(f"cannot {what} container {container.id}: it is {container.record.state}")


def ends_of(message: cri.ExecRequest | cri.AttachRequest) -> Ends:
    """The streams that a request asks for. Raises InvalidArgument."""
    if not message.container_id:
        raise InvalidArgument("cannot open a session: container_id is missing")
    if message.tty and message.stderr:
        raise InvalidArgument("cannot open a session with tty and stderr: a terminal has one output; leave stderr out")
    if not (message.stdin or message.stdout or message.stderr):
        raise InvalidArgument("cannot open a session: it needs at least one of stdin, stdout and stderr")
    return Ends(message.stdin, message.stdout, message.stderr, message.tty)
