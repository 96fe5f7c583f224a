"""runtime.v1.RuntimeService as the supervisor answers it: what it tells of itself, and the calls of its rooms.

Calls that are not here yet answer UNIMPLEMENTED. The door adds the other agents' part to Status.
"""

import json
from collections.abc import Mapping, Sequence

from grpclib.const import Handler

from criw import __version__
from criw.config.supervisor import SupervisorSection
from criw_proto.runtime import v1 as cri
from criw_supervisor.face import Face
from criw_supervisor.ledger.places import Places
from criw_supervisor.peers.network import Network
from criw_supervisor.runtimes.handlers import Handlers

RUNTIME_NAME = "criw"
KUBELET_API = "0.1.0"
_TOLD = 5  # of what is not finished; all of it is in the verbose answer


class RuntimeRpc(cri.RuntimeServiceBase):
    def __init__(
        self, section: SupervisorSection, places: Places, handlers: Handlers, network: Network, faces: Sequence[Face],
        failed: Mapping[str, str],
    ) -> None:  # fmt: skip
        """`failed` says why something could not be undone or given back yet, by what that is."""
        self._section = section
        self._places = places
        self._handlers = handlers
        self._network = network
        self._faces = faces
        self._failed = failed

    def __mapping__(self) -> dict[str, Handler]:
        mapping = super().__mapping__()
        for face in self._faces:
            mapping |= face.answers()
        return mapping

    async def version(self, message: cri.VersionRequest) -> cri.VersionResponse:
        return cri.VersionResponse(
            version=KUBELET_API, runtime_name=RUNTIME_NAME, runtime_version=__version__, runtime_api_version="v1"
        )

    async def status(self, message: cri.StatusRequest) -> cri.StatusResponse:
        ready = bool(self._handlers.default) and self._handlers.default in self._handlers.working
        why = "; ".join(f"{name}: {text}" for name, text in self._handlers.broken.items())
        condition = cri.RuntimeCondition(
            type="RuntimeReady",
            status=ready,
            reason="" if ready else "NoRuntimeHandlerWorks",
            message="" if ready else f"no OCI runtime works on this host ({why}); install runc or crun",
        )
        conditions = [condition]
        if self._failed:
            told = "; ".join(f"{what}: {why}" for what, why in list(self._failed.items())[:_TOLD])
            conditions.append(
                cri.RuntimeCondition(type="NothingUnfinished", status=False, reason="CannotFinishYet", message=told)
            )
        if vulnerable := self._handlers.vulnerable:
            told = "; ".join(f"{name}: {known}" for name, known in vulnerable.items())
            conditions.append(
                cri.RuntimeCondition(type="NoKnownVulnerabilities", status=False, reason="RuntimeIsOld", message=told)
            )
        names = ["", *self._handlers.working] if ready else list(self._handlers.working)
        return cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=conditions),
            runtime_handlers=[cri.RuntimeHandler(name=name, features=cri.RuntimeHandlerFeatures()) for name in names],
            features=cri.RuntimeFeatures(supplemental_groups_policy=True),
            info=self._verbose() if message.verbose else {},
        )

    def _verbose(self) -> dict[str, str]:
        config = self._section.model_dump(mode="json") | {"stateDir": str(self._places.run)}
        return {
            "config": json.dumps(config),
            "unfinished": json.dumps(dict(self._failed)),
            "handlers": json.dumps(
                {
                    "default": self._handlers.default,
                    "broken": self._handlers.broken,
                    "vulnerable": dict(self._handlers.vulnerable),
                }
            ),
        }

    async def runtime_config(self, message: cri.RuntimeConfigRequest) -> cri.RuntimeConfigResponse:
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.CgroupDriver.CGROUPFS))

    async def update_runtime_config(self, message: cri.UpdateRuntimeConfigRequest) -> cri.UpdateRuntimeConfigResponse:
        config = message.runtime_config
        text = config.network_config.pod_cidr if config is not None and config.network_config is not None else ""
        if cidrs := [part.strip() for part in text.split(",") if part.strip()]:
            await self._network.set_ranges(cidrs)
        return cri.UpdateRuntimeConfigResponse()
