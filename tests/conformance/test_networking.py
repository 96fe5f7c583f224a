"""Reaching pods."""

import asyncio
import urllib.request

import pytest_asyncio

from criw_proto.runtime import v1 as cri
from support.client import Client
from support.node import Node
from support.own import free_port


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return str(reply.read().decode())


async def fetched(url: str) -> str:
    """The page, once the server is up."""
    for _ in range(200):
        try:
            return await asyncio.to_thread(page, url)
        except OSError:
            await asyncio.sleep(0.05)
    raise AssertionError(f"{url} cannot be fetched")


@pytest_asyncio.fixture
async def nginx(client: Client, node: Node) -> str:
    return await client.pull(node.nginx)


async def address(client: Client, pod_id: str) -> str:
    network = (await client.pod_status(pod_id)).network
    assert network is not None
    return network.ip


async def serve(client: Client, image: str, config: cri.PodSandboxConfig) -> str:
    """A pod whose nginx runs as the image says."""
    pod_id = await client.run_pod(config)
    container_id = await client.create(pod_id, image, [], name="nginx")
    await client.start(container_id)
    return pod_id


async def test_the_host_reaches_a_pod_by_its_address(client: Client, nginx: str) -> None:
    pod_id = await serve(client, nginx, client.pod_config())
    assert "nginx" in await fetched(f"http://{await address(client, pod_id)}/")


async def test_containers_of_a_pod_share_its_loopback(client: Client, nginx: str, busybox: str) -> None:
    pod_id = await serve(client, nginx, client.pod_config())
    await fetched(f"http://{await address(client, pod_id)}/")
    container_id = await client.run(pod_id, busybox, name="client")
    assert "nginx" in await client.output(container_id, "wget", "-qO-", "http://127.0.0.1/")


async def test_pods_reach_each_other(client: Client, nginx: str, busybox: str) -> None:
    server = await serve(client, nginx, client.pod_config())
    ip = await address(client, server)
    await fetched(f"http://{ip}/")
    container_id = await client.run(await client.run_pod(), busybox)
    assert "nginx" in await client.output(container_id, "wget", "-qO-", f"http://{ip}/")


async def test_a_host_port_leads_to_the_pod(client: Client, nginx: str) -> None:
    port = free_port()
    mapping = cri.PortMapping(protocol=cri.Protocol.TCP, container_port=80, host_port=port)
    await serve(client, nginx, client.pod_config(port_mappings=[mapping]))
    assert "nginx" in await fetched(f"http://127.0.0.1:{port}/")
