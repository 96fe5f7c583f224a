"""`criwctl up` with small stand-ins for the agents: real processes that start, die, refuse or hang as a test needs."""

import asyncio
import os
import re
import select
import shutil
import signal
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from criw.config.common import AGENTS, AgentName
from criw.config.crew import CrewFacts
from criw.config.load import load
from criw.rpc.client import Channel, ask
from criw_ctl.crew import ON_DEMAND
from criw_ctl.status import SERVING, take_status
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthStub
from support import host
from support.crew import Crew, python_environment
from support.up import LIMIT_S, Up, running_up

WELL_BEHAVED = """
    import contextlib, os
    from criw.config.crew import CrewFacts
    from criw.service import run_service

    @contextlib.asynccontextmanager
    async def build(context):
        yield []

    def main(argv=None):
        run_service("{agent}", CrewFacts, build, argv)
"""


class Stage:
    """A crew's directories, and stand-in agents to start on them."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.packages = crew.directory / "packages"
        for agent in AGENTS:
            self.play(agent, WELL_BEHAVED)

    def play(self, agent: AgentName, module: str) -> None:
        """Give the agent another program, from its next start on."""
        package = self.packages / f"criw_{agent}"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        fresh = package / "fresh"
        fresh.write_text(textwrap.dedent(module).replace("{agent}", agent))
        fresh.replace(package / "__main__.py")

    def up(self, environment: Mapping[str, str] | None = None) -> AbstractAsyncContextManager[Up]:
        path = f"{self.packages}{os.pathsep}{python_environment()['PYTHONPATH']}"
        # Not from __pycache__: it cannot tell modules of one second and one size apart.
        changes = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        return running_up(self.crew, changes | dict(environment or {}))


@pytest.fixture
def stage() -> Iterator[Stage]:
    crew = Crew('log_level = "info"\ndrain_timeout_s = 1')
    yield Stage(crew)
    left = host.contents(crew)
    shutil.rmtree(crew.directory)
    assert left == []


async def gone(pid: int) -> None:
    """Wait for the end of a process that is not our child; one that is gone already is right."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert await asyncio.to_thread(poll.poll, LIMIT_S * 1000), f"process {pid} goes on"
    finally:
        os.close(fd)


def stopped(lines: list[str]) -> list[str]:
    return [found[1] for line in lines if (found := re.search(r"criwctl: criw-(\w+) stopped code=0", line))]


async def test_the_crew_starts_and_stops_in_reverse_order(stage: Stage) -> None:
    async with stage.up() as up:
        pids = await up.complete()
        for agent, pid in pids.items():
            assert Path(f"/proc/{pid}/comm").read_text() == f"criw-{agent}\n"
            command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            assert command == [f"criw-{agent}".encode(), b"--config", os.fsencode(stage.crew.config_path)]
            assert os.getsid(pid) == pid
            assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
        up.process.send_signal(signal.SIGINT)
        assert await up.end() == 0
    assert stopped(up.lines) == [agent for agent in reversed(AGENTS) if agent not in ON_DEMAND]
    assert not stage.crew.config.socket("cri").exists()  # which the door cannot take away itself
    assert up.lines[-1].endswith("criwctl: the crew has stopped")


async def test_the_last_words_tell_what_to_type(stage: Stage) -> None:
    async with stage.up() as up:
        await up.complete()
        await up.line(rf"^  criwctl --config {stage.crew.config_path} status$")


async def test_what_dies_is_started_again_at_once_and_the_others_go_on(stage: Stage) -> None:
    async with stage.up() as up:
        pids = await up.complete()
        os.kill(pids["network"], signal.SIGKILL)
        await up.line(r"criw-network was ended by a signal .Killed. after \d\.\d s; starting it again in 0\.00 s")
        assert await up.started("network") != pids["network"]
        await up.line("criwctl: criw-network is ready")
        for agent in pids.keys() - {"network"}:
            os.kill(pids[agent], 0)
        up.process.send_signal(signal.SIGTERM)
        assert await up.end() == 0


async def test_what_is_rarely_needed_is_started_by_whoever_connects(stage: Stage) -> None:
    async def call() -> None:
        async with Channel(stage.crew.config.socket("streams")) as channel:
            await ask(HealthStub(channel).check, HealthCheckRequest(), timeout_s=LIMIT_S)

    async with stage.up() as up:
        pids = await up.complete()
        assert "streams" not in pids
        await call()
        first = await up.started("streams")
        os.kill(first, signal.SIGKILL)  # some of its callers may need it yet
        second = await up.started("streams")
        await up.line("criwctl: criw-streams is ready")
        os.kill(second, signal.SIGTERM)
        await up.line("criw-streams has ended, for nobody needs it now")
        await call()
        assert await up.started("streams") not in {first, second}
        up.process.send_signal(signal.SIGTERM)
        assert await up.end() == 0
    assert "streams" in stopped(up.lines)
    assert not stage.crew.config.socket("streams").exists()


