"""`criwctl up` as a test starts it: a process of its own, whose lines can be waited for."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping

from criw.config.common import AGENTS, AgentName
from criw_ctl.crew import ON_DEMAND
from support.crew import Crew, python_environment

LIMIT_S = 30.0


class Up:
    """Use `running_up()`. `lines` is what it and its agents have written so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._seen = 0
        self._ended = False
        self._more = asyncio.Condition()

    async def read(self) -> None:
        """Take in what is written until the end."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._more:
                self.lines.append(line.decode().rstrip())
                self._more.notify_all()
        async with self._more:
            self._ended = True
            self._more.notify_all()

    async def line(self, pattern: str) -> re.Match[str]:
        """The next line that matches, after the one this has returned last."""
        async with asyncio.timeout(LIMIT_S), self._more:
            while True:
                while self._seen < len(self.lines):
                    self._seen += 1
                    if found := re.search(pattern, self.lines[self._seen - 1]):
                        return found
                assert not self._ended, f"criwctl up ended without a line like {pattern!r}"
                await self._more.wait()

    async def started(self, agent: AgentName) -> int:
        """The pid of the agent's next process."""
        return int((await self.line(rf"criwctl: criw-{agent} started pid=(\d+)"))[1])

    async def complete(self) -> dict[AgentName, int]:
        """The agents' pids, once all are ready that do not wait to be needed."""
        pids = {agent: await self.started(agent) for agent in AGENTS if agent not in ON_DEMAND}
        await self.line("^The crew is ready")
        return pids

    async def end(self) -> int:
        """The exit code, once it has ended by itself."""
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)


@contextlib.asynccontextmanager
async def running_up(crew: Crew, environment: Mapping[str, str] | None = None) -> AsyncIterator[Up]:
    """Start it on the crew's directories, and stop it at the end; what it wrote is shown if the test fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "criw_ctl", "--config", os.fspath(crew.config_path), "up"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=python_environment() | dict(environment or {}),
        start_new_session=True,
    )
    up = Up(process)
    reader = asyncio.create_task(up.read(), name="lines of criwctl up")
    try:
        yield up
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await up.end()
        await asyncio.wait_for(reader, LIMIT_S)
        print("\n".join(up.lines))
