"""The life of a pod as `criwctl` leads it: run with one container, stopped, removed together with its logs."""

import asyncio
import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import AlreadyExists, FailedPrecondition
from criw.rpc.client import ask
from criw_ctl import images
from criw_ctl.door import Door
from criw_ctl.interruptions import Interrupted, Interruption, either, interruptions, unless
from criw_ctl.logs import LogReader, ended, follow, status_of
from criw_ctl.names import Inventory, Named, name_of, runs, take_inventory
from criw_ctl.sessions import Shape, attached, join
from criw_ctl.spec import POD_UID_LABEL, Wish, container_config, log_directory, logs_root, pod_config
from criw_ctl.streams import Session
from criw_proto.runtime.v1 import (
    Container,
    CreateContainerRequest,
    ListPodSandboxRequest,
    PodSandbox,
    PodSandboxFilter,
    RemoveContainerRequest,
    RemovePodSandboxRequest,
    RunPodSandboxRequest,
    StartContainerRequest,
    StopContainerRequest,
    StopPodSandboxRequest,
)

GRACE_S: Final = 10
CALL_LIMIT_S: Final = 120.0


@dataclass(frozen=True)
class Started:
    """What `run` makes."""

    pod_id: str
    container_id: str
    log_path: Path


async def run_detached(door: Door, wish: Wish) -> Started:
    """Run a pod in the background. A failure leaves nothing of it. Raises Interrupted."""
    with interruptions() as interrupted:
        async with contextlib.AsyncExitStack() as undo:
            started = await _start(door, wish, undo, interrupted)
            undo.pop_all()
            return started


async def run_attached(door: Door, wish: Wish, *, remove_after: bool) -> int:
    """Run a pod, show what it writes until it ends, and return its exit code; SIGINT, SIGTERM and SIGHUP stop it.

    `remove_after` leaves neither pod nor logs, and a failure to start never does. Raises Interrupted.
    """
    with interruptions() as interrupted:
        async with contextlib.AsyncExitStack() as undo:
            started = await _start(door, wish, undo, interrupted)
            if not remove_after:
                undo.pop_all()
            async with LogReader(started.log_path) as reader:
                following = asyncio.create_task(follow(door, started.container_id, reader), name="follow the log")
                try:
                    await either(following, interrupted)
                    if interrupted.is_set():
                        await _stop_container(door, started.container_id, GRACE_S)
                    return (await following).exit_code
                finally:
                    following.cancel()


async def run_joined(door: Door, wish: Wish, *, remove_after: bool) -> int:
    """Run a pod, joined to our terminal or descriptors until it ends; the rest is as `run_attached` does it.

    Without `remove_after` the keys that detach leave it running. Raises Detached, too.
    """
    shape = Shape(stdin=wish.stdin, tty=wish.tty)

    async def to_its_end(session: Session, container_id: str) -> int:
        await join(session, shape, detachable=not remove_after)
        return (await ended(door, container_id)).exit_code

    with interruptions() as interrupted:
        async with contextlib.AsyncExitStack() as undo:
            made = await _make(door, wish, undo, interrupted)
            # Before the start: nothing it writes is missed.
            async with attached(door, made.container_id, shape) as session:
                await _start_container(door, made.container_id)
                if not remove_after:
                    undo.pop_all()
                running = asyncio.create_task(to_its_end(session, made.container_id), name="session")
                try:
                    await either(running, interrupted)
                    if interrupted.is_set():
                        await _stop_container(door, made.container_id, GRACE_S)
                    return await running
                finally:
                    running.cancel()
                    await asyncio.wait({running})


async def _start(door: Door, wish: Wish, undo: contextlib.AsyncExitStack, interrupted: Interruption) -> Started:
    """Make and start everything; what takes it back is put on `undo`."""
    made = await _make(door, wish, undo, interrupted)
    await _start_container(door, made.container_id)
    return made


async def _start_container(door: Door, container_id: str) -> None:
    await ask(door.runtime.start_container, StartContainerRequest(container_id=container_id), timeout_s=CALL_LIMIT_S)


