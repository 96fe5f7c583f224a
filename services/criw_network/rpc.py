"""The gRPC face of the agent: requests become domain values, answers become messages."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

from criw_network.attachments import Attachments
from criw_network.pod import Bandwidth, Dns, Pod, parse_port
from criw_network.provider import Provider
from criw_proto.criw.network.v1 import (
    AttachRequest,
    AttachResponse,
    DetachRequest,
    DetachResponse,
    InterfaceStats,
    ListRequest,
    ListResponse,
    NetworkBase,
    NetworkStatusBase,
    PodStats,
    StatsRequest,
    StatsResponse,
    StatusRequest,
    StatusResponse,
    UpdateConfigRequest,
    UpdateConfigResponse,
)


class NetworkRpc(NetworkBase):
    """criw.network.v1.Network. `configure` takes the node's pod CIDRs."""

    def __init__(self, attachments: Attachments, configure: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._attachments = attachments
        self._configure = configure

    async def attach(self, message: AttachRequest) -> AttachResponse:
        attached = await self._attachments.attach(pod_of(message))
        return AttachResponse(
            netns_path=str(self._attachments.pin(message.pod_id)),
            ips=[str(address.ip) for address in attached.addresses],
        )

    async def detach(self, message: DetachRequest) -> DetachResponse:
        await self._attachments.detach(message.pod_id)
        return DetachResponse()

    async def list(self, message: ListRequest) -> ListResponse:
        return ListResponse(pod_ids=sorted(self._attachments.known()), lost=sorted(self._attachments.lost()))

    async def update_config(self, message: UpdateConfigRequest) -> UpdateConfigResponse:
        await self._configure(message.pod_cidrs)
        return UpdateConfigResponse()

    async def stats(self, message: StatsRequest) -> StatsResponse:
        counters = await self._attachments.counters(frozenset(message.pod_ids))
        now = time.time_ns()
        return StatsResponse(
            pods=[
                PodStats(pod_id=pod_id, timestamp_ns=now, interfaces=[InterfaceStats(name=name, **asdict(counted))])
                for pod_id, (name, counted) in counters.items()
            ]
        )


class NetworkStatusRpc(NetworkStatusBase):
    """criw.network.v1.NetworkStatus."""

    def __init__(self, attachments: Attachments, provider: Provider) -> None:
        self._attachments = attachments
        self._provider = provider

    async def status(self, message: StatusRequest) -> StatusResponse:
        condition = self._provider.condition
        if condition.ready and (trouble := self._attachments.trouble):
            return StatusResponse(ready=True, reason="Unfinished", message=trouble)
        return StatusResponse(**asdict(condition))


def pod_of(message: AttachRequest) -> Pod:
    """Raises InvalidArgument for a bad port."""
    return Pod(
        id=message.pod_id,
        name=message.name,
        namespace=message.namespace,
        uid=message.uid,
        annotations=message.annotations,
        ports=tuple(
            parse_port(
                mapping.protocol,
                host_port=mapping.host_port,
                container_port=mapping.container_port,
                host_ip=mapping.host_ip,
            )
            for mapping in message.port_mappings
            if mapping.host_port  # the kubelet lists every container port; 0 is one without a host port
        ),
        sysctls=message.sysctls,
        dns=_dns(message),
        bandwidth=_bandwidth(message),
        cgroup=message.cgroup,
        user_namespace=message.user_namespace,
    )


def _dns(message: AttachRequest) -> Dns:
    told = message.dns
    return Dns() if told is None else Dns(tuple(told.servers), tuple(told.searches), tuple(told.options))


def _bandwidth(message: AttachRequest) -> Bandwidth:
    told = message.bandwidth
    if told is None:
        return Bandwidth()
    return Bandwidth(
        ingress_bits_per_s=told.ingress_bits_per_s,
        ingress_burst_bits=told.ingress_burst_bits,
        egress_bits_per_s=told.egress_bits_per_s,
        egress_burst_bits=told.egress_burst_bits,
    )
