"""The life of containers: create, start, stop, remove, and what happens when one ends by itself."""

import asyncio
import json
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import AlreadyExists, FailedPrecondition, Fault, InvalidArgument, Unavailable
from criw.ids import new_id
from criw.operations import Operations, run_to_end, together
from criw.rpc.client import call
from criw_proto.criw.image.v1 import ImagesStub, InspectRequest, InspectResponse
from criw_proto.criw.storage.v1 import CreateRootfsRequest, RemoveRootfsRequest, RootfsStub
from criw_proto.runtime import v1 as cri
from criw_supervisor import processes
from criw_supervisor.cgroups import Cgroups
from criw_supervisor.exits import read_exit
from criw_supervisor.launch import launch, take_away
from criw_supervisor.pod import Container, Pod, Stopping, log_path
from criw_supervisor.reconcile import Reconcile
from criw_supervisor.records import ContainerRecord, ContainerState, IntentRecord
from criw_supervisor.runtime import Handler, Handlers
from criw_supervisor.signals import of_cri, parse_signal
from criw_supervisor.spec.container import ContainerSpec, Host, PodView, build
from criw_supervisor.spec.image import ImageConfig, parse_image_config
from criw_supervisor.state import State

log = logging.getLogger(__name__)

CLEANUP_LIMIT_S: Final = 60.0
REMOTE_UNDO_LIMIT_S: Final = 10.0
KILL_LIMIT_S: Final = 10.0
START_FAILED_CODE: Final = 128
LOST_EXIT_CODE: Final = 255  # it ended while nobody could learn how, as other runtimes report it


@dataclass(frozen=True)
class Agents:
    """The other agents, as far as containers need them."""

    image: ImagesStub
    storage: RootfsStub


