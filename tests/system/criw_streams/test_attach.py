"""Attach: the streams of a running container, from now on, for as many clients as come."""

import asyncio
import hashlib

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from criw_streams.attach import BEHIND_LIMIT
from support.client import Client
from support.streaming import STDERR, STDIN, STDOUT, Opener, over_spdy, read_all, read_until, status


async def running(
    client: Client, image: str, *command: str, stdin: bool = False, once: bool = False, tty: bool = False
) -> tuple[str, str]:
    """A pod and a container of it that runs."""

    def change(config: cri.ContainerConfig) -> None:
        config.stdin, config.stdin_once, config.tty = stdin, once, tty

    pod = await client.run_pod()
    container = await client.create(pod, image, command, change=change)
    await client.start(container)
    return pod, container


async def attach_url(client: Client, container: str, *, stdin: bool = False, tty: bool = False) -> str:
    request = cri.AttachRequest(container_id=container, stdin=stdin, stdout=True, stderr=not tty, tty=tty)
    return (await client.runtime.attach(request)).url


async def test_who_attaches_before_the_start_sees_all(opened: Opener, client: Client, busybox: str) -> None:
    container = await client.create(await client.run_pod(), busybox, ("sh", "-c", "echo first; echo err >&2"))
    async with opened(await attach_url(client, container), (STDOUT, STDERR)) as remote:
        await client.start(container)
        assert await read_all(remote, STDOUT) == b"first\n"
        assert await read_all(remote, STDERR) == b"err\n"
    assert (await client.exited(container)).exit_code == 0


READS = ("sh", "-c", 'while read line; do echo "got $line"; echo "err $line" >&2; done; echo over')


async def test_several_clients_see_all_and_any_may_leave(opened: Opener, client: Client, busybox: str) -> None:
    _, container = await running(client, busybox, *READS, stdin=True)
    first_url, second_url = await attach_url(client, container), await attach_url(client, container, stdin=True)
    async with opened(first_url, (STDOUT, STDERR)) as first:
        async with opened(second_url, (STDIN, STDOUT, STDERR)) as second:
            await second.send(b"one\n")
            for remote in (first, second):
                assert await read_until(remote, STDOUT, b"got one\n") == b"got one\n"
                assert await read_until(remote, STDERR, b"err one\n") == b"err one\n"
            await second.drop()
        third_url = await attach_url(client, container, stdin=True)
        async with opened(third_url, (STDIN, STDOUT, STDERR)) as third:
            await third.send(b"two\n")
            assert await read_until(third, STDOUT, b"two\n") == b"got two\n"  # from now on, and nothing from before
        assert await read_until(first, STDOUT, b"two\n") == b"got two\n"
    assert (await client.status(container)).state == cri.ContainerState.CONTAINER_RUNNING


async def test_the_end_of_the_container_ends_it_well(opened: Opener, client: Client, busybox: str) -> None:
    _, container = await running(client, busybox, "sh", "-c", "read line; echo last; exit 5", stdin=True)
    async with opened(await attach_url(client, container, stdin=True), (STDIN, STDOUT, STDERR)) as remote:
        await remote.send(b"go\n")
        assert await read_all(remote, STDOUT) == b"last\n"
        assert (await status(remote))["status"] == "Success"
    assert (await client.exited(container)).exit_code == 5


@pytest.mark.parametrize("once", [True, False])
async def test_the_end_of_input_is_the_containers_only_once(
    opened: Opener, client: Client, busybox: str, once: bool
) -> None:
    _, container = await running(client, busybox, *READS, stdin=True, once=once)
    async with opened(await attach_url(client, container, stdin=True), (STDIN, STDOUT, STDERR)) as remote:
        await remote.send(b"word\n")
        await read_until(remote, STDOUT, b"got word\n")
        await remote.end_input()
        if once:
            assert await read_all(remote, STDOUT) == b"over\n"
            assert (await client.exited(container)).exit_code == 0
    if not once:
        async with opened(await attach_url(client, container, stdin=True), (STDIN, STDOUT, STDERR)) as remote:
            await remote.send(b"more\n")
            assert await read_until(remote, STDOUT, b"more\n") == b"got more\n"


