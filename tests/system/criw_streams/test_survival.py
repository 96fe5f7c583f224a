"""Sessions are the streams process's alone: whatever becomes of the others, they go on."""

import asyncio

import pytest

from criw.config.common import AGENTS, AgentName
from criw_proto.runtime import v1 as cri
from support.client import Client
from support.streaming import STDERR, STDIN, STDOUT, Opener, exec_url, read_until, status
from support.supervised import Supervised


async def echoes(client: Client, image: str) -> tuple[str, str]:
    """A pod, and a container that echoes what it reads."""

    def change(config: cri.ContainerConfig) -> None:
        config.stdin = True

    pod = await client.run_pod()
    container = await client.create(pod, image, ("cat",), change=change)
    await client.start(container)
    return pod, container


@pytest.mark.parametrize("agent", [agent for agent in AGENTS if agent != "streams"])
async def test_sessions_live_on_while_another_agent_is_killed(
    own: Supervised, opened: Opener, agent: AgentName
) -> None:
    _, container = await echoes(own.client, own.image)
    request = cri.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    attach_url = (await own.client.runtime.attach(request)).url
    script = 'while read word; do echo "$word"; done; exit 9'
    url = await exec_url(own.client, container, "sh", "-c", script, stdin=True)
    unused = await exec_url(own.client, container, "echo", "late")
    channels = (STDIN, STDOUT, STDERR)
    async with opened(url, channels) as command, opened(attach_url, channels) as attached:

        async def check(word: bytes) -> None:
            for remote in (command, attached):
                await remote.send(word + b"\n")
                assert await read_until(remote, STDOUT, b"\n") == word + b"\n"

        await check(b"before")
        await own.crew.kill(agent)
        await check(b"without")
        async with opened(unused, (STDOUT, STDERR)) as late:
            assert await read_until(late, STDOUT, b"\n") == b"late\n"
        await own.crew.start(agent)
        await check(b"after")
        await command.end_input()
        assert (await status(command))["details"]["causes"][0]["message"] == "9"


async def test_a_killed_streams_process_ends_sessions_and_leaves_containers(own: Supervised, opened: Opener) -> None:
    _, container = await echoes(own.client, own.image)
    script = "trap 'echo hup > /hup; exit' HUP; echo ready; while :; do sleep 0.1; done"
    url = await exec_url(own.client, container, "sh", "-c", script, stdin=True, tty=True)
    async with opened(url, (STDIN, STDOUT), tty=True) as command:
        await read_until(command, STDOUT, b"ready\r\n")
        await own.crew.kill("streams")
        while await command.read(STDOUT):
            pass
    await own.client.output(container, "sh", "-c", "until test -s /hup; do sleep 0.02; done")
    await own.crew.start("streams")
    async with opened(await exec_url(own.client, container, "echo", "again"), (STDOUT, STDERR)) as command:
        assert await read_until(command, STDOUT, b"\n") == b"again\n"
    assert (await own.client.status(container)).state == cri.ContainerState.CONTAINER_RUNNING


async def test_a_streams_process_that_stops_tells_its_clients(own: Supervised, opened: Opener) -> None:
    _, container = await echoes(own.client, own.image)
    url = await exec_url(own.client, container, "cat", stdin=True)
    async with opened(url, (STDIN, STDOUT, STDERR)) as command:
        await command.send(b"x")
        await read_until(command, STDOUT, b"x")
        await own.crew.stop("streams")
        assert "the session was ended" in (await status(command))["message"]


async def test_removing_the_container_ends_its_sessions(own: Supervised, opened: Opener) -> None:
    pod, container = await echoes(own.client, own.image)
    url = await exec_url(own.client, container, "sleep", "7777")
    async with opened(url, (STDOUT, STDERR)) as command:
        ending = asyncio.create_task(status(command))
        while "sleep 7777" not in await own.client.output(container, "ps", "-o", "args"):
            pass
        await own.client.stop_pod(pod)
        await own.client.remove_pod(pod)
        assert (await ending)["details"]["causes"][0]["message"] == "137"
