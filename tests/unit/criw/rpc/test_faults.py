import asyncio
import errno
import logging
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw.errors import DeadlineExceeded, Failed, Fault, NotFound, Unavailable
from criw.rpc.client import Channel, call
from criw.rpc.faults import STATUS, status_of
from criw_proto.criw.network.v1 import (
    AttachRequest,
    NetworkStub,
)
from support.serving import Scripted, raising, serving

ATTACH = "/criw.network.v1.Network/Attach"
POD = AttachRequest(pod_id="p")


class OutOfPower(Unavailable):
    """A special case an agent might make of a fault."""


@pytest.mark.parametrize("kind", STATUS)
async def test_a_fault_arrives_as_the_same_fault(kind: type[Fault], path: Path, channel: Channel) -> None:
    message = "cannot do it: 50 % of “ä”\nis missing"
    async with serving(path, raising(kind(message))):
        with pytest.raises(kind) as caught:
            await call(NetworkStub(channel).attach, POD)
        assert type(caught.value) is kind
        assert str(caught.value) == message


def test_faults_and_statuses_are_one_to_one() -> None:
    assert set(STATUS) == set(Fault.__subclasses__())
    assert len(set(STATUS.values())) == len(STATUS)


async def test_a_special_case_of_a_fault_arrives_as_that_fault(path: Path, channel: Channel) -> None:
    assert status_of(OutOfPower()) is Status.UNAVAILABLE
    async with serving(path, raising(OutOfPower("cannot go on"))):
        with pytest.raises(Unavailable, match="cannot go on"):
            await call(NetworkStub(channel).attach, POD)


async def test_a_fault_in_a_task_group_arrives_as_that_fault(path: Path, channel: Channel) -> None:
    async def fail() -> None:
        raise NotFound("cannot find it")

    async def work(_: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    async with serving(path, Scripted(work)):
        with pytest.raises(NotFound, match="cannot find it"):
            await call(NetworkStub(channel).attach, POD)


async def test_a_status_without_a_fault_arrives_as_failed(path: Path, channel: Channel) -> None:
    async with serving(path, raising(GRPCError(Status.ABORTED, "try another transaction"))):
        with pytest.raises(Failed, match="try another transaction"):
            await call(NetworkStub(channel).attach, POD)


async def test_an_unexpected_error_is_logged_and_tells_the_client_nothing(
    path: Path, channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path, raising(RuntimeError("secret"))):
        with pytest.raises(GRPCError) as caught:
            await NetworkStub(channel).attach(POD)
    assert caught.value.status is Status.INTERNAL
    assert "secret" not in (caught.value.message or "")
    (record,) = (
        record for record in caplog.records if record.levelno >= logging.ERROR and record.name == "criw.rpc.faults"
    )
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_is_told(number: int, path: Path, channel: Channel) -> None:
    async with serving(path, raising(OSError(number, "full", "/var/lib/x"))):
        with pytest.raises(GRPCError, match="/var/lib/x") as caught:
            await NetworkStub(channel).attach(POD)
    assert caught.value.status is Status.RESOURCE_EXHAUSTED


async def test_what_runs_out_of_time_is_told_as_that(path: Path, channel: Channel) -> None:
    async with serving(path, raising(TimeoutError())):
        with pytest.raises(DeadlineExceeded, match=r"^cannot finish Attach in time"):
            await call(NetworkStub(channel).attach, POD)
