"""The calls that run further commands, and those that open sessions."""

from criw.errors import InvalidArgument
from criw_proto.runtime import v1 as cri
from criw_supervisor.exec.sessions import Sessions, ends_of
from criw_supervisor.exec.sync import Execs
from criw_supervisor.face import Face
from criw_supervisor.ledger.ledger import Ledger


class ExecFace(Face):
    def __init__(self, ledger: Ledger, execs: Execs, sessions: Sessions) -> None:
        self._ledger = ledger
        self._execs = execs
        self._sessions = sessions

    async def exec_sync(self, message: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
        container = self._ledger.containers.find(message.container_id)
        result = await self._execs.run_sync(container, message.cmd, timeout_s=message.timeout)
        return cri.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code)

    async def exec(self, message: cri.ExecRequest) -> cri.ExecResponse:
        ends = ends_of(message)
        container = self._ledger.containers.find(message.container_id)
        if not message.cmd:
            raise InvalidArgument(f"cannot run a command in container {container.id}: cmd is empty")
        return cri.ExecResponse(url=await self._sessions.exec(container, message.cmd, ends))

    async def attach(self, message: cri.AttachRequest) -> cri.AttachResponse:
        ends = ends_of(message)
        container = self._ledger.containers.find(message.container_id)
        return cri.AttachResponse(url=await self._sessions.attach(container, ends))

    async def port_forward(self, message: cri.PortForwardRequest) -> cri.PortForwardResponse:
        if not message.pod_sandbox_id:
            raise InvalidArgument("cannot forward ports: pod_sandbox_id is missing")
        pod = self._ledger.pods.find(message.pod_sandbox_id)
        return cri.PortForwardResponse(url=await self._sessions.port_forward(pod, message.port))
