"""RunPodSandbox: network, namespaces, cgroup, files and, where PIDs are shared, the infra container."""

import asyncio
import itertools
import logging
import time
from functools import partial

from criw import kernel
from criw.errors import AlreadyExists, Fault
from criw.operations import together
from criw_supervisor.cgroups.hierarchies import Cgroups
from criw_supervisor.ledger.ledger import REMOTE_UNDO_LIMIT_S, Ledger
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.ledger.pod import Pod
from criw_supervisor.ledger.records import IntentRecord, PodRecord
from criw_supervisor.ledger.sameness import digest
from criw_supervisor.ledger.states import PodState
from criw_supervisor.peers.network import Attached, Network
from criw_supervisor.pods import etc, infra, namespaces
from criw_supervisor.pods.request import PodPlan
from criw_supervisor.runtimes.handler import Handler, Task, task_of
from criw_supervisor.runtimes.handlers import Handlers

log = logging.getLogger(__name__)


class RunPod:
    def __init__(self, ledger: Ledger, handlers: Handlers, cgroups: Cgroups, network: Network) -> None:
        self._ledger = ledger
        self._handlers = handlers
        self._cgroups = cgroups
        self._network = network

    async def run(self, plan: PodPlan) -> str:
        """Make the pod; its id, which is another's if the same request was carried out before.

        Raises AlreadyExists if there is a pod of this name that is not the same.
        """
        async with self._ledger.names.hold(f"pod {plan.name}"):
            if (existing := self._ledger.pod_named(plan.name)) is not None:
                return _same_or_refuse(existing, plan)
            handler = self._handlers.get(plan.runtime_handler)
            owned = await asyncio.to_thread(self._cgroups.tops, plan.cgroup, ours=self._owned)
            intent = IntentRecord(id=plan.id, what="pod", runtime=handler.name, cgroup=plan.cgroup, owned=owned)
            async with self._ledger.pod_locks.hold(plan.id), self._ledger.making(intent, self.undo) as making:
                record = await self._make(plan, handler, intent)
                if plan.infra:
                    holder = await infra.launch(handler, self._ledger.places, record)
                    await making.commit(record, holder)
                    handler.watch(task_of(holder))
                else:
                    await making.commit(record)
        return plan.id

    def _owned(self) -> set[str]:
        """The topmost cgroup directories that were made for pods: whoever shares one with others may be its last."""
        pods = (pod.record.owned for pod in self._ledger.pods)
        return set(itertools.chain(*pods, *(intent.owned for intent in list(self._ledger.unfinished.values()))))

    async def _make(self, plan: PodPlan, handler: Handler, intent: IntentRecord) -> PodRecord:
        files = self._ledger.places.pod(plan.id)
        results = await together(
            self._attach(plan),
            asyncio.to_thread(self._cgroups.create, plan.cgroup),
            kernel.in_fresh_thread(partial(_make_files, files, plan)),
        )
        attached = results[0] or Attached()  # of the host's network there is nothing to tell
        etc.add_addresses(files, plan.etc, attached.ips)
        return PodRecord(
            id=plan.id,
            config=plan.config,
            runtime_handler=plan.runtime_handler,
            runtime=handler.name,
            state=PodState.READY,
            created_at_ns=time.time_ns(),
            hostname=plan.etc.hostname,
            netns=attached.netns,
            ips=attached.ips,
            cgroup=plan.cgroup,
            owned=intent.owned,
        )

    async def _attach(self, plan: PodPlan) -> Attached | None:
        return None if plan.network is None else await self._network.attach(plan.id, plan.network)

    async def undo(self, intent: IntentRecord) -> None:
        """Take away whatever of a pod was made. Repeating it is a success."""
        handler = self._handlers.of_record(intent.runtime)
        await handler.delete(Task(intent.id, f"{intent.cgroup}/{intent.id}"), ended=False)
        await asyncio.to_thread(namespaces.remove, self._ledger.places.pod(intent.id))
        await asyncio.to_thread(self._cgroups.remove_empty, intent.cgroup, intent.owned)
        try:
            await self._network.detach(intent.id, limit_s=REMOTE_UNDO_LIMIT_S)
        except Fault as err:
            log.warning("a pod's network is left for the next reconciliation", extra={"error": str(err)})


def _make_files(files: PodFiles, plan: PodPlan) -> None:
    """Changes the calling thread's namespaces."""
    namespaces.create(files, plan.namespaces)
    etc.write(files, plan.etc)


def _same_or_refuse(existing: Pod, plan: PodPlan) -> str:
    same = digest(existing.config) == plan.digest and existing.record.runtime_handler == plan.runtime_handler
    if existing.ready and same:
        return existing.id
    raise AlreadyExists(
        f"cannot run pod sandbox {plan.name.name}: {existing.id} has the same name, namespace, uid and attempt; "
        "remove it or raise metadata.attempt"
    )
