"""A program started by `run_service()`, for test_service.py: an agent with nothing behind it.

It is the network agent, or the one TINY_AGENT names. `attach` prints "begun" and goes on until SIGUSR1. TINY_BUILD says
what building it does: "wait" prints "building" and goes on at SIGUSR1; a fault's name raises that fault; anything else
raises RuntimeError.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Collection

from criw import errors
from criw.config.common import AGENTS, Common
from criw.config.cri import CriSettings
from criw.config.image import ImageSettings
from criw.config.network import NetworkSettings
from criw.config.storage import StorageSettings
from criw.rpc.server import Servable
from criw.service import Context, run_service
from support.serving import Scripted


@contextlib.asynccontextmanager
async def build(_: Context[Common]) -> AsyncIterator[Collection[Servable]]:
    usr1 = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, usr1.set)

    async def work(_: str) -> None:
        print("begun", flush=True)
        await usr1.wait()

    match os.environ.get("TINY_BUILD", ""):
        case "":
            pass
        case "wait":
            print("building", flush=True)
            await usr1.wait()
        case name if (kind := getattr(errors, name, None)) is not None:
            raise kind("cannot build it")
        case name:
            raise RuntimeError(name)
    yield [Scripted(work)]
    print("closed", flush=True)


if __name__ == "__main__":
    name = os.environ.get("TINY_AGENT", "network")
    agent = next(agent for agent in AGENTS if agent == name)
    models: dict[str, type[Common]] = {
        "cri": CriSettings,
        "image": ImageSettings,
        "network": NetworkSettings,
        "storage": StorageSettings,
    }
    run_service(agent, models[agent], build)
