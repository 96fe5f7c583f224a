"""The log files conmon writes, and their rotation."""

import asyncio
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from support.client import Client

LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([FP]) (.*)")
COUNTER = ("sh", "-c", "i=0; until test -e /stop; do i=$((i+1)); echo $i; done; echo $i in all")


async def reopen(client: Client, container_id: str) -> None:
    await client.runtime.reopen_container_log(cri.ReopenContainerLogRequest(container_id=container_id))


def path_of(client: Client, pod_id: str) -> Path:
    return Path(client._pods[pod_id].log_directory, "main.log")


def said(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Stream and text of whole lines, put together from their parts."""
    found, parts = [], {"stdout": "", "stderr": ""}
    for line in lines:
        match = LINE.fullmatch(line)
        assert match is not None, line
        _, stream, tag, text = match.groups()
        parts[stream] += text
        if tag == "F":
            found.append((stream, parts[stream]))
            parts[stream] = ""
    assert parts == {"stdout": "", "stderr": ""}
    return found


async def test_both_streams_and_an_unfinished_line_which_ends_with_the_container(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, ("sh", "-c", "echo out; echo err >&2; echo; printf unfinished"))
    await client.exited(container_id)
    lines = client.log(pod_id)
    assert sorted(said(lines)) == [("stderr", "err"), ("stdout", ""), ("stdout", "out"), ("stdout", "unfinished")]


async def test_lines_of_any_length_can_be_put_together_again(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    sizes = (1, 8191, 8192, 8193, 16384, 100_000, 1_000_000)
    script = "; ".join(f"head -c {size} /dev/zero | tr '\\0' x; echo" for size in sizes)
    await client.exited(await client.run(pod_id, busybox, ("sh", "-c", script)))
    lines = client.log(pod_id)
    assert [len(text) for _, text in said(lines)] == list(sizes)
    assert any(" P " in line for line in lines)


async def test_the_log_is_there_when_start_returns_and_stays_after_the_removal(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, ("true",))
    path = path_of(client, pod_id)
    assert path.is_file()
    assert (await client.status(container_id)).log_path == str(path)
    await client.exited(container_id)
    await client.remove(container_id)
    assert path.is_file()


async def test_reopening_under_load_loses_and_doubles_nothing(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, COUNTER)
    path = path_of(client, pod_id)
    rotated: list[Path] = []
    for number in range(10):
        rotated.append(path.rename(path.with_name(f"main.log.{number}")))
        await asyncio.gather(reopen(client, container_id), reopen(client, container_id))  # the kubelet's retry
    await client.output(container_id, "touch", "/stop")
    await client.exited(container_id)
    lines = [line for file in (*rotated, path) for line in file.read_text().splitlines()]
    *numbers, last = [text for _, text in said(lines)]
    assert last == f"{len(numbers)} in all"
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert len(numbers) > len(rotated)


async def test_a_log_that_was_not_renamed_is_kept(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, ("sh", "-c", "echo before; exec sleep 600"))
    async with asyncio.timeout(10):
        while not client.log(pod_id):
            await asyncio.sleep(0.01)
    await asyncio.gather(*(reopen(client, container_id) for _ in range(3)))
    assert said(client.log(pod_id)) == [("stdout", "before")]


@pytest.mark.parametrize("what", ["file", "directory"])
async def test_a_log_that_was_deleted_is_made_again(client: Client, busybox: str, what: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, busybox, ("sh", "-c", "while :; do echo tick; sleep 0.02; done"))
    path = path_of(client, pod_id)
    if what == "file":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    await reopen(client, container_id)
    async with asyncio.timeout(10):
        while not client.log(pod_id):
            await asyncio.sleep(0.01)
    assert said(client.log(pod_id)[:1]) == [("stdout", "tick")]


async def test_only_logs_of_running_containers_are_reopened(client: Client, busybox: str) -> None:
    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox, ("true",))
    with pytest.raises(GRPCError, match="created, not running"):
        await reopen(client, container_id)
    await client.start(container_id)
    await client.exited(container_id)
    with pytest.raises(GRPCError, match="exited, not running") as caught:
        await reopen(client, container_id)
    assert caught.value.status is Status.FAILED_PRECONDITION


@pytest.mark.parametrize("log_path", ["/var/log/x.log", "../../outside.log"])
async def test_a_log_path_that_leads_out_of_the_pods_directory_is_refused(
    client: Client, busybox: str, log_path: str
) -> None:
    def change(config: cri.ContainerConfig) -> None:
        config.log_path = log_path

    pod_id = await client.run_pod()
    with pytest.raises(GRPCError, match="must be relative") as caught:
        await client.create(pod_id, busybox, change=change)
    assert caught.value.status is Status.INVALID_ARGUMENT


async def test_a_container_without_a_log_runs(client: Client, busybox: str) -> None:
    def change(config: cri.ContainerConfig) -> None:
        config.log_path = ""

    pod_id = await client.run_pod()
    container_id = await client.create(pod_id, busybox, ("sh", "-c", "echo nobody hears; exit 4"), change=change)
    await client.start(container_id)
    status = await client.exited(container_id)
    assert (status.exit_code, status.log_path) == (4, "")
