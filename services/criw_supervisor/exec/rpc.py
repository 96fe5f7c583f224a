"""The calls that run further commands."""

from criw_proto.runtime import v1 as cri
from criw_supervisor.exec.sync import Execs
from criw_supervisor.face import Face
from criw_supervisor.ledger.ledger import Ledger


class ExecFace(Face):
    def __init__(self, ledger: Ledger, execs: Execs) -> None:
        self._ledger = ledger
        self._execs = execs

    async def exec_sync(self, message: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
        container = self._ledger.containers.find(message.container_id)
        result = await self._execs.run_sync(container, message.cmd, timeout_s=message.timeout)
        return cri.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code)
