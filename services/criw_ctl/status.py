"""How the crew is: each agent's health and version, and the conditions the CRI reports."""

import asyncio
import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Final

from criw.config.common import AGENTS, AgentName
from criw.config.crew import CrewFacts
from criw.errors import Fault, PermissionDenied, Unavailable
from criw.rpc.client import Channel, ask
from criw_ctl.door import channel_to, check_socket
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthCheckResponseServingStatus, HealthStub
from criw_proto.runtime.v1 import (
    RuntimeCondition,
    RuntimeServiceStub,
    StatusRequest,
    StatusResponse,
    VersionRequest,
    VersionResponse,
)

AGENT_COLUMNS: Final = ("AGENT", "HEALTH", "VERSION", "HTTP", "SOCKET")
CONDITION_COLUMNS: Final = ("CONDITION", "STATUS", "REASON", "MESSAGE")
LIMIT_S: Final = 3.0
DOWN: Final = "down"
SERVING: Final = "serving"
_ANSWER_LIMIT_BYTES: Final = 1000
NOT_SERVING: Final = "not serving"
_ADVICE: Final = frozenset({"NoKnownVulnerabilities"})  # what could be better, and works
_BY_HTTP: Final[Mapping[int, str]] = {HTTPStatus.OK: SERVING, HTTPStatus.SERVICE_UNAVAILABLE: NOT_SERVING}


@dataclass(frozen=True)
class AgentStatus:
    """One process. `health` is serving, not serving, or down where nobody listens; `version` empty if not known."""

    agent: str
    health: str
    version: str
    http: str
    socket: str


@dataclass(frozen=True)
class CrewStatus:
    """`version` and `runtime` are None while the door or the supervisor cannot answer; `trouble` says why."""

    agents: Sequence[AgentStatus]
    version: VersionResponse | None = None
    runtime: StatusResponse | None = None
    trouble: str = ""

    @property
    def conditions(self) -> Sequence[RuntimeCondition]:
        return self.runtime.status.conditions if self.runtime and self.runtime.status else ()

    @property
    def good(self) -> bool:
        return (
            all(agent.health == SERVING for agent in self.agents)
            and bool(self.conditions)
            and all(condition.status for condition in self.conditions if condition.type not in _ADVICE)
        )

    def as_json(self) -> dict[str, object]:
        return {
            "agents": [asdict(agent) for agent in self.agents],
            "version": None if self.version is None else self.version.to_dict(include_default_values=True),
            "status": None if self.runtime is None else self.runtime.to_dict(include_default_values=True),
            "trouble": self.trouble,
        }

    def condition_rows(self) -> list[Sequence[str]]:
        return [(each.type, str(each.status).lower(), each.reason, each.message) for each in self.conditions]


async def take_status(config: CrewFacts) -> CrewStatus:
    """Ask every agent. Raises Unavailable if none of the crew runs."""
    processes = [(agent, instance) for agent in AGENTS for instance in _instances(config, agent)]
    agents = await asyncio.gather(*(_agent_status(config, *process) for process in processes))
    if all(agent.health == DOWN for agent in agents):
        check_socket(config.socket("cri"))
    try:
        async with channel_to(config, "cri") as channel:
            door = RuntimeServiceStub(channel)
            version = await ask(door.version, VersionRequest(), timeout_s=LIMIT_S)
            runtime = await ask(door.status, StatusRequest(), timeout_s=LIMIT_S)
    except Fault as err:
        return CrewStatus(agents, trouble=str(err))
    return CrewStatus(agents, version, runtime)


def _instances(config: CrewFacts, agent: AgentName) -> list[int]:
    """The first instance always, others where their sockets are."""
    names = [path.stem for path in config.run_dir(agent).glob("*.sock")]
    return sorted({0, *(int(name) for name in names if name.isdecimal())})


async def _agent_status(config: CrewFacts, agent: AgentName, instance: int) -> AgentStatus:
    path = config.socket(agent, instance)
    host, port = config.facts(agent).address(instance)
    name = f"criw-{agent}" + (f" {instance}" if instance else "")
    health, version = DOWN, ""
    try:
        check_socket(path)
        async with Channel(path) as channel:
            reply = await ask(HealthStub(channel).check, HealthCheckRequest(), timeout_s=LIMIT_S)
        health = SERVING if reply.status is HealthCheckResponseServingStatus.SERVING else NOT_SERVING
        version = await asyncio.to_thread(_http_version, agent, host, port)
    except Unavailable:
        pass  # it is down, as said
    except PermissionDenied as err:  # an agent's socket is for root and the crew only, its HTTP endpoint for all
        code, _ = await asyncio.to_thread(_http_get, host, port, "/readyz")
        health = _BY_HTTP.get(code, str(err))
        version = await asyncio.to_thread(_http_version, agent, host, port)
    except Fault:
        health = "does not answer"
    served = f"{host}:{port}" if version or health != SERVING or not port else f"{host}:{port} (not served)"
    return AgentStatus(name, health, version, served, str(path))


def _http_version(agent: AgentName, host: str, port: int) -> str:
    """What /version says; empty if the agent does not answer there: anybody may have its port, and say anything."""
    code, body = _http_get(host, port, "/version")
    try:
        said = json.loads(body)
        version = str(said["version"])
        ours = code == HTTPStatus.OK and said["agent"] == agent and version.isprintable()
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return version if ours else ""


def _http_get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Status and body; 0 if the endpoint cannot be reached (or has a free port nobody told us)."""
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read(_ANSWER_LIMIT_BYTES)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
