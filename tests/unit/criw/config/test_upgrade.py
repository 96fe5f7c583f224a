"""An agent is upgraded alone: its new key in the configuration stops no process that does not know it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from criw.config.common import AGENTS, AgentName, Common
from criw.rpc.client import Channel, call
from criw_proto.grpc.health.v1 import HealthCheckRequest, HealthCheckResponseServingStatus, HealthStub
from support.crew import python_environment
from support.own import free_port

LIMIT_S: Final = 20.0


@contextlib.asynccontextmanager
async def started(agent: AgentName, directory: Path, toml: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent as a process of its own, with `toml` after what gives it its own directories."""
    path = directory / "criw.toml"
    path.write_text(f'root = "{directory}/lib"\nrun = "{directory}/run"\n{toml}')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"criw_{agent}", "--config", os.fspath(path)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=python_environment(),
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


async def test_an_agent_starts_with_new_keys_in_the_sections_of_all_others(tmp_path: Path) -> None:
    new = "".join(f"[{other}]\nnew = 1\n" for other in AGENTS if other != "cri")
    async with started("cri", tmp_path, f'{new}[cri]\nuser = 0\nhttp = "127.0.0.1:{free_port()}"\n') as process:
        async with Channel(Common(run=tmp_path / "run").socket("cri")) as channel:
            reply = await call(HealthStub(channel).check, HealthCheckRequest(), timeout_s=LIMIT_S)
        assert reply.status is HealthCheckResponseServingStatus.SERVING
    assert process.returncode == 0


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_refuses_what_it_does_not_know_in_its_own_section(agent: AgentName, tmp_path: Path) -> None:
    async with started(agent, tmp_path, f"[{agent}]\nnew = 1\n") as process:
        _, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == os.EX_CONFIG
    assert said.decode().startswith(f"criw-{agent}: cannot use the configuration")
    assert f"unknown key {agent}.new\n" in said.decode()
