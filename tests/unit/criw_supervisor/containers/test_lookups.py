"""Paths of a request that hang, as on a file server that is away: whoever names one waits, and nobody else."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from criw.errors import DeadlineExceeded, InvalidArgument
from criw_proto.runtime import v1 as cri
from criw_supervisor.containers import request
from criw_supervisor.containers.lookups import Lookups, make_log_directory
from criw_supervisor.oci import devices, mounts
from support.fake_agents import NAME
from support.rooms import Rooms


class Server:
    """A file server that is away until `back` is set."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.waiting: list[str] = []
        self.daemons: list[bool] = []

    def look(self, path: str, **_: object) -> str:
        self.waiting.append(path)
        self.daemons.append(threading.current_thread().daemon)
        assert self.back.wait(30)
        return path


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.back.set()


async def test_a_path_that_hangs_costs_one_thread_however_often_it_is_asked_for(server: Server) -> None:
    lookups = Lookups(limit_s=0.05)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded, match=r"cannot look at /nfs/a: no answer after 0\.05 s"):
            await lookups.look("source", "/nfs/a", lambda: server.look("/nfs/a"))
    assert server.waiting == ["/nfs/a"]
    assert server.daemons == [True]  # else the process would not end before the server is back
    assert await lookups.look("source", "/usr", lambda: "at once") == "at once"
    server.back.set()
    assert await Lookups().look("source", "/nfs/a", lambda: server.look("/nfs/a")) == "/nfs/a"
    async with asyncio.timeout(5):
        await lookups._operations.drain()


@pytest.mark.parametrize("what", ["mount", "device", "log"])
async def test_containers_on_a_server_that_is_away_fail_and_leave_nothing_and_no_other_waits(
    rooms: Rooms, server: Server, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pod = await rooms.run_pod()
    pod.config.log_directory = "/nfs/logs"
    before = await rooms.contents()
    rooms.create._lookups = Lookups(limit_s=0.1)
    monkeypatch.setattr(mounts, "look", server.look)
    monkeypatch.setattr(devices, "look", server.look)
    monkeypatch.setattr("criw_supervisor.containers.lookups.make_log_directory", server.look)
    for number in range(12):  # more than the threads all share
        config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name=f"c{number}"), image=cri.ImageSpec(image=NAME))
        match what:
            case "mount":
                config.mounts = [cri.Mount(container_path="/data", host_path=f"/nfs/{number % 2}")]
            case "device":
                config.devices = [cri.Device(host_path=f"/nfs/{number % 2}", permissions="r")]
            case _:
                config.log_path = "main.log"
        with pytest.raises(DeadlineExceeded, match="is it on a file server that is away"):
            await rooms.containers.create(pod, request.plan(f"{number}" * 64, config, pod))
    assert len(server.waiting) <= 2
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 5) == "free"
    assert await rooms.contents() == before
    server.back.set()
    async with asyncio.timeout(5):
        await rooms.create._lookups._operations.drain()


@pytest.mark.parametrize("directory", ["/proc/nothing/logs", "/etc/passwd/logs"])
def test_a_log_directory_that_cannot_be_is_refused_by_name(directory: str) -> None:
    with pytest.raises(InvalidArgument, match=f"cannot make the log directory {directory}"):
        make_log_directory(Path(directory, "a.log"))
