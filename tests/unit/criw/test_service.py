"""Every process is started by `run_service()`: here a tiny one is, as a real process, and treated well and badly."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from criw import __version__
from criw.config.common import AgentName
from criw.config.crew import CrewFacts
from criw.config.load import load
from criw.rpc.client import Channel, call
from criw.service import be_spared
from criw_proto.criw.network.v1 import AttachRequest, DetachRequest, NetworkStub
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthCheckResponseServingStatus, HealthStub
from support.crew import python_environment
from support.own import free_port

PROGRAM = Path(__file__).with_name("tiny_agent.py")
LIMIT_S = 20.0
# Hands descriptor argv[1] over as systemd does: as number 3, with our pid, which is the program's after exec.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
POD = AttachRequest(pod_id="p")


class Tiny:
    """A started tiny agent."""

    def __init__(self, settings: CrewFacts, process: asyncio.subprocess.Process) -> None:
        self.settings = settings
        self.process = process

    async def says(self, line: str) -> None:
        assert self.process.stdout is not None
        said = await asyncio.wait_for(self.process.stdout.readline(), LIMIT_S)
        assert said.decode().strip() == line, await self.stderr()

    async def stderr(self) -> str:
        """What it says until its end."""
        assert self.process.stderr is not None
        return (await asyncio.wait_for(self.process.stderr.read(), LIMIT_S)).decode()

    async def end(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        said = await self.stderr()
        return await asyncio.wait_for(self.process.wait(), LIMIT_S), said

    async def get(self, path: str, *, instance: int = 0) -> tuple[int, str]:
        host, port = self.settings.network.address(instance)
        async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}{path}") as reply:
            return reply.status, await reply.text()


class Starter:
    """Starts tiny agents on one configuration; all are this one of the crew."""

    def __init__(self, directory: Path, agent: AgentName = "network") -> None:
        self.config_path = directory / "criw.toml"
        self.config_path.write_text(
            f'root = "{directory}/lib"\nrun = "{directory}/run"\n[{agent}]\nhttp = "127.0.0.1:{free_port()}"\n'
        )
        self.settings = load(CrewFacts, self.config_path, {})
        self.socket = self.settings.socket(agent)
        self._agent = agent
        self._started: list[asyncio.subprocess.Process] = []

    async def __call__(
        self, *args: str, env: Mapping[str, str] | None = None, hand_over: int | None = None, pid_error: int = 0
    ) -> Tiny:
        """Start one; `hand_over` is a descriptor to give it by socket activation."""
        program = [os.fspath(PROGRAM), "--config", os.fspath(self.config_path), *args]
        if hand_over is not None:
            program = ["-c", HAND_OVER, str(hand_over), str(pid_error), *program]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=python_environment() | {"TINY_AGENT": self._agent} | dict(env or {}),
            pass_fds=() if hand_over is None else (hand_over,),
        )
        self._started.append(process)
        return Tiny(self.settings, process)

    async def ready(self, channel: Channel, *args: str, env: Mapping[str, str] | None = None) -> Tiny:
        """Start one and wait until it answers."""
        tiny = await self(*args, env=env)
        await serving(channel)
        return tiny

    async def kill_all(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def serving(channel: Channel) -> None:
    reply = await call(HealthStub(channel).check, HealthCheckRequest(), timeout_s=LIMIT_S)
    assert reply.status == HealthCheckResponseServingStatus.SERVING


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Starter]:
    starter = Starter(tmp_path)
    yield starter
    await starter.kill_all()


@pytest_asyncio.fixture
async def channel(start: Starter) -> AsyncIterator[Channel]:
    channel = Channel(start.socket)
    yield channel
    channel.close()


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A service manager's notification socket, at an abstract address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")
        manager.setblocking(False)
        yield manager


def notify_to(manager: socket.socket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": "@" + manager.getsockname()[1:].decode()}


async def notification(manager: socket.socket) -> str:
    said = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(manager, 4096), LIMIT_S)
    return said.decode()


async def test_a_process_starts_and_stops(start: Starter, channel: Channel, manager: socket.socket) -> None:
    tiny = await start(env=notify_to(manager))
    assert await notification(manager) == "READY=1"
    await serving(channel)
    assert stat.S_IMODE(start.socket.stat().st_mode) == 0o660
    assert stat.S_IMODE(start.settings.state_dir("network").stat().st_mode) == 0o700
    assert await tiny.get("/readyz") == (200, "ok\n")
    assert json.loads((await tiny.get("/version"))[1]) == {"agent": "network", "version": __version__}
    assert 'criw_rpc_total{code="OK",method="/grpc.health.v1.Health/Check"} 1.0' in (await tiny.get("/metrics"))[1]
    tiny.process.send_signal(signal.SIGTERM)
    assert await notification(manager) == "STOPPING=1"
    await tiny.says("closed")
    code, said = await tiny.end()
    assert code == 0
    assert [line.partition("criw-network: ")[2].split()[0] for line in said.splitlines()] == ["ready", "stopped"]
    assert not start.socket.exists()


async def test_health_knows_the_services_by_name(start: Starter, channel: Channel) -> None:
    await start.ready(channel)
    for service in ("", "criw.network.v1.Network"):
        reply = await call(HealthStub(channel).check, HealthCheckRequest(service=service))
        assert reply.status == HealthCheckResponseServingStatus.SERVING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_calls_finish(
    number: signal.Signals, start: Starter, channel: Channel, manager: socket.socket
) -> None:
    tiny = await start(env=notify_to(manager))
    calling = asyncio.create_task(NetworkStub(channel).attach(POD))
    await tiny.says("begun")
    tiny.process.send_signal(number)
    assert [await notification(manager) for _ in range(2)] == ["READY=1", "STOPPING=1"]
    assert not calling.done()
    tiny.process.send_signal(signal.SIGUSR1)
    assert (await asyncio.wait_for(calling, LIMIT_S)).netns_path == "/netns/p"
    assert (await tiny.end())[0] == 0


async def test_a_call_that_does_not_finish_is_ended(start: Starter, channel: Channel) -> None:
    tiny = await start.ready(channel, env={"CRIW_DRAIN_TIMEOUT_S": "0.1"})
    calling = asyncio.create_task(call(NetworkStub(channel).attach, POD, timeout_s=LIMIT_S))
    await tiny.says("begun")
    tiny.process.send_signal(signal.SIGTERM)
    code, said = await tiny.end()
    assert code == 0
    assert "stopping with calls still running" in said
    second = await start()  # and the caller comes back
    await second.says("begun")
    second.process.send_signal(signal.SIGUSR1)
    assert (await asyncio.wait_for(calling, LIMIT_S)).netns_path == "/netns/p"


async def test_a_killed_process_is_followed_by_another(start: Starter, channel: Channel) -> None:
    tiny = await start.ready(channel)
    calling = asyncio.create_task(call(NetworkStub(channel).attach, POD, timeout_s=LIMIT_S))
    await tiny.says("begun")
    tiny.process.kill()
    await tiny.process.wait()
    assert start.socket.exists()
    second = await start()
    await second.says("begun")
    second.process.send_signal(signal.SIGUSR1)
    assert (await asyncio.wait_for(calling, LIMIT_S)).netns_path == "/netns/p"


async def test_a_second_process_on_the_same_directories_is_refused(start: Starter, channel: Channel) -> None:
    first = await start.ready(channel)
    code, said = await (await start()).end()
    assert code == 78
    (line,) = said.splitlines()
    assert line.startswith(f"criw-network: cannot use {start.settings.state_dir('network')}: another criw-network")
    assert f"(pid {first.process.pid})" in line
    await serving(channel)


async def test_instances_of_an_agent_have_their_own_sockets_and_ports(start: Starter, channel: Channel) -> None:
    await start.ready(channel)
    second = await start("--instance", "1")
    async with Channel(start.settings.socket("network", 1)) as other:
        await call(HealthStub(other).check, HealthCheckRequest(), timeout_s=LIMIT_S)
    assert await second.get("/readyz", instance=1) == (200, "ok\n")


async def test_a_taken_port_is_told_with_the_remedy_and_served_when_it_is_free(
    start: Starter, channel: Channel
) -> None:
    host, port = start.settings.network.address()
    with socket.socket() as taken:
        taken.bind((host, port))
        taken.listen()
        tiny = await start.ready(channel)
    assert tiny.process.stderr is not None
    said = [(await asyncio.wait_for(tiny.process.stderr.readline(), LIMIT_S)).decode().rstrip() for _ in range(3)]
    assert f"cannot listen on {host}:{port}" in said[0]
    assert said[0].endswith("set http in [network] to another address")
    assert "health and metrics are served now" in said[2]
    assert await tiny.get("/readyz") == (200, "ok\n")


async def test_a_process_whose_port_stays_taken_stops_all_the_same(start: Starter, channel: Channel) -> None:
    with socket.socket() as taken:
        taken.bind(start.settings.network.address())
        taken.listen()
        tiny = await start.ready(channel)
        tiny.process.send_signal(signal.SIGTERM)
        assert (await tiny.end())[0] == 0


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CRIW_CONFIG_": "x"}, "unknown key config_"),
        ({"CRIW_NETWORK_BRIGDE": "x"}, "unknown key network.brigde"),
        ({"CRIW_LOG_LEVEL": "loud"}, "log_level"),
    ],
)
async def test_a_wrong_configuration_is_one_line_and_its_exit_code(
    env: Mapping[str, str], said: str, start: Starter
) -> None:
    code, stderr = await (await start(env=env)).end()
    assert code == 78
    (line,) = stderr.splitlines()
    assert line.startswith("criw-network: cannot ")
    assert said in line
    assert not start.socket.exists()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("FailedPrecondition", 78), ("DataLoss", 78), ("Unavailable", 1), ("ResourceExhausted", 1)],
)
async def test_a_fault_while_building_is_one_line(fault: str, expected: int, start: Starter) -> None:
    """78 tells the service manager that starting it again will not help."""
    code, said = await (await start(env={"TINY_BUILD": fault})).end()
    assert (code, said) == (expected, "criw-network: cannot build it\n")


async def test_a_bug_while_building_leaves_its_traceback(start: Starter) -> None:
    code, said = await (await start(env={"TINY_BUILD": "bug"})).end()
    assert code == 1
    assert said.splitlines()[-1] == "RuntimeError: bug"


async def test_nobody_is_served_before_the_state_is_recovered(start: Starter, channel: Channel) -> None:
    tiny = await start(env={"TINY_BUILD": "wait"})
    await tiny.says("building")
    assert (await tiny.get("/healthz"))[0] == 200
    assert await tiny.get("/readyz") == (503, "not ready\n")
    calling = asyncio.create_task(call(NetworkStub(channel).detach, DetachRequest(pod_id="p"), timeout_s=LIMIT_S))
    await asyncio.wait({calling}, timeout=0.1)
    assert not calling.done()
    tiny.process.send_signal(signal.SIGUSR1)
    await asyncio.wait_for(calling, LIMIT_S)
    assert (await tiny.get("/readyz"))[0] == 200


async def test_a_signal_ends_a_process_that_is_still_recovering(start: Starter) -> None:
    tiny = await start(env={"TINY_BUILD": "wait"})
    await tiny.says("building")
    tiny.process.send_signal(signal.SIGTERM)
    code, said = await tiny.end()
    assert code == 0
    assert said.splitlines()[-1].endswith("stopped before it was ready")


async def test_the_watchdog_is_fed_until_the_end(start: Starter, manager: socket.socket) -> None:
    tiny = await start(env={**notify_to(manager), "WATCHDOG_USEC": "100000"})
    said = [await notification(manager) for _ in range(4)]
    assert said == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
    tiny.process.send_signal(signal.SIGTERM)
    while (last := await notification(manager)) == "WATCHDOG=1":
        pass
    assert last == "STOPPING=1"


async def test_the_watchdog_of_another_process_is_not_fed(start: Starter, manager: socket.socket) -> None:
    tiny = await start(env={**notify_to(manager), "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
    assert await notification(manager) == "READY=1"
    tiny.process.send_signal(signal.SIGTERM)
    assert await notification(manager) == "STOPPING=1"


async def test_a_deaf_service_manager_stops_nothing(start: Starter, channel: Channel, tmp_path: Path) -> None:
    tiny = await start.ready(channel, env={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    tiny.process.send_signal(signal.SIGTERM)
    code, said = await tiny.end()
    assert code == 0
    assert "cannot notify the service manager" in said


async def test_logs_may_be_json(start: Starter, channel: Channel) -> None:
    tiny = await start.ready(channel, env={"CRIW_LOG_FORMAT": "json"})
    tiny.process.send_signal(signal.SIGTERM)
    events = [json.loads(line) for line in (await tiny.end())[1].splitlines()]
    assert [event["message"] for event in events] == ["ready", "stopped"]
    assert events[0]["socket"] == str(start.socket)


async def test_the_version_is_told(start: Starter) -> None:
    tiny = await start("--version")
    await tiny.says(__version__)
    assert await tiny.end() == (0, "")


@pytest.fixture
def listener(start: Starter) -> Iterator[socket.socket]:
    """The agent's socket as systemd would listen on it."""
    start.socket.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(start.socket))
        listener.listen()
        yield listener


