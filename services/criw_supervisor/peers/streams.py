"""The streams process: sessions of exec, attach and port-forward, which are its own once they are described."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from criw.rpc.client import call
from criw_proto.criw.streams.v1 import Attachment, Command, Forwarding, OpenRequest, StreamsStub
from criw_proto.criw.streams.v1 import Ends as EndsMessage
from criw_supervisor.runtimes.handler import AttachSession, ExecSession

_AGENT: Final = "criw-streams"
_LIMIT_S: Final = 10.0


@dataclass(frozen=True)
class Ends:
    """The streams a client is promised."""

    stdin: bool
    stdout: bool
    stderr: bool
    terminal: bool


class Streams:
    """Its methods give a URL, good for one use within a minute.

    They raise the agent's faults (ResourceExhausted with too many unused URLs), and Unavailable while it is away.
    """

    def __init__(self, stub: StreamsStub) -> None:
        self._stub = stub

    async def exec(self, container_id: str, ends: Ends, session: ExecSession) -> str:
        """For a command in a container."""
        command = Command(
            ends=_message(ends),
            container_id=container_id,
            start=list(session.start),
            process_file=str(session.process_file),
            process=session.process,
            pid_file=str(session.pid_file),
            console_socket=str(session.console_socket or ""),
            oom_score_adj=session.oom_score_adj,
        )
        return await self._open(OpenRequest(exec=command))

    async def attach(self, container_id: str, ends: Ends, session: AttachSession) -> str:
        """For the streams of a container."""
        attachment = Attachment(
            ends=_message(ends), container_id=container_id, socket=str(session.socket), control=str(session.control)
        )
        return await self._open(OpenRequest(attach=attachment))

    async def port_forward(self, pod_id: str, netns: str, ports: Sequence[int]) -> str:
        """For ports in the network namespace at `netns`, or the host's ("")."""
        return await self._open(OpenRequest(port_forward=Forwarding(pod_id=pod_id, netns=netns, ports=list(ports))))

    async def _open(self, request: OpenRequest) -> str:
        return (await call(self._stub.open, request, timeout_s=_LIMIT_S, agent=_AGENT)).url


def _message(ends: Ends) -> EndsMessage:
    return EndsMessage(stdin=ends.stdin, stdout=ends.stdout, stderr=ends.stderr, terminal=ends.terminal)
