"""A crew of its own for a test: own directories, ports, bridge, addresses and cgroup, so that several can coexist."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from criw.config.common import AGENTS, AgentName
from criw.config.crew import Config
from criw.config.load import load
from criw.rpc.client import Channel, call
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthCheckResponseServingStatus, HealthStub
from support.own import free_port, ranges

ROOT: Final = Path(__file__).parents[2]
START_LIMIT_S: Final = 30.0
running: Final[set["Crew"]] = set()  # of this process: a test may kill and restart agents of a crew it has not made


class Crew:
    """Agents as real processes on directories of their own. Use `running_crew()`."""

    def __init__(self, extra_toml: str = "") -> None:
        token = secrets.token_hex(3)
        self.directory = Path(tempfile.mkdtemp(prefix=f"criw-{token}-", dir="/tmp"))
        self.directory.chmod(0o755)  # the agents have users of their own
        self.config_path = self.directory / "criw.toml"
        self.cgroup_parent = f"/criw-{token}"
        subnet, _ = ranges()
        ports = {agent: free_port() for agent in AGENTS}
        self.config_path.write_text(
            f'root = "{self.directory}/lib"\nrun = "{self.directory}/run"\nlog_level = "debug"\n'
            f'cri.http = "127.0.0.1:{ports["cri"]}"\n'
            f'image.http = "127.0.0.1:{ports["image"]}"\n'
            f'storage.http = "127.0.0.1:{ports["storage"]}"\n'
            f'network.http = "127.0.0.1:{ports["network"]}"\n'
            f'network.bridge = "ct{token}"\nnetwork.pod_cidrs = ["{subnet}"]\n'
            f'streams.http = "127.0.0.1:{ports["streams"]}"\n'
            f'supervisor.http = "127.0.0.1:{ports["supervisor"]}"\n'
            f'supervisor.cgroup_parent = "{self.cgroup_parent}"\n'
        )
        if extra_toml:
            (self.directory / "conf.d").mkdir()
            (self.directory / "conf.d" / "test.toml").write_text(extra_toml)
        self.config: Config = load(Config, self.config_path, environ={})
        self.processes: dict[AgentName, asyncio.subprocess.Process] = {}
        self._channels: dict[AgentName, Channel] = {}
        self.agents: Sequence[AgentName] = ()  # those that `running_crew()` runs

    def log_path(self, agent: AgentName) -> Path:
        return self.directory / f"{agent}.log"

    def complaints(self) -> str:
        """What its agents have logged above INFO, with tracebacks."""
        lines = [
            f"criw-{agent}: {line}"
            for agent in AGENTS
            if self.log_path(agent).exists()
            for line in self.log_path(agent).read_text().splitlines()
            if " DEBUG " not in line and " INFO " not in line
        ]
        return "\n".join(lines[-200:])

    def channel(self, agent: AgentName) -> Channel:
        """A client's connection, for the generated stubs."""
        if agent not in self._channels:
            self._channels[agent] = Channel(self.config.socket(agent))
        return self._channels[agent]

    async def start(self, *agents: AgentName, env: Mapping[str, str] | None = None) -> None:
        """Start the agents named and wait until each is ready."""
        for agent in agents:
            with self.log_path(agent).open("ab") as log:
                self.processes[agent] = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", f"criw_{agent}", "--config", os.fspath(self.config_path)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=python_environment() | dict(env or {}),
                )
        for agent in agents:
            await self.wait_ready(agent)

    async def wait_ready(self, agent: AgentName) -> None:
        """Wait for the agent's gRPC health to be SERVING; fails at once if it exits."""
        process = self.processes[agent]
        waiting = asyncio.create_task(self._serving(agent))
        ended = asyncio.create_task(process.wait())
        await asyncio.wait({waiting, ended}, timeout=START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not waiting.done() or waiting.exception() is not None:
            waiting.cancel()
            raise AssertionError(f"criw-{agent} did not get ready:\n{self.log_path(agent).read_text()[-4000:]}")

    async def _serving(self, agent: AgentName) -> None:
        stub = HealthStub(self.channel(agent))
        reply = await call(stub.check, HealthCheckRequest(), timeout_s=START_LIMIT_S, agent=f"criw-{agent}")
        assert reply.status == HealthCheckResponseServingStatus.SERVING

    async def start_missing(self) -> None:
        """Start those of `running_crew()`'s agents that a test has left dead."""
        await self.start(*(agent for agent in self.agents if agent not in self.processes))

    async def kill(self, agent: AgentName) -> None:
        """SIGKILL, and wait for the end."""
        process = self.processes.pop(agent)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()

    async def stop(self, *agents: AgentName) -> None:
        """SIGTERM in reverse starting order, and wait for each end; all when none is named. It must end well."""
        for agent in agents or tuple(reversed(AGENTS)):
            process = self.processes.pop(agent, None)
            if process is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(process.wait(), START_LIMIT_S)
            assert code == 0, f"criw-{agent} ended with {code}:\n{self.log_path(agent).read_text()[-4000:]}"

    async def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        try:
            await self.stop()
        finally:
            for agent in tuple(self.processes):
                await self.kill(agent)


def python_environment() -> dict[str, str]:
    """The environment of a child that can import the project and takes no setting from ours."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CRIW_")}
    sources = [os.fspath(ROOT / name) for name in ("proto", "services", "shared", "tests")]
    return inherited | {"PYTHONPATH": os.pathsep.join(sources)}


@contextlib.asynccontextmanager
async def running_crew(agents: Sequence[AgentName] = AGENTS, *, extra_toml: str = "") -> AsyncIterator[Crew]:
    """Start the agents, stop them at the end, and prove that the host is as it was (`support.host`)."""
    from support import host  # imports Crew

    crew = Crew(extra_toml)
    crew.agents = agents
    running.add(crew)
    try:
        await crew.start(*agents)
        yield crew
    except BaseException:
        print(crew.complaints())  # pytest shows it with the failure
        raise
    finally:
        await crew.close()
        running.remove(crew)
    left = host.contents(crew)
    logs = json.dumps({agent: crew.log_path(agent).read_text()[-3000:] for agent in agents if left})
    shutil.rmtree(crew.directory, ignore_errors=not left)
    assert not left, f"left on the host: {left}\n{logs}"
