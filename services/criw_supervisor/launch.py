"""Bringing a container's process up to the point where it waits to be started, and taking all of it away again.

Used for the containers of the CRI and for a pod's infra container alike. A bundle is the directory the OCI runtime
reads: config.json, and conmon's pid files and sockets.
"""

import asyncio
import errno
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import Failed, InvalidArgument, Unavailable
from criw.kernel import suppress_errno
from criw_proto.runtime.v1 import ContainerConfig
from criw_supervisor import processes
from criw_supervisor.cgroups import Cgroups
from criw_supervisor.runtime import Handler, Launch
from criw_supervisor.state import Places

JsonObject = dict[str, object]
LOG_DIRECTORY_MODE: Final = 0o755
_KILL_LIMIT_S: Final = 5.0
_KILL_PAUSE_S: Final = 0.002


@dataclass(frozen=True)
class Launched:
    """The waiting process."""

    pid: int
    pid_started: int


async def launch(
    handler: Handler, places: Places, container_id: str, document: JsonObject, *, config: ContainerConfig, log_path: str
) -> Launched:
    """Write the bundle and create the container. What was made stays until `take_away`. Raises Failed."""
    bundle = places.bundle(container_id)
    await asyncio.to_thread(_write_bundle, bundle, document, log_path)
    pid = await handler.create(
        Launch(
            container_id=container_id,
            name=config.metadata.name if config.metadata else container_id,
            bundle=bundle,
            log_path=log_path,
            exit_dir=places.exits,
            terminal=config.tty,
            stdin=config.stdin,
            stdin_once=config.stdin_once,
        )
    )
    started = processes.start_time(pid)
    if not started:
        raise Failed(f"cannot create container {container_id}: its process ended before it was started")
    return Launched(pid, started)


def _write_bundle(bundle: Path, document: JsonObject, log_path: str) -> None:
    bundle.mkdir(parents=True)
    bundle.chmod(0o700)
    (bundle / "config.json").write_text(json.dumps(document), encoding="utf-8", errors="surrogateescape")
    if log_path:
        make_log_directory(Path(log_path))


def make_log_directory(log_path: Path) -> None:
    """Make the directory of a log where the kubelet has not. Raises InvalidArgument if it cannot be."""
    try:
        log_path.parent.mkdir(mode=LOG_DIRECTORY_MODE, parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as err:
        raise InvalidArgument(f"cannot make the log directory {log_path.parent}: {err.strerror}") from err


async def take_away(
    handler: Handler, cgroups: Cgroups, places: Places, container_id: str, cgroup: str, *, ended: bool
) -> None:
    """Kill what is left of a container and remove everything of it but its log. Repeating it is a success.

    `ended` says that its exit was recorded, so that no conmon nor runtime can be working on it any more.
    """
    if not ended:
        await asyncio.to_thread(_kill_makers, places.bundle(container_id))
    await asyncio.to_thread(cgroups.kill, cgroup)
    await handler.delete(container_id, force=True)
    await asyncio.to_thread(_remove_rest, handler, cgroups, places, container_id, cgroup)


def _kill_makers(bundle: Path) -> None:
    """Kill conmon and the runtime that work on a bundle, also ones whose pid files were never written.

    They go first: conmon would write an exit file for what is being forgotten.
    """
    mark = os.fspath(bundle)
    until = time.monotonic() + _KILL_LIMIT_S
    while found := [pid for pid in processes.pids() if mark in processes.command_line(pid)]:
        if time.monotonic() > until:
            raise Unavailable(f"cannot kill processes {found}, which work on {bundle}; try again")
        for pid in found:
            processes.send_signal(pid, processes.start_time(pid), signal.SIGKILL)
        time.sleep(_KILL_PAUSE_S)  # and look again: one may have started another before it died


def _remove_rest(handler: Handler, cgroups: Cgroups, places: Places, container_id: str, cgroup: str) -> None:
    cgroups.remove(cgroup)
    shutil.rmtree(handler.root / container_id, ignore_errors=True)
    (places.exits / container_id).unlink(missing_ok=True)
    bundle = places.bundle(container_id)
    while bundle.exists():
        with suppress_errno(errno.ENOENT, errno.ENOTEMPTY):  # an exec that ends with the container has files in it, too
            shutil.rmtree(bundle)