async def _make(door: Door, wish: Wish, undo: contextlib.AsyncExitStack, interrupted: Interruption) -> Started:
    """Make everything that a start needs; what takes it back is put on `undo`."""
    runtime = door.runtime
    for pod in (await take_inventory(door)).pods:
        if name_of(pod) == wish.name:
            raise AlreadyExists(
                f"cannot run a pod named {wish.name}: there is one (id {pod.id[:13]}); "
                f"remove it with criwctl rm {wish.name}, or choose another --name"
            )
    image_id = await unless(interrupted, images.pulled(door, wish.image))
    config = pod_config(door.config, wish)
    assert config.metadata is not None
    logs = log_directory(door.config, config.metadata)
    logs.mkdir(parents=True)
    undo.callback(_remove_logs, door, logs)
    undo.push_async_callback(_remove_pods_of, door, config.metadata.uid)  # before: the answer may get lost
    pod_id = (await ask(runtime.run_pod_sandbox, RunPodSandboxRequest(config=config), timeout_s=240)).pod_sandbox_id
    if interrupted.is_set():
        raise Interrupted(interrupted.number)
    request = CreateContainerRequest(
        pod_sandbox_id=pod_id, config=container_config(config.metadata, wish, image_id), sandbox_config=config
    )
    container_id = (await ask(runtime.create_container, request, timeout_s=CALL_LIMIT_S)).container_id
    if interrupted.is_set():
        raise Interrupted(interrupted.number)
    status = await status_of(door, container_id)
    return Started(pod_id, container_id, Path(status.log_path))


async def _remove_pods_of(door: Door, uid: str) -> None:
    """Remove what a pod's uid finds, whether or not its creation was ever answered."""
    request = ListPodSandboxRequest(filter=PodSandboxFilter(label_selector={POD_UID_LABEL: uid}))
    for pod in (await ask(door.runtime.list_pod_sandbox, request)).items:
        await _remove_pod(door, await take_inventory(door), pod)


async def stop(door: Door, inventory: Inventory, item: Named) -> None:
    """Stop a container, or a pod with all of its own; what does not end within `GRACE_S` seconds is killed."""
    if isinstance(item, Container):
        await _stop_container(door, item.id, GRACE_S)
        return
    await _stop_pod(door, inventory, item, GRACE_S)


async def _stop_pod(door: Door, inventory: Inventory, pod: PodSandbox, grace_s: int) -> None:
    await asyncio.gather(
        *(_stop_container(door, container.id, grace_s) for container in inventory.containers_of(pod) if runs(container))
    )
    await ask(door.runtime.stop_pod_sandbox, StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout_s=CALL_LIMIT_S)


async def _stop_container(door: Door, container_id: str, grace_s: int) -> None:
    request = StopContainerRequest(container_id=container_id, timeout=grace_s)
    await ask(door.runtime.stop_container, request, timeout_s=CALL_LIMIT_S + grace_s)


async def remove(door: Door, inventory: Inventory, item: Named, *, force: bool) -> None:
    """Remove a container or a pod, and the logs `criwctl run` made for it.

    Raises FailedPrecondition if something in it runs, unless `force`, which kills it.
    """
    containers = [item] if isinstance(item, Container) else inventory.containers_of(item)
    if not force and any(runs(container) for container in containers):
        raise FailedPrecondition(
            f"cannot remove {name_of(item)} ({item.id[:13]}): it is running; stop it with criwctl stop, or use rm -f"
        )
    if isinstance(item, Container):
        await _remove_container(door, item)
    else:
        await _remove_pod(door, inventory, item)


async def _remove_container(door: Door, container: Container) -> None:
    log_path = Path((await status_of(door, container.id)).log_path)
    request = RemoveContainerRequest(container_id=container.id)
    await ask(door.runtime.remove_container, request, timeout_s=CALL_LIMIT_S)
    if log_path.is_relative_to(logs_root(door.config)):
        for file in log_path.parent.glob(f"{log_path.name}*"):  # rotated ones, too
            file.unlink()


async def _remove_pod(door: Door, inventory: Inventory, pod: PodSandbox) -> None:
    await _stop_pod(door, inventory, pod, 0)
    assert pod.metadata is not None
    # Before the pod: as long as that is there, a second rm can finish the first one's work.
    _remove_logs(door, log_directory(door.config, pod.metadata))
    await ask(door.runtime.remove_pod_sandbox, RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout_s=CALL_LIMIT_S)


def _remove_logs(door: Door, directory: Path) -> None:
    ours = directory.parent == logs_root(door.config)  # another client's pod may have any name, even ../..
    if ours and directory.exists():
        shutil.rmtree(directory)
