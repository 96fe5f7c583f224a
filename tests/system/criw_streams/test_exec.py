"""Exec: bytes, ends, exit codes and terminals, over both transports."""

import asyncio
import hashlib
import random
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw.config.crew import Config
from criw_proto.runtime import v1 as cri
from support.client import Client
from support.streaming import STDERR, STDIN, STDOUT, Opener, exec_url, read_all, read_until, status

MIB = 1024 * 1024


def resident(pid: int) -> int:
    """Bytes of its memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def stuck(client: Client, container: str) -> None:
    """Wait until `yes` in the container has written nothing for a while."""
    command = ("sh", "-c", "grep ^wchar /proc/$(pidof yes | cut -d' ' -f1)/io")
    last, same = b"", 0
    while same < 10:
        now = (await client.exec(container, *command)).stdout
        same = same + 1 if now == last else 0
        last = now


async def test_both_outputs_and_success(opened: Opener, client: Client, container: str) -> None:
    where = await exec_url(client, container, "sh", "-c", "echo out; echo err >&2")
    async with opened(where, (STDOUT, STDERR)) as remote:
        assert await read_all(remote, STDOUT) == b"out\n"
        assert await read_all(remote, STDERR) == b"err\n"
        assert (await status(remote))["status"] == "Success"


@pytest.mark.parametrize("code", [1, 126, 127, 137, 255])
async def test_an_exit_code_is_told(opened: Opener, client: Client, container: str, code: int) -> None:
    async with opened(await exec_url(client, container, "sh", "-c", f"exit {code}"), (STDOUT, STDERR)) as remote:
        told = await status(remote)
    assert told["reason"] == "NonZeroExitCode"
    assert told["details"]["causes"] == [{"reason": "ExitCode", "message": str(code)}]
    assert told["message"] == f"command terminated with non-zero exit code: command terminated with exit code {code}"


async def test_a_signal_is_told_as_a_shell_does(opened: Opener, client: Client, container: str) -> None:
    async with opened(await exec_url(client, container, "sh", "-c", "kill -9 $$"), (STDOUT, STDERR)) as remote:
        assert (await status(remote))["details"]["causes"][0]["message"] == "137"


async def test_a_command_that_is_not_there(opened: Opener, client: Client, container: str) -> None:
    async with opened(await exec_url(client, container, "/no/such/command"), (STDOUT, STDERR)) as remote:
        told = await status(remote)
        assert await read_all(remote, STDOUT) == b""
    assert told["status"] == "Failure"
    assert told["reason"] == "InternalError"
    assert "no such file or directory" in told["message"]


async def test_input_comes_to_its_end(opened: Opener, client: Client, container: str) -> None:
    async with opened(await exec_url(client, container, "cat", stdin=True), (STDIN, STDOUT, STDERR)) as remote:
        await remote.send(b"hello")
        assert await read_until(remote, STDOUT, b"hello") == b"hello"
        await remote.end_input()
        assert await read_all(remote, STDOUT) == b""
        assert (await status(remote))["status"] == "Success"


@pytest.mark.parametrize("size", [0, 1, 32769, 20 * MIB + 7, 256 * MIB])
async def test_bytes_are_exact_both_ways(opened: Opener, client: Client, container: str, size: int) -> None:
    dice = random.Random(size)
    sent, got = hashlib.sha256(), hashlib.sha256()
    where = await exec_url(client, container, "cat", stdin=True)
    async with opened(where, (STDIN, STDOUT, STDERR)) as remote:

        async def send() -> None:
            left = size
            while left:
                piece = dice.randbytes(min(left, dice.choice((1, 100, 4096, 100_000, MIB))))
                sent.update(piece)
                await remote.send(piece)
                left -= len(piece)
            await remote.end_input()

        sending = asyncio.create_task(send())
        while piece := await remote.read(STDOUT):
            got.update(piece)
        await sending
        assert (await status(remote))["status"] == "Success"
    assert got.digest() == sent.digest()


async def test_a_slow_client_stops_the_command_and_not_the_memory(
    opened: Opener, client: Client, container: str, config: Config
) -> None:
    script = "yes 0123456789abcde | head -c 134217728"
    async with opened(await exec_url(client, container, "sh", "-c", script), (STDOUT, STDERR)) as remote:
        first = await remote.read(STDOUT)
        agent = int((config.state_dir("streams") / "0.lock").read_text())
        before = resident(agent)
        await stuck(client, container)
        assert resident(agent) - before < 32 * MIB
        size = len(first)
        while piece := await remote.read(STDOUT):
            size += len(piece)
        assert size == 128 * MIB
        assert (await status(remote))["status"] == "Success"


async def test_what_is_left_in_the_background_keeps_no_session_and_lives_on(
    opened: Opener, client: Client, container: str
) -> None:
    script = "sleep 7654 & echo started"
    async with opened(await exec_url(client, container, "sh", "-c", script), (STDOUT, STDERR)) as remote:
        assert await read_all(remote, STDOUT) == b"started\n"
        assert (await status(remote))["status"] == "Success"
    assert "sleep 7654" in await client.output(container, "ps", "-o", "args")


async def test_without_a_terminal_the_command_goes_on_when_its_client_has_gone(
    opened: Opener, client: Client, container: str
) -> None:
    script = "echo ready; cat > /got; echo unread; echo unread >&2; echo ended > /ended"
    where = await exec_url(client, container, "sh", "-c", script, stdin=True)
    async with opened(where, (STDIN, STDOUT, STDERR)) as remote:
        await read_until(remote, STDOUT, b"ready\n")
        await remote.send(b"all of it")
        await client.output(container, "sh", "-c", "until test -s /got; do sleep 0.02; done")
        await remote.drop()
        await client.output(container, "sh", "-c", "until test -s /ended; do sleep 0.02; done")
    assert await client.output(container, "cat", "/got") == "all of it"


async def test_a_terminal_hangs_up_when_its_client_has_gone(opened: Opener, client: Client, container: str) -> None:
    script = "trap 'echo hup > /hup; exit' HUP; echo ready; while :; do sleep 0.1; done"
    where = await exec_url(client, container, "sh", "-c", script, stdin=True, tty=True)
    async with opened(where, (STDIN, STDOUT), tty=True) as remote:
        await read_until(remote, STDOUT, b"ready\r\n")
        await remote.drop()
        await client.output(container, "sh", "-c", "until test -s /hup; do sleep 0.02; done")


async def test_a_terminal_has_the_size_of_the_clients(opened: Opener, client: Client, container: str) -> None:
    script = "until stty size | grep -q '^33 99'; do sleep 0.02; done; echo first; read line; stty size; exit 3"
    where = await exec_url(client, container, "sh", "-c", script, stdin=True, tty=True)
    async with opened(where, (STDIN, STDOUT), tty=True) as remote:
        await remote.resize(99, 33)
        await read_until(remote, STDOUT, b"first\r\n")
        await remote.resize(0, 44)  # no size
        await remote.resize(132, 50)
        await remote.send(b"\n")
        assert b"50 132\r\n" in await read_all(remote, STDOUT)
        assert (await status(remote))["details"]["causes"][0]["message"] == "3"


async def test_a_terminal_is_one(opened: Opener, client: Client, container: str) -> None:
    where = await exec_url(client, container, "sh", "-c", "tty; echo $TERM; cat", stdin=True, tty=True)
    async with opened(where, (STDIN, STDOUT), tty=True) as remote:
        await read_until(remote, STDOUT, b"/dev/pts/0\r\nxterm\r\n")
        await remote.send(b"typed\n\x04")
        assert (await read_all(remote, STDOUT)).endswith(b"typed\r\ntyped\r\n")
        assert (await status(remote))["status"] == "Success"


async def test_a_hundred_sessions_at_once(client: Client, container: str, opened: Opener) -> None:
    async def one(number: int) -> None:
        where = await exec_url(client, container, "sh", "-c", "read word; echo $word", stdin=True)
        async with opened(where, (STDIN, STDOUT, STDERR)) as remote:
            await remote.send(f"{number}\n".encode())
            assert await read_all(remote, STDOUT) == f"{number}\n".encode()

    await asyncio.gather(*(one(number) for number in range(100)))


async def test_a_session_has_the_confinement_of_the_container(opened: Opener, client: Client, busybox: str) -> None:
    security = cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=4321), no_new_privs=True, readonly_rootfs=True
    )
    pod = await client.run_pod()
    confined = await client.create(pod, busybox, ("sleep", "7777"), security=security)
    await client.start(confined)
    script = "id -u; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; touch /x"
    async with opened(await exec_url(client, confined, "sh", "-c", script), (STDOUT, STDERR)) as remote:
        told = (await read_all(remote, STDOUT)).decode().split()
        assert told[:3] == ["4321", "NoNewPrivs:", "1"]
        assert b"Read-only file system" in await read_all(remote, STDERR)


async def test_what_cannot_be_a_session_is_refused(client: Client, container: str, busybox: str) -> None:
    async def refused(**fields: object) -> Status:
        request = cri.ExecRequest(container_id=container, cmd=["true"], stdout=True)
        for field, value in fields.items():
            setattr(request, field, value)
        with pytest.raises(GRPCError) as caught:
            await client.runtime.exec(request)
        return caught.value.status

    assert await refused(container_id="") is Status.INVALID_ARGUMENT
    assert await refused(container_id="f" * 64) is Status.NOT_FOUND
    assert await refused(tty=True, stderr=True) is Status.INVALID_ARGUMENT
    assert await refused(stdout=False) is Status.INVALID_ARGUMENT
    assert await refused(cmd=[]) is Status.INVALID_ARGUMENT
    created = await client.create(await client.run_pod(), busybox)
    assert await refused(container_id=created) is Status.FAILED_PRECONDITION
