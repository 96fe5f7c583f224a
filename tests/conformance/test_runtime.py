"""What the runtime says of itself."""

from ipaddress import ip_address, ip_network

import pytest

from criw_proto.runtime import v1 as cri
from support.client import Client
from support.node import Node
from support.own import ranges


async def test_version_has_all_four_fields(client: Client) -> None:
    reply = await client.runtime.version(cri.VersionRequest(version="0.1.0"))
    assert reply.version == "0.1.0"
    assert reply.runtime_api_version == "v1"
    assert reply.runtime_name
    assert reply.runtime_version[0].isdecimal()


async def test_status_has_both_conditions_and_they_hold(client: Client) -> None:
    reply = await client.runtime.status(cri.StatusRequest())
    assert reply.status is not None
    conditions = {condition.type: condition for condition in reply.status.conditions}
    assert conditions["RuntimeReady"].status, conditions
    assert conditions["NetworkReady"].status, conditions
    assert reply.info == {}


async def test_verbose_status_has_info(client: Client) -> None:
    reply = await client.runtime.status(cri.StatusRequest(verbose=True))
    assert "config" in reply.info


async def test_pods_get_their_addresses_from_the_range_the_kubelet_sets(client: Client, node: Node) -> None:
    if not node.config:
        pytest.skip("whether another runtime takes it depends on its network plugins")
    cidr, _ = ranges()
    config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr=cidr))
    await client.runtime.update_runtime_config(cri.UpdateRuntimeConfigRequest(runtime_config=config))
    network = (await client.pod_status(await client.run_pod())).network
    assert network is not None
    assert ip_address(network.ip) in ip_network(cidr)