async def test_what_keeps_dying_is_started_with_growing_pauses_until_it_lives(stage: Stage) -> None:
    stage.play("image", "def main(argv): raise SystemExit(3)")
    async with stage.up() as up:
        pauses = [(await up.line(r"criw-image exited with code 3 .* again in (\S+) s"))[1] for _ in range(4)]
        assert pauses == ["0.00", "0.25", "0.50", "1.00"]
        stage.play("image", WELL_BEHAVED)
        await up.line("criwctl: criw-image is ready")
        await up.line("^The crew is ready")


async def test_the_children_of_an_agent_do_not_speak_for_it(stage: Stage) -> None:
    stage.play("image", WELL_BEHAVED.replace("yield []", "print('NOTIFY_SOCKET' in os.environ, flush=True); yield []"))
    async with stage.up() as up:
        await up.line("^False$")
        await up.line("criwctl: criw-image is ready")


async def test_a_traceback_is_shown_and_the_agent_started_again(stage: Stage) -> None:
    stage.play("image", "def main(argv): raise ValueError('broken')")
    async with stage.up() as up:
        await up.line("ValueError: broken")
        await up.line("criw-image exited with code 1")
        await up.started("image")


async def test_an_agent_that_refuses_its_configuration_ends_the_crew(stage: Stage) -> None:
    stage.play("supervisor", "def main(argv): raise SystemExit(78)")
    async with stage.up() as up:
        await up.line("criw-supervisor cannot work with this configuration; stopping the crew")
        assert await up.end() == os.EX_CONFIG


async def test_a_busy_port_is_told_and_keeps_no_agent_from_its_work(stage: Stage) -> None:
    host_name, port = stage.crew.config.storage.address()
    async with await asyncio.start_server(lambda *_: None, host_name, port), stage.up() as up:
        await up.line(rf"criw-storage: cannot listen on {host_name}:{port} .* set http in \[storage\]")
        await up.line("^The crew is ready")
        agents = {one.agent: one for one in (await take_status(load(CrewFacts, stage.crew.config_path, {}))).agents}
    assert (agents["criw-storage"].health, agents["criw-storage"].http) == (SERVING, f"{host_name}:{port} (not served)")
    assert "not served" not in agents["criw-image"].http


async def test_a_second_up_is_refused_and_changes_nothing(stage: Stage) -> None:
    def state() -> list[tuple[Path, int, int]]:
        directories = (stage.crew.config.root, stage.crew.config.run)
        found = [path for directory in directories for path in directory.rglob("*")]
        return sorted((path, path.stat().st_mtime_ns, path.stat().st_ino) for path in found)

    async with stage.up() as first:
        pids = await first.complete()
        before = state()
        async with stage.up() as second:
            await second.line(rf"^criwctl: cannot use {stage.crew.config.run}: another .*{first.process.pid}")
            assert await second.end() == os.EX_CONFIG
        assert state() == before
        for pid in pids.values():
            os.kill(pid, 0)


async def test_a_typo_in_the_configuration_is_named(stage: Stage) -> None:
    async with stage.up({"CRIW_NETWORK_BRIGE": "x"}) as up:
        await up.line("^criwctl: .*unknown key network.brige")
        assert await up.end() == os.EX_CONFIG


async def test_an_agent_that_does_not_stop_is_killed(stage: Stage) -> None:
    stage.play(
        "storage",
        """
        import os, signal
        from criw.service import sd_notify

        def main(argv):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sd_notify(os.environ["NOTIFY_SOCKET"], "READY=1")
            while True:
                signal.pause()
        """,
    )
    async with stage.up() as up:
        await up.complete()
        up.process.send_signal(signal.SIGTERM)
        await up.line("criw-storage does not stop; killing it")
        assert await up.end() == 1


async def test_the_agents_end_with_an_up_that_was_killed(stage: Stage) -> None:
    async with stage.up() as up:
        pids = await up.complete()
        up.process.send_signal(signal.SIGKILL)
        assert await up.process.wait() == -signal.SIGKILL
        for pid in pids.values():
            await gone(pid)


async def test_orphans_are_reaped(stage: Stage) -> None:
    """What an agent abandons, as the supervisor does conmon, becomes a child of `up`, and no zombie when it ends."""
    stage.play(
        "supervisor",
        """
        import os, signal
        from criw.service import sd_notify

        def main(argv):
            if not os.fork():
                if not os.fork():
                    signal.alarm(60)
                    signal.pause()
                os._exit(0)
            os.wait()
            sd_notify(os.environ["NOTIFY_SOCKET"], "READY=1")
            signal.pause()
        """,
    )
    async with stage.up() as up:
        pids = await up.complete()
        children = Path(f"/proc/{up.process.pid}/task/{up.process.pid}/children").read_text().split()
        (orphan,) = {int(pid) for pid in children} - set(pids.values())
        os.kill(orphan, signal.SIGKILL)
        await gone(orphan)
        os.kill(pids["network"], signal.SIGKILL)  # its restart tells that `up` has handled what came before
        await up.line("criwctl: criw-network is ready")
        assert not Path(f"/proc/{orphan}").exists()
