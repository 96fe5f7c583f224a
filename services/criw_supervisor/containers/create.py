"""CreateContainer: image, root filesystem, OCI configuration, and the task that waits to be started."""

import contextlib
import logging
import time
from functools import partial
from pathlib import Path

from criw.errors import AlreadyExists, FailedPrecondition, Fault, InvalidArgument
from criw_proto.runtime.v1 import NamespaceMode
from criw_supervisor import processes
from criw_supervisor.containers.lookups import Lookups
from criw_supervisor.containers.request import ContainerPlan
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.ledger import REMOTE_UNDO_LIMIT_S, Ledger
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.records import ContainerRecord, IntentRecord
from criw_supervisor.ledger.sameness import digest
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.oci.document import ContainerSpec, Host, Outside, PodView, build
from criw_supervisor.oci.image import ImageConfig, parse_image_config
from criw_supervisor.peers.images import Images
from criw_supervisor.peers.storage import Storage
from criw_supervisor.runtimes.handler import Handler, Launch, Task, task_of
from criw_supervisor.runtimes.handlers import Handlers
from criw_supervisor.signals import parse_signal

log = logging.getLogger(__name__)


class CreateContainer:
    """Needs every pod's infra container started before its containers (see `criw_supervisor.pods.run`)."""

    def __init__(self, ledger: Ledger, handlers: Handlers, images: Images, storage: Storage, host: Host) -> None:
        self._ledger = ledger
        self._handlers = handlers
        self._images = images
        self._storage = storage
        self._host = host
        self._lookups = Lookups()

    async def create(self, pod: Pod, plan: ContainerPlan) -> str:
        """Make the container; its id, which is another's if the same request was carried out before.

        Raises AlreadyExists if the pod has a container of this name that is not the same.
        """
        async with self._ledger.pod_locks.hold(pod.id):
            if (existing := self._ledger.container_named(pod.id, plan.name)) is not None:
                return _same_or_refuse(existing, plan)
            if not pod.ready:
                raise FailedPrecondition(f"cannot create a container in pod sandbox {pod.id}: it is not ready")
            handler = self._handlers.of_record(pod.record.runtime)
            intent = IntentRecord(
                id=plan.id,
                what="container",
                runtime=handler.name,
                cgroup=f"{pod.record.cgroup}/{plan.id}",
            )
            async with self._ledger.making(intent, self.undo) as making:
                record = await self._make(pod, plan, handler, Task(plan.id, intent.cgroup))
                await making.commit(record)
                handler.watch(task_of(record))
            return plan.id

    async def _make(self, pod: Pod, plan: ContainerPlan, handler: Handler, task: Task) -> ContainerRecord:
        image = await self._images.inspect(plan.image)
        outside = await self._lookups.outside(plan.parts)
        if plan.log_path:
            await self._lookups.log_directory(plan.log_path)
        rootfs = await self._storage.create_rootfs(plan.id, image.id)
        config = parse_image_config(image.config, plan.image)
        with contextlib.ExitStack() as held:  # the namespace must be there until the runtime has joined it
            shared = self._pid_namespace(pod, plan, held)
            specify = partial(self._specify, pod, plan, config, rootfs, task.cgroup, outside, shared)
            spec = await self._lookups.look("volumes of", plan.id, specify)
            created = await handler.create(
                Launch(task, plan.name.name, spec.document, plan.log_path, plan.terminal, plan.stdin, plan.stdin_once)
            )
        return ContainerRecord(
            id=plan.id,
            pod_id=pod.id,
            config=plan.config,
            runtime=handler.name,
            image_id=image.id,
            image_ref=image.reference,
            cgroup=task.cgroup,
            log_path=plan.log_path,
            state=ContainerState.CREATED,
            created_at_ns=time.time_ns(),
            pid=created.pid,
            pid_started=created.pid_started,
            resources=bytes(spec.resources),
            uid=spec.user.uid,
            gid=spec.user.gid,
            groups=spec.user.groups,
            stop_signal=plan.stop_signal or parse_signal(config.stop_signal or "SIGTERM"),
        )

    def _specify(
        self, pod: Pod, plan: ContainerPlan, image: ImageConfig, rootfs: Path, cgroup: str, outside: Outside,
        shared: str | None,
    ) -> ContainerSpec:  # fmt: skip
        targeted = plan.parts.pid == NamespaceMode.TARGET
        view = PodView(
            hostname=pod.record.hostname,
            namespaces=pod.namespaces() | ({"pid": shared} if shared is not None and not targeted else {}),
            host_pid=pod.options.pid == NamespaceMode.NODE,
            files=pod.files.mounts(),
        )
        return build(
            plan.parts, image=image, rootfs=rootfs, cgroup=cgroup, pod=view, host=self._host, outside=outside,
            target=shared if targeted else None,
        )  # fmt: skip

    def _pid_namespace(self, pod: Pod, plan: ContainerPlan, held: contextlib.ExitStack) -> str | None:
        """The PID namespace to be joined, if any: the pod's, or of the container the request names (mode TARGET)."""
        holder = self._ledger.infra.get(pod.id)
        if plan.parts.pid == NamespaceMode.TARGET:
            holder = self._target(pod, plan)
        elif plan.parts.pid != NamespaceMode.POD or holder is None:
            return None
        return held.enter_context(processes.pid_namespace(holder.record.pid, holder.record.pid_started))

    def _target(self, pod: Pod, plan: ContainerPlan) -> Container:
        target = self._ledger.containers.find(plan.parts.target_id)
        if target.record.pod_id != pod.id:
            raise InvalidArgument(f"cannot join the processes of container {target.id}: it is in another pod")
        if not target.running:
            raise FailedPrecondition(f"cannot join the processes of container {target.id}: it is not running")
        return target

    async def undo(self, intent: IntentRecord) -> None:
        """Take away whatever of a container was made. Repeating it is a success."""
        await self._handlers.of_record(intent.runtime).delete(Task(intent.id, intent.cgroup), ended=False)
        try:
            await self._storage.remove_rootfs(intent.id, limit_s=REMOTE_UNDO_LIMIT_S)
        except Fault as err:
            log.warning("a root filesystem is left for the next reconciliation", extra={"error": str(err)})


def _same_or_refuse(existing: Container, plan: ContainerPlan) -> str:
    if existing.record.state is ContainerState.CREATED and digest(existing.config) == plan.digest:
        return existing.id
    raise AlreadyExists(
        f"cannot create container {plan.name.name}: {existing.id} in the same pod has this name and attempt and is "
        f"{existing.record.state}; remove it or raise metadata.attempt"
    )
