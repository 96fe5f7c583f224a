"""ExecSync: what it tells, and what it leaves in the container and in the supervisor."""

import asyncio
import contextlib
import time
from collections import Counter
from pathlib import Path

import pytest
import pytest_asyncio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from criw_supervisor.cgroups import hierarchies
from support import host
from support.client import Client
from support.supervised import Traces, info

LIMIT = 16 * 1024 * 1024


@pytest_asyncio.fixture
async def container(client: Client, busybox: str) -> str:
    return await client.run(await client.run_pod(), busybox, ("sleep", "7777"))


def held(traces: Traces, container_id: str) -> Counter[str]:
    """The supervisor's open descriptors, and its files about execs. What is added by an exec must go with it."""
    supervisor = (traces.config.state_dir("supervisor") / "0.lock").read_text().strip()
    bundle = traces.config.run_dir("supervisor") / "containers" / container_id
    found = Counter(path.name for path in bundle.glob("exec-*"))
    for entry in Path(f"/proc/{supervisor}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[str(entry.readlink())] += 1
    return found


async def processes(client: Client, container_id: str) -> set[str]:
    """What runs there. Zombies, which `sleep` as init does not reap, do not run."""
    listed = await client.output(container_id, "ps", "-o", "args")
    return {line.strip() for line in listed.splitlines()[1:] if not line.startswith("[")} - {"ps -o args"}


async def test_code_and_both_streams(client: Client, container: str) -> None:
    reply = await client.exec(container, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert reply == cri.ExecSyncResponse(stdout=b"out\n", stderr=b"err\n", exit_code=7)
    assert (await client.exec(container, "sh", "-c", "kill -9 $$")).exit_code == 137
    assert (await client.exec(container, "true")) == cri.ExecSyncResponse()


async def test_bytes_come_as_they_are(client: Client, container: str) -> None:
    reply = await client.exec(container, "printf", "\\000\\377\\200")
    assert reply.stdout == b"\0\xff\x80"


async def test_it_runs_as_the_container_does(client: Client, busybox: str) -> None:
    def change(config: cri.ContainerConfig) -> None:
        config.working_dir = "/home/app"

    security = cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=1000),
        run_as_group=cri.Int64Value(value=33),
        capabilities=cri.Capability(drop_capabilities=["ALL"]),
    )
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox, env={"WORD": "hi"}, security=security, change=change)
    await client.start(container_id)
    script = "id -u; id -g; pwd; echo $WORD; grep CapBnd /proc/self/status; cat /proc/self/cgroup"
    uid, gid, cwd, word, capabilities, *cgroups = (await client.output(container_id, "sh", "-c", script)).splitlines()
    assert (uid, gid, cwd, word, capabilities.split()[1]) == ("1000", "33", "/home/app", "hi", "0" * 16)
    init = Path(f"/proc/{(await info(client, container_id))['pid']}/cgroup").read_text().splitlines()
    assert cgroups == init


async def test_a_timeout_kills_everything_it_started(client: Client, container: str, traces: Traces) -> None:
    await client.output(container, "true")
    before = held(traces, container)
    script = "sleep 1001 & (setsid sh -c 'sleep 1002 & sleep 1003' & sleep 1004) & sleep 1005"
    started = time.monotonic()
    with pytest.raises(GRPCError, match="within 1 s: it was killed") as caught:
        await client.exec(container, "sh", "-c", script, timeout_s=1)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    assert await processes(client, container) == {"sleep 7777"}
    assert held(traces, container) <= before


@pytest.mark.parametrize("name", ["passwd", "group"])
async def test_a_timeout_ends_a_runtime_that_reads_a_file_of_the_container_for_ever(
    client: Client, container: str, traces: Traces, name: str
) -> None:
    assert (await client.exec(container, "sh", "-c", f"rm /etc/{name}; mkfifo /etc/{name}")).exit_code == 0
    before = held(traces, container)
    started = time.monotonic()
    with pytest.raises(GRPCError, match="within 1 s: it was killed") as caught:
        await client.exec(container, "true", timeout_s=1)
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    assert held(traces, container) <= before
    assert [line for line in host.contents(traces) if "runc init" in line or "exec --detach" in line] == []
    about = await info(client, container)
    assert hierarchies.of_host().processes(about["runtimeSpec"]["linux"]["cgroupsPath"]) == {about["pid"]}