class Containers:
    """Needs every pod's infra container started before its containers (see `criw_supervisor.pods`)."""

    def __init__(
        self, state: State, handlers: Handlers, cgroups: Cgroups, host: Host, agents: Agents,
        reconcile: Reconcile,
    ) -> None:  # fmt: skip
        self._state = state
        self._handlers = handlers
        self._cgroups = cgroups
        self._host = host
        self._agents = agents
        self._reconcile = reconcile
        self._operations = Operations()
        self._stops = Operations()

    async def drain(self) -> None:
        """Wait until every operation in progress has ended. Stops are given up: their grace may be hours.

        The container's next stop, after a restart, does all of it again.
        """
        await self._stops.cancel()
        await self._operations.drain()

    # --- create

    async def create(self, pod_text: str, config: cri.ContainerConfig) -> str:
        """CreateContainer: its id. The same request again, also while the first is in progress, gives the same id."""
        pod = self._state.pods.find(pod_text)
        if config.metadata is None or not config.metadata.name:
            raise InvalidArgument("cannot create the container: config.metadata.name is missing")
        if config.image is None or not config.image.image:
            raise InvalidArgument(f"cannot create container {config.metadata.name}: config.image.image is missing")
        if pod.config.log_directory and (config.log_path.startswith("/") or ".." in Path(config.log_path).parts):
            raise InvalidArgument(
                f"cannot create container {config.metadata.name}: log_path {config.log_path} must be relative to the "
                "pod's log_directory, and inside it"
            )
        key = f"create {pod.id} {config.metadata.name} {config.metadata.attempt}"
        return await self._operations.run(key, lambda: self._create(pod, config))

    async def _create(self, pod: Pod, config: cri.ContainerConfig) -> str:
        async with self._state.pod_locks.hold(pod.id):
            assert config.metadata is not None
            assert config.image is not None
            if (existing := self._state.container_named(pod.id, config.metadata)) is not None:
                return _same_or_refuse(existing, config)
            if not pod.ready:
                raise FailedPrecondition(f"cannot create a container in pod sandbox {pod.id}: it is not ready")
            handler = self._handlers.of_record(pod.record.runtime)
            container_id = new_id()
            intent = IntentRecord(
                id=container_id,
                what="container",
                runtime=handler.name,
                cgroup=f"{pod.record.cgroup}/{container_id}",
                owns_cgroup=True,
            )
            async with AsyncExitStack() as undo:
                self._state.pending.add(container_id)
                undo.callback(self._state.pending.discard, container_id)
                undo.push_async_callback(self._undo_create, handler, intent)
                await self._state.store.commit(create=[intent])
                record = await self._make(pod, config, handler, intent)
                await self._state.store.commit(delete=[intent], create=[record])
                undo.pop_all()
            self._state.add_container(Container(record, self._state.places.bundle(container_id)))
            self._state.pending.discard(container_id)
            return container_id

    async def _make(
        self, pod: Pod, config: cri.ContainerConfig, handler: Handler, intent: IntentRecord
    ) -> ContainerRecord:
        assert config.image is not None
        image = await call(self._agents.image.inspect, InspectRequest(image=config.image.image), agent="criw-image")
        rootfs = await call(
            self._agents.storage.create_rootfs,
            CreateRootfsRequest(rootfs_id=intent.id, image_id=image.id),
            agent="criw-storage",
        )
        image_config = parse_image_config(image.config, config.image.image)
        spec = await asyncio.to_thread(self._specify, pod, config, image_config, Path(rootfs.path), intent.cgroup)
        path = log_path(config, pod.config)
        launched = await launch(handler, self._state.places, intent.id, spec.document, config=config, log_path=path)
        return ContainerRecord(
            id=intent.id,
            pod_id=pod.id,
            config=bytes(config),
            runtime=handler.name,
            image_id=image.id,
            image_ref=_reference(image),
            cgroup=intent.cgroup,
            log_path=path,
            state=ContainerState.CREATED,
            created_at_ns=time.time_ns(),
            pid=launched.pid,
            pid_started=launched.pid_started,
            resources=bytes(spec.resources),
            uid=spec.user.uid,
            gid=spec.user.gid,
            groups=spec.user.groups,
            stop_signal=of_cri(config.stop_signal) or parse_signal(image_config.stop_signal or "SIGTERM"),
        )

    def _specify(
        self, pod: Pod, config: cri.ContainerConfig, image: ImageConfig, rootfs: Path, cgroup: str
    ) -> ContainerSpec:
        infra = self._state.infra.get(pod.id)
        view = PodView(
            hostname=pod.hostname,
            namespaces=pod.namespaces(infra.record if infra is not None else None),
            host_pid=pod.options.pid == cri.NamespaceMode.NODE,
            files=pod.files.mounts(),
        )
        return build(
            config=config, image=image, rootfs=rootfs, cgroup=cgroup, pod=view, host=self._host,
            target_pid=self._target(pod, config),
        )  # fmt: skip

    def _target(self, pod: Pod, config: cri.ContainerConfig) -> int | None:
        """The init of the container whose PID namespace is to be joined (namespace mode TARGET)."""
        security = config.linux.security_context if config.linux else None
        options = (security.namespace_options if security else None) or cri.NamespaceOption()
        if options.pid != cri.NamespaceMode.TARGET:
            return None
        target = self._state.containers.find(options.target_id)
        if target.record.pod_id != pod.id:
            raise InvalidArgument(f"cannot join the processes of container {target.id}: it is in another pod")
        if target.record.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"cannot join the processes of container {target.id}: it is not running")
        return target.record.pid

    async def _undo_create(self, handler: Handler, intent: IntentRecord) -> None:
        try:
            await run_to_end(self._forget_unfinished(handler, intent), limit_s=CLEANUP_LIMIT_S)
        except (Fault, OSError) as err:  # the cause of the undoing is what the caller must read
            log.warning(
                "what is left of a container is for the next start to undo",
                extra={"container": intent.id, "error": str(err)},
            )
            self._reconcile.request()  # what other agents hold need not wait for it

    async def _forget_unfinished(self, handler: Handler, intent: IntentRecord) -> None:
        await take_away(handler, self._cgroups, self._state.places, intent.id, intent.cgroup, ended=False)
        await self._state.store.delete(intent)
        try:
            await call(
                self._agents.storage.remove_rootfs,
                RemoveRootfsRequest(rootfs_id=intent.id),
                timeout_s=REMOTE_UNDO_LIMIT_S,
                agent="criw-storage",
            )
        except Fault as err:
            log.warning("a root filesystem is left for the next reconciliation", extra={"error": str(err)})
            self._reconcile.request()

    # --- start

    async def start(self, container: Container) -> None:
        """StartContainer. A container whose command cannot be run is EXITED with reason StartError afterwards."""
        await self._operations.run(f"start {container.id}", lambda: self._start(container))

    async def _start(self, container: Container) -> None:
        async with self._state.container_locks.hold(container.id):
            pod = self._state.pods.get(container.record.pod_id)
            if pod is None or not pod.ready:
                raise FailedPrecondition(f"cannot start container {container.id}: its pod sandbox is not ready")
            if container.record.state is not ContainerState.CREATED:
                raise FailedPrecondition(
                    f"cannot start container {container.id}: it is {container.record.state}; it starts only once"
                )
            handler = self._handlers.of_record(container.record.runtime)
            now = time.time_ns()  # before the start: nothing ends before it began
            try:
                await handler.start(container.id)
            except Fault as err:
                await self._ended(
                    container, code=START_FAILED_CODE, at_ns=time.time_ns(), reason="StartError", message=str(err)
                )
                raise
            await self._save(container, container.record.moved(ContainerState.RUNNING, started_at_ns=now))

    async def note_started(self, container: Container) -> None:
        """Record that a container runs whose start was carried out but never acknowledged."""
        async with self._state.container_locks.hold(container.id):
            await self._save(container, container.record.moved(ContainerState.RUNNING, started_at_ns=time.time_ns()))

    # --- the end of a container

    async def handle_end(self, container: Container) -> None:
        """Record the end of a container, told by conmon's exit file, or by conmon's own end without one.

        Repeated news change nothing.
        """
        async with self._state.container_locks.hold(container.id):
            if container.record.state is ContainerState.EXITED:
                return
            found = read_exit(self._state.places.exits, container.id)
            if found is None:
                await self._ended(
                    container, code=LOST_EXIT_CODE, at_ns=time.time_ns(), reason="Unknown",
                    message="the exit code is lost: the container's monitor (conmon) was killed, or the host restarted",
                )  # fmt: skip
                return
            ooms = await asyncio.to_thread(self._cgroups.oom_kills, container.record.cgroup)
            reason = "Completed" if found.code == 0 else "OOMKilled" if ooms else "Error"
            await self._ended(container, code=found.code, at_ns=found.at_ns, reason=reason)

    async def _ended(self, container: Container, *, code: int, at_ns: int, reason: str, message: str = "") -> None:
        """Record the end, once what the container left behind in shared PID namespaces is dead, too; then tidy up."""
        record = container.record
        try:
            await asyncio.to_thread(self._cgroups.kill, record.cgroup)
        except Fault as err:  # RemoveContainer does it again, and tells its caller if it still fails
            log.warning("cannot kill what a container left", extra={"container": container.id, "error": str(err)})
        finished = max(at_ns, record.started_at_ns)  # files have the coarser clock
        await self._save(
            container,
            record.moved(
                ContainerState.EXITED, finished_at_ns=finished, exit_code=code, reason=reason, message=message
            ),
        )
        try:
            await self._handlers.of_record(record.runtime).delete(container.id, force=True)
        except Fault as err:  # as above
            log.warning("cannot tidy up after a container", extra={"container": container.id, "error": str(err)})

    async def _save(self, container: Container, record: ContainerRecord) -> None:
        await self._state.store.put(record)
        container.update(record)

    # --- stop

    async def stop(self, container: Container, *, grace_s: float) -> None:
        """Send the stop signal, wait up to `grace_s` seconds, then kill; return once the exit is recorded.

        A call with a shorter grace while another waits shortens the wait. Raises Unavailable if the container is
        still alive some seconds after SIGKILL.
        """
        deadline = asyncio.get_running_loop().time() + max(grace_s, 0)
        if container.stopping is None:
            container.stopping = Stopping(deadline)
        elif deadline < container.stopping.deadline:
            container.stopping.deadline = deadline
            container.stopping.moved.set()
        stopping = container.stopping
        await self._stops.run(f"stop {container.id}", lambda: self._stop(container, stopping))

    async def _stop(self, container: Container, stopping: Stopping) -> None:
        try:
            async with self._state.container_locks.hold(container.id):  # a start in progress comes first
                record = container.record
            if record.state is ContainerState.RUNNING and stopping.deadline > asyncio.get_running_loop().time():
                await asyncio.to_thread(processes.send_signal, record.pid, record.pid_started, record.stop_signal)
                await self._wait_for_exit(container, stopping)
            if not container.exited.is_set():
                await self._kill(container)
        finally:
            container.stopping = None

    async def _kill(self, container: Container) -> None:
        record = container.record
        await asyncio.to_thread(processes.send_signal, record.pid, record.pid_started, signal.SIGKILL)
        try:
            await asyncio.wait_for(container.exited.wait(), KILL_LIMIT_S)
        except TimeoutError:
            if processes.start_time(record.pid) == record.pid_started:
                raise Unavailable(
                    f"cannot stop container {container.id}: process {record.pid} survives SIGKILL; is it stuck in I/O?"
                ) from None
            await self.handle_end(container)

    async def _wait_for_exit(self, container: Container, stopping: Stopping) -> None:
        loop = asyncio.get_running_loop()
        exited = asyncio.create_task(container.exited.wait())
        try:
            while not exited.done() and (left := stopping.deadline - loop.time()) > 0:
                moved = asyncio.create_task(stopping.moved.wait())
                await asyncio.wait({exited, moved}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
                stopping.moved.clear()
        finally:
            exited.cancel()

    # --- remove

    async def remove(self, container: Container) -> None:
        """Kill the container if it runs and remove everything of it but its log."""
        await self._operations.run(f"remove {container.id}", lambda: self._remove(container))

    async def _remove(self, container: Container) -> None:
        await self.stop(container, grace_s=0)
        async with self._state.container_locks.hold(container.id):
            if self._state.known_container(container.id) is None:
                return
            record = container.record
            handler = self._handlers.of_record(record.runtime)
            await together(
                take_away(handler, self._cgroups, self._state.places, record.id, record.cgroup, ended=True),
                self._remove_rootfs(record),
            )
            await self._state.store.delete(record)
            self._state.containers.discard(record.id)

    async def _remove_rootfs(self, record: ContainerRecord) -> None:
        if not record.infra:
            await call(
                self._agents.storage.remove_rootfs, RemoveRootfsRequest(rootfs_id=record.id), agent="criw-storage"
            )

    async def remove_all(self, containers: Sequence[Container]) -> None:
        """Remove several at once."""
        await together(*(self.remove(container) for container in containers))

    # --- update

    async def save_resources(self, container: Container, resources: cri.LinuxContainerResources) -> None:
        """Record the limits that are in force now."""
        await self._save(container, container.record.model_copy(update={"resources": bytes(resources)}))


def _same_or_refuse(existing: Container, config: cri.ContainerConfig) -> str:
    if existing.record.state is ContainerState.CREATED and existing.config == config:
        return existing.id
    raise AlreadyExists(
        f"cannot create container {existing.name}: {existing.id} in the same pod has this name and attempt and is "
        f"{existing.record.state}; remove it or raise metadata.attempt"
    )


def _reference(image: InspectResponse) -> str:
    return image.repo_digests[0] if image.repo_digests else image.id


def read_spec(container: Container) -> dict[str, object]:
    """The OCI configuration the container was made with; empty after its removal from the runtime's directory."""
    try:
        document: dict[str, object] = json.loads((container.bundle / "config.json").read_text(errors="surrogateescape"))
    except FileNotFoundError:
        return {}
    return document
