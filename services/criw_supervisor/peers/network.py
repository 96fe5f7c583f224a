"""The network agent: network namespaces, addresses and host ports of pods that are not on the host's network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from criw.rpc.client import call
from criw_proto.criw.network.v1 import (
    AttachRequest,
    DetachRequest,
    Dns,
    ListRequest,
    NetworkStub,
    PodStats,
    PortMapping,
    StatsRequest,
    UpdateConfigRequest,
)

_AGENT: Final = "criw-network"
_LIMIT_S: Final = 60.0
_STATS_LIMIT_S: Final = 5.0


@dataclass(frozen=True)
class HostPort:
    """A port of the host that leads into the pod."""

    protocol: str  # "tcp", "udp" or "sctp"
    container_port: int
    host_port: int
    host_ip: str  # "": all addresses of the host


@dataclass(frozen=True)
class NetworkPlan:
    """What a pod wants of its network."""

    name: str
    namespace: str
    uid: str
    cgroup: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    host_ports: tuple[HostPort, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)  # dotted names below "net."
    dns: Dns = field(default_factory=Dns)


@dataclass(frozen=True)
class Attached:
    """A pod's network; both empty on the host's."""

    netns: str = ""  # path of the pinned namespace
    ips: tuple[str, ...] = ()  # primary family first


class Network:
    """Its methods raise the agent's faults, and Unavailable while it is away."""

    def __init__(self, stub: NetworkStub) -> None:
        self._stub = stub

    async def attach(self, pod_id: str, plan: NetworkPlan) -> Attached:
        """Make a pod's network; repeated, the answer is the first one's."""
        request = AttachRequest(
            pod_id=pod_id,
            port_mappings=[
                PortMapping(
                    protocol=one.protocol,
                    container_port=one.container_port,
                    host_port=one.host_port,
                    host_ip=one.host_ip,
                )
                for one in plan.host_ports
            ],
            sysctls=dict(plan.sysctls),
            name=plan.name,
            namespace=plan.namespace,
            uid=plan.uid,
            annotations=dict(plan.annotations),
            dns=plan.dns,
            cgroup=plan.cgroup,
        )
        reply = await call(self._stub.attach, request, timeout_s=_LIMIT_S, agent=_AGENT)
        return Attached(reply.netns_path, tuple(reply.ips))

    async def detach(self, pod_id: str, *, limit_s: float = _LIMIT_S) -> None:
        """Take a pod's network away; an unknown pod is a success."""
        await call(self._stub.detach, DetachRequest(pod_id=pod_id), timeout_s=limit_s, agent=_AGENT)

    async def pod_ids(self) -> list[str]:
        """The pods that have a network."""
        return (await call(self._stub.list, ListRequest(), timeout_s=_LIMIT_S, agent=_AGENT)).pod_ids

    async def set_ranges(self, cidrs: Sequence[str]) -> None:
        """Take pods' addresses from these ranges, at most one of each family."""
        await call(self._stub.update_config, UpdateConfigRequest(pod_cidrs=list(cidrs)), agent=_AGENT)

    async def counters(self, pod_ids: Sequence[str]) -> dict[str, PodStats]:
        """The interface counters of pods, by id; unknown ones are left out."""
        if not pod_ids:
            return {}
        request = StatsRequest(pod_ids=list(pod_ids))
        reply = await call(self._stub.stats, request, timeout_s=_STATS_LIMIT_S, agent=_AGENT)
        return {one.pod_id: one for one in reply.pods}
