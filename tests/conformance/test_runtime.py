"""What the runtime says of itself."""

from criw_proto.runtime import v1 as cri
from support.client import Client


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


async def test_a_pod_cidr_can_be_set_before_the_first_pod(client: Client) -> None:
    await client.runtime.update_runtime_config(cri.UpdateRuntimeConfigRequest(runtime_config=cri.RuntimeConfig()))
