"""Pulls that callers share."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, Counter

from criw.errors import NotFound
from criw_image.joined import JoinedPulls
from criw_image.reference import Reference, parse_reference
from criw_proto.criw.image.v1 import LayerProgress
from criw_proto.runtime.v1 import AuthConfig

NAME = parse_reference("busybox")
SOMEBODY = AuthConfig(username="somebody")


class Pulling:
    """What is pulled, and when it ends."""

    def __init__(self) -> None:
        self.started: list[tuple[Reference, AuthConfig | None]] = []
        self.undone = 0
        self.running = asyncio.Event()
        self.end = asyncio.Event()
        self.error: Exception | None = None

    async def pull(self, reference: Reference, auth: AuthConfig | None, layers: list[LayerProgress]) -> str:
        self.started.append((reference, auth))
        self.running.set()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # undoing takes a while
            self.undone += 1
            raise
        if self.error is not None:
            raise self.error
        return f"id {len(self.started)}"


@pytest.fixture
def pulling() -> Pulling:
    return Pulling()


@pytest.fixture
def outcomes() -> Counter:
    return Counter("pulls", "Pulls.", ["code"], registry=CollectorRegistry())


@pytest_asyncio.fixture
async def pulls(pulling: Pulling, outcomes: Counter) -> AsyncIterator[JoinedPulls]:
    async with JoinedPulls(pulling.pull, outcomes) as joined:
        yield joined
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def wanted(pulls: JoinedPulls, reference: Reference = NAME, auth: AuthConfig | None = None) -> str:
    async with pulls.join(reference, auth) as running:
        return await asyncio.shield(running.task)


def count(outcomes: Counter, code: str) -> float:
    (metric,) = outcomes.collect()
    return sum(one.value for one in metric.samples if one.name == "pulls_total" and one.labels == {"code": code})


async def test_callers_of_one_image_share_one_pull(pulls: JoinedPulls, pulling: Pulling, outcomes: Counter) -> None:
    callers = [asyncio.create_task(wanted(pulls)) for _ in range(3)]
    await pulling.running.wait()
    await asyncio.sleep(0)
    pulling.end.set()
    assert set(await asyncio.gather(*callers)) == {"id 1"}
    assert len(pulling.started) == 1
    assert await wanted(pulls) == "id 2"
    assert count(outcomes, "OK") == 2


async def test_other_credentials_are_another_pull(pulls: JoinedPulls, pulling: Pulling) -> None:
    pulling.end.set()
    results = await asyncio.gather(wanted(pulls), wanted(pulls, auth=SOMEBODY), wanted(pulls, parse_reference("b")))
    assert len(pulling.started) == 3
    assert len(results) == 3


async def test_all_callers_get_the_error(pulls: JoinedPulls, pulling: Pulling, outcomes: Counter) -> None:
    pulling.error = NotFound("cannot find it")
    pulling.end.set()
    results = await asyncio.gather(wanted(pulls), wanted(pulls), return_exceptions=True)
    assert list(results) == [pulling.error] * 2
    assert count(outcomes, "NOT_FOUND") == 1


async def test_a_caller_that_leaves_does_not_stop_the_others(pulls: JoinedPulls, pulling: Pulling) -> None:
    leaves, stays = asyncio.create_task(wanted(pulls)), asyncio.create_task(wanted(pulls))
    await pulling.running.wait()
    leaves.cancel()
    await asyncio.wait({leaves})
    assert leaves.cancelled()
    pulling.end.set()
    assert await stays == "id 1"
    assert pulling.undone == 0


async def test_the_last_caller_takes_the_pull_along(pulls: JoinedPulls, pulling: Pulling, outcomes: Counter) -> None:
    callers = [asyncio.create_task(wanted(pulls)) for _ in range(2)]
    await pulling.running.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert pulling.undone == 1  # before the caller is told
    assert count(outcomes, "CANCELLED") == 1


async def test_a_pull_that_is_being_undone_is_not_joined(pulls: JoinedPulls, pulling: Pulling) -> None:
    first = asyncio.create_task(wanted(pulls))
    await pulling.running.wait()
    first.cancel()
    second = asyncio.create_task(wanted(pulls))
    await asyncio.wait({first})
    pulling.end.set()
    assert await second == "id 2"


async def test_the_end_of_the_block_ends_all(pulling: Pulling, outcomes: Counter) -> None:
    async with JoinedPulls(pulling.pull, outcomes) as pulls:
        caller = asyncio.create_task(wanted(pulls))
        await pulling.running.wait()
    assert pulling.undone == 1
    await asyncio.wait({caller})
    assert caller.cancelled()
