"""One start function for every process: configuration, logging, socket, health, metrics, signals, drain, sd_notify."""

import argparse
import asyncio
import concurrent.futures.thread  # noqa: F401 — see `_prepared`
import contextlib
import encodings.idna  # noqa: F401
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

import uvloop
from aiohttp import web

from criw import __version__, lockfile, log
from criw.callers import callers_of
from criw.config.common import AgentName, Common
from criw.config.load import DEFAULT_PATH, load
from criw.errors import DeadlineExceeded, FailedPrecondition, Fault, ResourceExhausted, Unavailable
from criw.health import HealthRpc, Readiness, http_app
from criw.listener import bind, group_id, handed_over, taken_away
from criw.metrics import Metrics
from criw.privileges import Identity, death_signal_kept, identity_of
from criw.rpc.server import Servable, Server

logger = logging.getLogger(__name__)
_HTTP_PAUSE_S: Final = 1.0  # between looks whether the port for health and metrics is free
_OOM_SCORE: Final = -999
EXIT_CONFIG: Final = 78  # sysexits.h: EX_CONFIG
C = TypeVar("C", bound=Common)
_PASSING: Final = (DeadlineExceeded, ResourceExhausted, Unavailable)


@dataclass(frozen=True)
class Context(Generic[C]):
    """What a process is given when it is built."""

    config: C
    instance: int
    metrics: Metrics
    on_demand: bool = False  # its socket was handed over, by whoever starts it when somebody connects there


Build: TypeAlias = Callable[[Context[C]], AbstractAsyncContextManager[Collection[Servable]]]


def run_service(agent: AgentName, model: type[C], build: Build[C], argv: Sequence[str] | None = None) -> None:
    """Run one process of the crew until SIGTERM or SIGINT; never returns.

    `model` is what it reads of the configuration. `build` opens stores and recovers state before the first call is
    taken, and closes what it opened afterwards.
    Exit codes: 0 after a stop; 78 for a configuration, directory or socket it cannot use, which starting it again would
    not change; 1 for everything else.
    """
    parser = argparse.ArgumentParser(prog=f"criw-{agent}", description=f"Criw's {agent} process, version {__version__}")
    parser.add_argument("--config", type=Path, help=f"configuration file (default: {DEFAULT_PATH})")
    parser.add_argument("--instance", type=int, default=0, help="number of this instance, where an agent has several")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    try:
        settings = load(model, options.config)
        log.setup(f"criw-{agent}", level=settings.log_level, style=settings.log_format)
        with _prepared(agent, settings, options.instance) as listener:
            uvloop.run(_serve(agent, settings, options.instance, build, listener))
    except asyncio.CancelledError:
        logger.info("stopped before it was ready")
    except Fault as err:
        print(f"criw-{agent}: {err}", file=sys.stderr)
        sys.exit(1 if isinstance(err, _PASSING) else EXIT_CONFIG)
    except OSError as err:
        print(f"criw-{agent}: cannot start: {err}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


@contextlib.contextmanager
def _prepared(agent: AgentName, settings: Common, instance: int) -> Iterator[socket.socket]:
    """What root must do, and the process's socket; within the block it is what it stays: see `criw.privileges`.

    Python itself may be where only root can read, in its home say. So all is imported by then, and what Python or a
    library imports when it is first needed is imported where the need arises.
    """
    identity = identity_of(agent, settings)
    run, state, path = settings.run_dir(agent), settings.state_dir(agent), settings.socket(agent, instance)
    settings.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    settings.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    identity.make(run, 0o750)
    identity.make(state, 0o700)
    with contextlib.ExitStack() as opened:
        with death_signal_kept():
            for directory in (run, state):
                identity.take(directory)
            try:
                with identity.assumed():
                    # Two on one directory would undo each other's work.
                    opened.enter_context(lockfile.hold(state / f"{instance}.lock", program=f"criw-{agent}"))
            except PermissionError as err:
                raise FailedPrecondition(
                    f"cannot use {state} as user {identity.uid}: {err.strerror}; let others pass through the "
                    "directories above it (chmod o+x), or set root and run to other directories"
                ) from err
            listener = handed_over()
            if listener is None:
                listener = _own_socket(agent, settings, path, identity)
                opened.enter_context(taken_away(path))
            opened.enter_context(listener)
            be_spared(Path("/proc/self/oom_score_adj"))
            identity.become()
        yield listener


def be_spared(score: Path) -> None:
    """Have the kernel kill others first when memory runs out, whatever pods are guaranteed (-997 by the kubelet).

    Children inherit it: containers are given a score of their own, and so is the storage agent's worker.
    """
    if int(score.read_text()) > _OOM_SCORE:
        try:
            score.write_text(str(_OOM_SCORE))
        except PermissionError:
            logger.debug("the kernel may kill this process when memory runs out: it lacks CAP_SYS_RESOURCE")


def _own_socket(agent: AgentName, settings: Common, path: Path, identity: Identity) -> socket.socket:
    if agent != "cri":
        with identity.assumed():
            return bind(path)
    listener = bind(path)  # in a directory of root's
    if settings.group:
        os.chown(path, -1, group_id(settings.group))
    return listener


async def _serve(agent: AgentName, settings: C, instance: int, build: Build[C], listener: socket.socket) -> None:
    manager = os.environ.pop("NOTIFY_SOCKET", "")  # not for our children: runc would wait for the container's READY=1
    stop = _Stop()
    metrics = Metrics(agent)
    readiness = Readiness()
    on_demand = bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))  # on our own nobody listens yet
    async with (
        _http_endpoint(agent, settings, instance, readiness, metrics),
        build(Context(settings, instance, metrics, on_demand)) as services,
    ):
        names = {path.split("/")[1] for service in services for path in service.__mapping__()}
        server = Server([*services, HealthRpc(readiness, names)], metrics, callers_of(agent, settings))
        await server.start(sock=listener)
        stop.started = True
        gc.collect()
        gc.freeze()  # what was imported stays: no collection need walk it again
        await readiness.set(ready=True)
        sd_notify(manager, "READY=1")
        logger.info("ready", extra={"socket": listener.getsockname(), "version": __version__})
        async with asyncio.TaskGroup() as tasks:
            watchdog = tasks.create_task(_feed_watchdog(manager), name="watchdog")
            await stop.asked.wait()
            watchdog.cancel()
        sd_notify(manager, "STOPPING=1")
        await readiness.set(ready=False)
        await server.drain(settings.drain_timeout_s)
    logger.info("stopped")