async def test_a_socket_that_is_handed_over_is_served_and_kept(
    start: Starter, channel: Channel, listener: socket.socket
) -> None:
    for pod in ("a", "b"):  # callers wait in its queue while nobody serves
        calling = asyncio.create_task(call(NetworkStub(channel).attach, AttachRequest(pod_id=pod), timeout_s=LIMIT_S))
        tiny = await start(env={"LISTEN_FDS": "1"}, hand_over=listener.fileno())
        await tiny.says("begun")
        tiny.process.send_signal(signal.SIGUSR1)
        assert (await asyncio.wait_for(calling, LIMIT_S)).netns_path == f"/netns/{pod}"
        tiny.process.send_signal(signal.SIGTERM)
        assert (await tiny.end())[0] == 0
        assert start.socket.is_socket()


async def test_a_socket_for_another_process_is_not_taken(start: Starter, listener: socket.socket) -> None:
    handed = start.socket.stat().st_ino
    tiny = await start(env={"LISTEN_FDS": "1"}, hand_over=listener.fileno(), pid_error=1)
    assert tiny.process.stderr is not None
    assert b"ready" in await asyncio.wait_for(tiny.process.stderr.readline(), LIMIT_S)
    async with Channel(start.socket) as channel:
        await serving(channel)
    assert start.socket.stat().st_ino != handed  # it has made one of its own