async def test_a_grandchild_that_holds_the_pipes_does_not_hang_the_call(client: Client, container: str) -> None:
    started = time.monotonic()
    reply = await client.exec(container, "sh", "-c", "echo said; sleep 2001 & exit 5", timeout_s=30)
    assert (reply.stdout, reply.exit_code) == (b"said\n", 5)
    assert time.monotonic() - started < 5
    assert "sleep 2001" in await processes(client, container)  # it may go on


async def test_output_is_capped_and_the_command_not_stopped(client: Client, container: str) -> None:
    script = f"head -c {LIMIT + 5} /dev/zero; head -c 10 /dev/zero >&2; exit 6"
    reply = await client.exec(container, "sh", "-c", script)
    assert (len(reply.stdout), len(reply.stderr), reply.exit_code) == (LIMIT, 10, 6)


@pytest.mark.parametrize(("command", "words"), [("no-such-program", "not found"), ("/etc/passwd", "permission denied")])
async def test_a_command_that_cannot_be_run_is_told(
    client: Client, container: str, traces: Traces, command: str, words: str
) -> None:
    await client.output(container, "true")
    before = held(traces, container)
    with pytest.raises(GRPCError) as caught:
        await client.exec(container, command)
    assert command in (caught.value.message or "")
    assert words in (caught.value.message or "")
    assert caught.value.status is Status.UNKNOWN
    assert held(traces, container) <= before


async def test_a_negative_timeout_is_refused(client: Client, container: str) -> None:
    with pytest.raises(GRPCError, match="timeout must not be negative") as caught:
        await client.exec(container, "true", timeout_s=-1)
    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_a_command_is_needed(client: Client, container: str) -> None:
    with pytest.raises(GRPCError, match="cmd is empty") as caught:
        await client.exec(container)
    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_many_at_once_get_their_own_answers(client: Client, container: str, traces: Traces) -> None:
    await client.output(container, "true")
    before = held(traces, container)
    replies = await asyncio.gather(*(client.exec(container, "sh", "-c", f"echo {n}; exit {n}") for n in range(20)))
    assert [(reply.stdout, reply.exit_code) for reply in replies] == [(b"%d\n" % n, n) for n in range(20)]
    assert held(traces, container) <= before


async def test_a_client_that_goes_away_ends_the_command(client: Client, container: str, traces: Traces) -> None:
    await client.output(container, "true")
    before = held(traces, container)
    for pause in (0.0, 0.02, 0.05, 0.3):
        call = asyncio.create_task(client.exec(container, "sh", "-c", "sleep 3001 & sleep 3002", timeout_s=0))
        await asyncio.wait({call}, timeout=pause)
        call.cancel()
        await asyncio.wait({call})
        async with asyncio.timeout(10):
            while await processes(client, container) != {"sleep 7777"}:
                await asyncio.sleep(0.01)
            while not held(traces, container) <= before:
                await asyncio.sleep(0.01)


async def test_the_end_of_the_container_ends_the_command(client: Client, container: str) -> None:
    call = asyncio.create_task(client.exec(container, "sleep", "4001", timeout_s=0))
    async with asyncio.timeout(10):
        while "sleep 4001" not in await processes(client, container):
            pass
        await client.stop(container)
        assert (await call).exit_code == 137


async def test_a_removal_in_the_midst_of_commands_is_told_to_each(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    for number in range(4):
        container_id = await client.run(pod_id, busybox, name=f"c{number}")
        calls = [asyncio.create_task(client.exec(container_id, "sleep", "1000")) for _ in range(6)]
        await asyncio.wait(calls, timeout=0.02 * number)
        await client.remove(container_id)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, GRPCError):
                assert outcome.status in {Status.FAILED_PRECONDITION, Status.NOT_FOUND, Status.UNKNOWN}, outcome
            else:
                assert isinstance(outcome, cri.ExecSyncResponse)
                assert outcome.exit_code == 137


async def test_a_container_that_does_not_run_is_refused(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox)
    with pytest.raises(GRPCError, match="it is created") as caught:
        await client.exec(container_id, "true")
    assert caught.value.status is Status.FAILED_PRECONDITION
