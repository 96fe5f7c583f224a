"""The door in front of a real crew whose agents are restarted and killed while calls come."""

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from support.supervised import Supervised, lent, running_supervised

# The C++ implementation, as an independent client. It has no types, and mypy takes our proto/grpc for it.
grpc = importlib.import_module("grpc")
RUNTIME = "/runtime.v1.RuntimeService/"


@pytest_asyncio.fixture(scope="module")
async def supervised(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Supervised]:
    async with running_supervised(tmp_path_factory.mktemp("supervised")) as supervised:
        yield supervised


@pytest_asyncio.fixture
async def own(supervised: Supervised) -> AsyncIterator[Supervised]:
    async with lent(supervised) as own:
        yield own


async def repeatedly(call: Callable[[], Awaitable[object]], stop: asyncio.Event) -> int:
    """Make a call until the test is over; how often. Its first error ends the test."""
    count = 0
    while not stop.is_set():
        await call()
        count += 1
    return count


async def conditions(own: Supervised) -> dict[str, bool]:
    reply = await own.client.runtime.status(cri.StatusRequest())
    assert reply.status is not None
    return {one.type: one.status for one in reply.status.conditions if one.type.endswith("Ready")}


async def test_no_call_fails_while_the_supervisor_is_restarted(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, own.image)
    stop = asyncio.Event()
    names = iter(range(1000))

    async def life() -> None:
        name = f"c{next(names)}"
        made = await client.run(pod_id, own.image, name=name)
        await client.stop(made)
        await client.remove(made)

    async def lists() -> None:
        reply = await client.runtime.list_containers(cri.ListContainersRequest())
        assert container_id in {one.id for one in reply.containers}

    async with asyncio.TaskGroup() as tasks:
        calls = [
            tasks.create_task(repeatedly(life, stop)),
            tasks.create_task(repeatedly(lists, stop)),
            tasks.create_task(repeatedly(lambda: client.output(container_id, "true"), stop)),
        ]
        for _ in range(3):
            await asyncio.wait(calls, timeout=0.5)
            await own.crew.stop("supervisor")
            await own.crew.start("supervisor")
        stop.set()
    assert all(call.result() > 3 for call in calls)


async def test_reading_goes_on_through_a_killed_supervisor(own: Supervised) -> None:
    client = own.client
    container_id = await client.run(await client.run_pod(), own.image)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(repeatedly(lambda: client.status(container_id), stop))
        tasks.create_task(repeatedly(lambda: client.runtime.list_pod_sandbox(cri.ListPodSandboxRequest()), stop))
        for _ in range(3):
            await asyncio.sleep(0.2)
            await own.kill_supervisor()
            await own.start_supervisor()
        stop.set()


async def test_status_tells_who_is_down_in_time_and_who_is_back(own: Supervised) -> None:
    assert await conditions(own) == {"RuntimeReady": True, "NetworkReady": True}
    await own.kill_supervisor()
    await own.crew.kill("network")
    started = time.monotonic()
    assert await conditions(own) == {"RuntimeReady": False, "NetworkReady": False}
    assert time.monotonic() - started < 2
    await own.start_supervisor()
    await own.crew.start("network")
    assert await conditions(own) == {"RuntimeReady": True, "NetworkReady": True}


async def test_a_killed_door_takes_nothing_with_it(own: Supervised) -> None:
    client = own.client
    pod_id = await client.run_pod()
    container_id = await client.run(pod_id, own.image)
    making = asyncio.create_task(client.create(pod_id, own.image, name="other"))
    await asyncio.wait({making}, timeout=0.02)
    await own.crew.kill("cri")
    await asyncio.gather(making, return_exceptions=True)
    await own.crew.start("cri")
    assert (await client.status(container_id)).state is cri.ContainerState.CONTAINER_RUNNING
    other = await client.create(pod_id, own.image, name="other")  # joins the first, or finds its work, or makes it
    await client.start(other)


async def test_a_grpc_client_of_another_make_is_served(own: Supervised) -> None:
    container_id = await own.client.run(await own.client.run_pod(), own.image)

    def ask(method: str, request: bytes, timeout: float = 20) -> tuple[str, bytes]:
        with grpc.insecure_channel(f"unix:{own.crew.config.socket('cri')}") as channel:
            call = channel.unary_unary(method)
            metadata = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "")]
            try:
                return "OK", bytes(call(request, timeout=timeout, metadata=metadata))
            except grpc.RpcError as err:
                return err.code().name, err.details().encode()

    wanted = cri.ContainerStatusRequest(container_id=container_id)
    code, reply = await asyncio.to_thread(ask, f"{RUNTIME}ContainerStatus", bytes(wanted))
    assert code == "OK"
    assert cri.ContainerStatusResponse.parse(reply).status == await own.client.status(container_id)
    unknown = cri.ContainerStatusRequest(container_id="f" * 64)
    code, reply = await asyncio.to_thread(ask, f"{RUNTIME}ContainerStatus", bytes(unknown))
    assert (code, b"cannot find container" in reply) == ("NOT_FOUND", True)
    absent = ("GetContainerEvents", "CheckpointContainer", "Nonsense")
    for method in (*(f"{RUNTIME}{name}" for name in absent), "/no.Such/Method"):
        code, _ = await asyncio.to_thread(ask, method, b"")
        assert code == "UNIMPLEMENTED", method
    slow = cri.ExecSyncRequest(container_id=container_id, cmd=["sleep", "30"])
    code, _ = await asyncio.to_thread(ask, f"{RUNTIME}ExecSync", bytes(slow), 0.5)
    assert code == "DEADLINE_EXCEEDED"


async def test_a_call_to_an_agent_that_stays_away_is_unavailable(own: Supervised) -> None:
    await own.kill_supervisor()
    impatient = cri.RuntimeServiceStub(own.crew.channel("cri"), timeout=0.5)
    with pytest.raises(GRPCError, match="cannot reach criw-supervisor") as caught:
        await impatient.list_containers(cri.ListContainersRequest())
    assert caught.value.status is Status.UNAVAILABLE
    await own.start_supervisor()