async def test_more_than_one_socket_is_refused(start: Starter, listener: socket.socket) -> None:
    code, said = await (await start(env={"LISTEN_FDS": "2"}, hand_over=listener.fileno())).end()
    assert code == 78
    assert said.startswith("criw-network: cannot serve on 2 sockets")


@pytest.mark.parametrize("kind", ["tcp", "not listening", "no socket"])
async def test_a_descriptor_that_is_not_such_a_socket_is_refused(kind: str, start: Starter) -> None:
    with contextlib.ExitStack() as stack:
        match kind:
            case "tcp":
                tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                handed = tcp.fileno()
            case "not listening":
                handed = stack.enter_context(socket.socket(socket.AF_UNIX)).fileno()
            case _:
                handed = stack.enter_context(PROGRAM.open("rb")).fileno()
        code, said = await (await start(env={"LISTEN_FDS": "1"}, hand_over=handed)).end()
    assert code == 78
    (line,) = said.splitlines()
    assert line.startswith("criw-network: cannot serve on the ")


# --- started by root


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that all users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="criw-service-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextlib.asynccontextmanager
async def starting(directory: Path, agent: AgentName) -> AsyncIterator[tuple[Starter, Channel]]:
    starter = Starter(directory, agent)
    channel = Channel(starter.socket)
    try:
        yield starter, channel
    finally:
        channel.close()
        await starter.kill_all()


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@pytest.mark.root
async def test_an_agent_is_its_own_user_and_so_is_all_it_makes(open_directory: Path) -> None:
    async with starting(open_directory, "image") as (start, channel):
        tiny = await start.ready(channel)
        user, group = start.settings.image.user, start.settings.crew_gid
        assert Path(f"/proc/{tiny.process.pid}/environ").stat().st_uid == 0  # nor can its own user trace it
        assert f"Uid:\t{user}\t{user}\t{user}\t{user}\n" in Path(f"/proc/{tiny.process.pid}/status").read_text()
        assert owner_and_mode(start.socket) == (user, group, 0o660)
        assert owner_and_mode(start.settings.run_dir("image")) == (user, group, 0o750)
        assert owner_and_mode(start.settings.state_dir("image")) == (user, group, 0o700)
        assert (start.settings.state_dir("image") / "0.lock").stat().st_uid == user
        assert owner_and_mode(start.settings.run) == (0, 0, 0o755)
        tiny.process.send_signal(signal.SIGTERM)
        assert (await tiny.end())[0] == 0
        assert not start.socket.exists()