async def test_a_terminal_is_attached_to_and_resized(opened: Opener, client: Client, busybox: str) -> None:
    script = "until stty size | grep -q '^33 99'; do sleep 0.02; done; echo seen; read line; stty size"
    _, container = await running(client, busybox, "sh", "-c", script, stdin=True, tty=True)
    where = await attach_url(client, container, stdin=True, tty=True)
    async with opened(where, (STDIN, STDOUT), tty=True) as remote:
        await remote.resize(99, 33)
        await read_until(remote, STDOUT, b"seen\r\n")
        await remote.resize(120, 40)
        await client.output(
            container, "sh", "-c", "until stty -F /dev/pts/0 size | grep -q '^40 120'; do sleep 0.02; done"
        )
        await remote.send(b"\n")
        assert b"40 120\r\n" in await read_all(remote, STDOUT)


async def test_whoever_left_a_terminal_can_come_back_to_it(opened: Opener, client: Client, busybox: str) -> None:
    _, container = await running(client, busybox, *READS, stdin=True, once=True, tty=True)
    for word in (b"one", b"two"):
        where = await attach_url(client, container, stdin=True, tty=True)
        async with opened(where, (STDIN, STDOUT), tty=True) as remote:
            await remote.send(word + b"\n")
            await read_until(remote, STDOUT, b"err " + word)
            await remote.drop()


async def test_bytes_are_exact_both_ways(opened: Opener, client: Client, busybox: str) -> None:
    _, container = await running(client, busybox, "cat", stdin=True, once=True)
    sent, got = hashlib.sha256(), hashlib.sha256()
    async with opened(await attach_url(client, container, stdin=True), (STDIN, STDOUT, STDERR)) as remote:

        async def send() -> None:
            for number in range(2000):
                piece = bytes((number % 251,)) * (number * 7 % 9000 + 1)
                sent.update(piece)
                await remote.send(piece)
            await remote.end_input()

        sending = asyncio.create_task(send())
        while piece := await remote.read(STDOUT):
            got.update(piece)
        await sending
    assert got.digest() == sent.digest()


async def test_a_client_that_does_not_read_is_ended_and_slows_nobody(client: Client, busybox: str) -> None:
    total = BEHIND_LIMIT + 32 * 1024 * 1024
    script = f"read line; yes 0123456789abcde | head -c {total}; echo; read line; echo after"
    _, container = await running(client, busybox, "sh", "-c", script, stdin=True)
    slow_url, quick_url = await attach_url(client, container), await attach_url(client, container, stdin=True)
    async with over_spdy(slow_url) as slow, over_spdy(quick_url, (STDIN, STDOUT, STDERR)) as quick:
        await quick.send(b"\n")
        size = 0
        while size < total + 1:
            size += len(await quick.read(STDOUT))
        await quick.send(b"\n")
        assert await read_all(quick, STDOUT) == b"after\n"
        assert len(await read_all(slow, STDOUT)) < total
        assert "bytes behind" in (await status(slow))["message"]
    assert (await client.exited(container)).exit_code == 0


async def test_what_cannot_be_attached_to_is_refused(client: Client, busybox: str) -> None:
    _, container = await running(client, busybox, "sleep", "7777")
    request = cri.AttachRequest(container_id=container, stdout=True, tty=True)
    with pytest.raises(GRPCError, match="has no terminal") as caught:
        await client.runtime.attach(request)
    assert caught.value.status is Status.INVALID_ARGUMENT
    await client.stop(container)
    with pytest.raises(GRPCError) as caught:
        await client.runtime.attach(cri.AttachRequest(container_id=container, stdout=True))
    assert caught.value.status is Status.FAILED_PRECONDITION
    with pytest.raises(GRPCError) as caught:
        await client.runtime.attach(cri.AttachRequest(container_id="f" * 64, stdout=True))
    assert caught.value.status is Status.NOT_FOUND
