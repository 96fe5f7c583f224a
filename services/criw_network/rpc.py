"""The gRPC face of the agent: requests become domain values, answers become messages."""

import time
from dataclasses import asdict

from criw_network import hostports
from criw_network.attachments import Attachments
from criw_proto.criw.network.v1 import (
    AttachRequest,
    AttachResponse,
    DetachRequest,
    DetachResponse,
    InterfaceStats,
    ListRequest,
    ListResponse,
    NetworkBase,
    PodStats,
    StatsRequest,
    StatsResponse,
    StatusRequest,
    StatusResponse,
    UpdateConfigRequest,
    UpdateConfigResponse,
)


class NetworkRpc(NetworkBase):
    """criw.network.v1.Network."""

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments

    async def attach(self, message: AttachRequest) -> AttachResponse:
        ports = [
            hostports.parse(
                mapping.protocol,
                host_port=mapping.host_port,
                container_port=mapping.container_port,
                host_ip=mapping.host_ip,
            )
            for mapping in message.port_mappings
            if mapping.host_port  # the kubelet lists every container port; 0 is one without a host port
        ]
        attachment = await self._attachments.attach(message.pod_id, ports, message.sysctls)
        return AttachResponse(
            netns_path=str(self._attachments.pin(attachment.id)),
            ips=[address.partition("/")[0] for address in attachment.addresses],
        )

    async def detach(self, message: DetachRequest) -> DetachResponse:
        await self._attachments.detach(message.pod_id)
        return DetachResponse()

    async def list(self, message: ListRequest) -> ListResponse:
        return ListResponse(pod_ids=sorted(self._attachments.ids()))

    async def status(self, message: StatusRequest) -> StatusResponse:
        condition = self._attachments.condition
        return StatusResponse(ready=condition.ready, reason=condition.reason, message=condition.message)

    async def update_config(self, message: UpdateConfigRequest) -> UpdateConfigResponse:
        await self._attachments.configure(message.pod_cidrs)
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