@pytest.mark.root
async def test_an_agent_that_stays_root_lets_the_crew_reach_it(start: Starter, channel: Channel) -> None:
    await start.ready(channel, env={"CRIW_GROUP": "daemon"})
    assert owner_and_mode(start.socket) == (0, start.settings.crew_gid, 0o660)
    assert owner_and_mode(start.settings.run_dir("network")) == (0, start.settings.crew_gid, 0o750)


@pytest.mark.root
async def test_the_doors_socket_is_for_its_group_and_outlives_it(open_directory: Path) -> None:
    """It is in a directory of root's, from which the door, no longer root, can take nothing away."""
    async with starting(open_directory, "cri") as (start, channel):
        for _ in range(2):
            tiny = await start.ready(channel, env={"CRIW_GROUP": "daemon"})
            assert (start.socket.owner(), start.socket.group()) == ("root", "daemon")
            assert stat.S_IMODE(start.socket.stat().st_mode) == 0o660
            tiny.process.send_signal(signal.SIGTERM)
            assert (await tiny.end())[0] == 0
            with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
                client.connect(os.fspath(start.socket))


@pytest.mark.root
async def test_a_second_door_leaves_the_socket_of_the_first(open_directory: Path) -> None:
    async with starting(open_directory, "cri") as (start, channel):
        await start.ready(channel)
        before = start.socket.stat().st_ino
        assert (await (await start()).end())[0] == 78
        assert start.socket.stat().st_ino == before