class _Stop:
    """SIGTERM or SIGINT. Before the process has `started` it gives up at once: recovery may wait long for others."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.started = False
        self._task = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._ask)

    def _ask(self) -> None:
        self.asked.set()
        if not self.started and self._task is not None:
            self._task.cancel()


@contextlib.asynccontextmanager
async def _http_endpoint(
    agent: AgentName, settings: Common, instance: int, readiness: Readiness, metrics: Metrics
) -> AsyncIterator[None]:
    """Served for as long as the block runs; where another has its port, from when that is free.

    Whoever takes a port must not be able to keep the process from its work.
    """
    host, port = settings.facts(agent).address(instance)
    runner = web.AppRunner(http_app(agent, readiness, metrics.registry), access_log=None)
    await runner.setup()
    later: asyncio.Task[None] | None = None
    try:
        try:
            await _listen(runner, host, port)
        except OSError as err:
            logger.error(  # noqa: TRY400 — a traceback tells nothing more
                f"cannot listen on {host}:{port} for health and metrics: {_why(err)}; trying again until it "
                f"is free, or set http in [{agent}] to another address"
            )
            later = asyncio.create_task(_listen_later(runner, host, port), name="http")
        yield
    finally:
        if later is not None:
            later.cancel()
            await asyncio.wait({later})
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await site.stop()
        raise


async def _listen_later(runner: web.AppRunner, host: str, port: int) -> None:
    while True:
        await asyncio.sleep(_HTTP_PAUSE_S)
        with contextlib.suppress(OSError):  # told already
            await _listen(runner, host, port)
            logger.info("health and metrics are served now", extra={"http": f"{host}:{port}"})
            return


def _why(err: OSError) -> str:
    return os.strerror(err.errno) if err.errno and err.errno > 0 else str(err.strerror or err)


def sd_notify(address: str, state: str) -> None:
    """Tell systemd (or `criwctl up`) our state: sd_notify(3). Nothing happens where nobody listens (no address)."""
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError as err:
            logger.warning("cannot notify the service manager", extra={"state": state, "error": str(err)})


async def _feed_watchdog(manager: str) -> None:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return  # it watches our parent: sd_watchdog_enabled(3)
    interval_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    while interval_us:
        sd_notify(manager, "WATCHDOG=1")
        await asyncio.sleep(interval_us / 2_000_000)