@pytest.mark.root
async def test_a_group_that_does_not_exist_is_named(open_directory: Path) -> None:
    async with starting(open_directory, "cri") as (start, _):
        code, said = await (await start(env={"CRIW_GROUP": "no-such-group"})).end()
        assert code == 78
        assert said.startswith("criw-cri: cannot give the socket to group no-such-group")


@pytest.mark.root
async def test_directories_its_user_cannot_reach_are_named_with_the_remedy(open_directory: Path) -> None:
    open_directory.chmod(0o700)
    async with starting(open_directory, "image") as (start, _):
        code, said = await (await start()).end()
        assert code == 78
        assert said.startswith(f"criw-image: cannot use {start.settings.state_dir('image')} as user 65521: ")
        assert "chmod o+x" in said


@pytest.mark.root
async def test_root_follows_no_link_that_an_agent_may_have_planted(open_directory: Path) -> None:
    """A taken-over agent owns its directories; the next start of it must not be made to write elsewhere as root."""
    async with starting(open_directory, "image") as (start, channel):
        tiny = await start.ready(channel)
        tiny.process.kill()
        await tiny.process.wait()
        precious = open_directory / "precious"
        precious.write_text("of root")
        precious.chmod(0o600)
        lock = start.settings.state_dir("image") / "0.lock"
        lock.unlink()
        lock.symlink_to(precious)
        assert (await (await start()).end())[0] == 78
        assert precious.read_text() == "of root"
        assert precious.stat().st_uid == 0


@pytest.mark.parametrize(("before", "after"), [("0\n", "-999"), ("-1000\n", "-1000\n"), ("500\n", "-999")])
def test_an_agent_is_among_the_last_that_memory_shortage_kills(tmp_path: Path, before: str, after: str) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text(before)
    be_spared(score)
    assert score.read_text() == after


async def test_an_agent_that_may_not_lower_its_score_starts_all_the_same(start: Starter, channel: Channel) -> None:
    may_lower = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16) >> 24 & 1
    tiny = await start()
    await serving(channel)
    score = int(Path(f"/proc/{tiny.process.pid}/oom_score_adj").read_text())
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert score == (min(ours, -999) if may_lower else ours)
    tiny.process.terminate()
    await tiny.says("closed")
    assert (await tiny.end())[0] == 0
