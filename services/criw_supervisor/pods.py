"""The life of pod sandboxes: run, stop, remove."""

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from criw import kernel
from criw.errors import AlreadyExists, Fault, InvalidArgument
from criw.ids import new_id
from criw.operations import Operations, run_to_end, together
from criw.rpc.client import call
from criw_proto.criw.network.v1 import AttachRequest, AttachResponse, DetachRequest, NetworkStub, PortMapping
from criw_proto.runtime import v1 as cri
from criw_supervisor import sandbox
from criw_supervisor.cgroups import Cgroups, check_parent
from criw_supervisor.containers import CLEANUP_LIMIT_S, REMOTE_UNDO_LIMIT_S, Containers
from criw_supervisor.infra import launch_infra
from criw_supervisor.launch import take_away
from criw_supervisor.pod import Container, Pod, namespace_options
from criw_supervisor.reconcile import Reconcile
from criw_supervisor.records import ContainerRecord, IntentRecord, PodRecord, PodState
from criw_supervisor.runtime import Handler, Handlers
from criw_supervisor.state import State

log = logging.getLogger(__name__)
_PROTOCOLS: Final = {cri.Protocol.TCP: "tcp", cri.Protocol.UDP: "udp", cri.Protocol.SCTP: "sctp"}
_PORTS: Final = range(1, 65536)


class Pods:
    def __init__(
        self, state: State, handlers: Handlers, cgroups: Cgroups, containers: Containers, network: NetworkStub,
        reconcile: Reconcile, *, cgroup_parent: str,
    ) -> None:  # fmt: skip
        self._state = state
        self._handlers = handlers
        self._cgroups = cgroups
        self._containers = containers
        self._network = network
        self._reconcile = reconcile
        self._cgroup_parent = cgroup_parent
        self._operations = Operations()

    async def drain(self) -> None:
        """Wait until every operation in progress has ended."""
        await self._operations.drain()

    # --- run

    async def run(self, config: cri.PodSandboxConfig, runtime_handler: str) -> str:
        """RunPodSandbox: its id. The same request again, also while the first is in progress, gives the same id."""
        metadata = _checked(config)
        key = f"run {metadata.namespace}/{metadata.name} {metadata.uid} {metadata.attempt}"
        return await self._operations.run(key, lambda: self._run(config, runtime_handler))

    async def _run(self, config: cri.PodSandboxConfig, runtime_handler: str) -> str:
        assert config.metadata is not None
        if (existing := self._state.pod_named(config.metadata)) is not None:
            return _same_or_refuse(existing, config)
        handler = self._handlers.get(runtime_handler)
        pod_id = new_id()
        asked = config.linux.cgroup_parent if config.linux else ""
        cgroup = check_parent(asked) if asked else f"{self._cgroup_parent}/{pod_id}"
        async with self._state.pod_locks.hold(pod_id), AsyncExitStack() as undo:
            self._state.pending.add(pod_id)
            undo.callback(self._state.pending.discard, pod_id)
            intent = IntentRecord(
                id=pod_id,
                what="pod",
                runtime=handler.name,
                cgroup=cgroup,
                owns_cgroup=self._is_ours(cgroup),
            )
            undo.push_async_callback(self._undo_run, handler, intent)
            await self._state.store.commit(create=[intent])
            record, infra = await self._make(config, runtime_handler, handler, intent)
            records = [record] if infra is None else [record, infra]
            await self._state.store.commit(delete=[intent], create=records)
            undo.pop_all()
            if infra is not None:
                self._state.add_container(Container(infra, self._state.places.bundle(pod_id)))
            self._state.pods.add(Pod(record, self._state.places.pod(pod_id)))
            self._state.pending.discard(pod_id)
        return pod_id

    def _is_ours(self, cgroup: str) -> bool:
        """Whether a pod's cgroup is ours to make, and to remove with the last pod that is in it."""
        return not self._cgroups.exists(cgroup) or any(
            pod.record.cgroup == cgroup and pod.record.owns_cgroup for pod in self._state.pods
        )

    async def _make(
        self, config: cri.PodSandboxConfig, runtime_handler: str, handler: Handler, intent: IntentRecord
    ) -> tuple[PodRecord, ContainerRecord | None]:
        options = namespace_options(config)
        host_network = options.network == cri.NamespaceMode.NODE
        own_ipc = options.ipc != cri.NamespaceMode.NODE
        network_sysctls, local_sysctls = sandbox.split_sysctls(
            config.linux.sysctls if config.linux else {}, own_network=not host_network, own_ipc=own_ipc
        )
        hostname = sandbox.host_name() if host_network else _hostname(config, intent.id)
        files = self._state.places.pod(intent.id)
        attached = AttachResponse()

        async def attach() -> None:
            nonlocal attached
            request = AttachRequest(pod_id=intent.id, port_mappings=_host_ports(config), sysctls=network_sysctls)
            attached = await call(self._network.attach, request, agent="criw-network")

        await together(
            *(() if host_network else (attach(),)),
            asyncio.to_thread(self._cgroups.create, intent.cgroup),
            kernel.in_fresh_thread(
                partial(
                    sandbox.create,
                    files,
                    hostname=hostname,
                    own_uts=not host_network,
                    own_ipc=own_ipc,
                    sysctls=local_sysctls,
                )
            ),
        )
        await asyncio.to_thread(
            partial(
                sandbox.write_etc, files, hostname=hostname, ips=attached.ips, host_network=host_network,
                dns=config.dns_config,
            )
        )  # fmt: skip
        record = PodRecord(
            id=intent.id,
            config=bytes(config),
            runtime_handler=runtime_handler,
            runtime=handler.name,
            state=PodState.READY,
            created_at_ns=time.time_ns(),
            netns=attached.netns_path,
            ips=tuple(attached.ips),
            cgroup=intent.cgroup,
            owns_cgroup=intent.owns_cgroup,
        )
        infra = None
        if options.pid == cri.NamespaceMode.POD:
            infra = await launch_infra(handler, self._state.places, record)
        return record, infra

    async def _undo_run(self, handler: Handler, intent: IntentRecord) -> None:
        try:
            await run_to_end(self._forget_unfinished(handler, intent), limit_s=CLEANUP_LIMIT_S)
        except (Fault, OSError) as err:  # the cause of the undoing is what the caller must read
            log.warning(
                "what is left of a pod is for the next start to undo", extra={"pod": intent.id, "error": str(err)}
            )
            self._reconcile.request()  # what other agents hold need not wait for it

    async def _forget_unfinished(self, handler: Handler, intent: IntentRecord) -> None:
        places = self._state.places
        await take_away(handler, self._cgroups, places, intent.id, f"{intent.cgroup}/{intent.id}", ended=False)
        await asyncio.to_thread(sandbox.remove, places.pod(intent.id))
        if intent.owns_cgroup:
            await asyncio.to_thread(self._cgroups.remove_empty, intent.cgroup, upto=self._cgroup_parent)
        await self._state.store.delete(intent)
        try:
            await call(
                self._network.detach,
                DetachRequest(pod_id=intent.id),
                timeout_s=REMOTE_UNDO_LIMIT_S,
                agent="criw-network",
            )
        except Fault as err:
            log.warning("a pod's network is left for the next reconciliation", extra={"error": str(err)})
            self._reconcile.request()

    # --- stop

    async def stop(self, pod: Pod) -> None:
        """Stop the pod's containers and give back its network, namespaces and infra container."""
        await self._operations.run(f"stop {pod.id}", lambda: self._stop(pod))

    async def _stop(self, pod: Pod) -> None:
        async with self._state.pod_locks.hold(pod.id):  # a container being made comes first, and is stopped then
            if pod.record.state is PodState.STOPPED:
                return
            if pod.record.state is PodState.READY:
                await self._save(pod, pod.record.model_copy(update={"state": PodState.STOPPING}))
            await together(*(self._containers.stop(one, grace_s=0) for one in self._state.containers_of(pod.id)))
            infra = self._state.infra.get(pod.id)
            if infra is not None:
                await self._containers.remove(infra)
                self._state.infra.pop(pod.id, None)
            await together(
                *((self._detach(pod),) if pod.record.netns else ()),
                asyncio.to_thread(sandbox.unpin, pod.files),
            )
            await self._save(pod, pod.record.model_copy(update={"state": PodState.STOPPED, "netns": ""}))

    async def _detach(self, pod: Pod) -> None:
        await call(self._network.detach, DetachRequest(pod_id=pod.id), agent="criw-network")

    async def lose(self, pod: Pod) -> None:
        """Record that the sandbox is broken for good: its infra process or its network namespace is gone."""
        async with self._state.pod_locks.hold(pod.id):
            if pod.record.state is PodState.READY:
                log.warning("pod sandbox is broken", extra={"pod": pod.id})
                await self._save(pod, pod.record.model_copy(update={"state": PodState.STOPPING}))

    async def _save(self, pod: Pod, record: PodRecord) -> None:
        await self._state.store.put(record)
        pod.update(record)

    # --- remove

    async def remove(self, pod: Pod) -> None:
        """Stop the pod if need be and remove it with its containers."""
        await self._operations.run(f"remove {pod.id}", lambda: self._remove(pod))

    async def _remove(self, pod: Pod) -> None:
        await self.stop(pod)
        async with self._state.pod_locks.hold(pod.id):
            if self._state.pods.get(pod.id) is None:
                return
            await self._containers.remove_all(list(self._state.containers_of(pod.id)))
            await asyncio.to_thread(sandbox.remove, pod.files)
            if pod.record.owns_cgroup:
                await asyncio.to_thread(self._cgroups.remove_empty, pod.record.cgroup, upto=self._cgroup_parent)
            await self._state.store.delete(pod.record)
            self._state.pods.discard(pod.id)


def _checked(config: cri.PodSandboxConfig) -> cri.PodSandboxMetadata:
    """The metadata of a request that can be carried out. Raises InvalidArgument."""
    metadata = config.metadata
    if metadata is None:
        raise InvalidArgument("cannot run the pod sandbox: config.metadata is missing")
    for key in ("name", "namespace", "uid"):
        if not getattr(metadata, key):
            raise InvalidArgument(f"cannot run the pod sandbox: config.metadata.{key} is missing")
    if config.log_directory and not Path(config.log_directory).is_absolute():
        raise InvalidArgument(
            f"cannot run pod sandbox {metadata.name}: log_directory {config.log_directory} must be an absolute path"
        )
    options = namespace_options(config)
    if options.userns_options is not None and options.userns_options.mode != cri.NamespaceMode.NODE:
        raise InvalidArgument(
            f"cannot run pod sandbox {metadata.name}: user namespaces are not supported by this runtime (see Status)"
        )
    if options.pid not in {cri.NamespaceMode.POD, cri.NamespaceMode.CONTAINER, cri.NamespaceMode.NODE}:
        raise InvalidArgument(
            f"cannot run pod sandbox {metadata.name}: namespace mode of pid must be POD, CONTAINER or NODE"
        )
    for key in ("network", "ipc"):
        if getattr(options, key) not in {cri.NamespaceMode.POD, cri.NamespaceMode.NODE}:
            raise InvalidArgument(
                f"cannot run pod sandbox {metadata.name}: namespace mode of {key} must be POD or NODE"
            )
    return metadata


def _hostname(config: cri.PodSandboxConfig, pod_id: str) -> str:
    """The hostname asked for; without one the pod's name, or the short id where the name cannot be one."""
    if config.hostname:
        sandbox.check_hostname(config.hostname)
        return config.hostname
    name = _name_of(config)
    return name if sandbox.is_hostname(name) else pod_id[:12]


def _name_of(config: cri.PodSandboxConfig) -> str:
    return config.metadata.name if config.metadata else ""


def _host_ports(config: cri.PodSandboxConfig) -> list[PortMapping]:
    """The mappings with a host port; others only tell what the pod listens on. Raises InvalidArgument."""
    result = []
    for mapping in config.port_mappings:
        if mapping.host_port == 0:
            continue
        if (
            mapping.container_port not in _PORTS
            or mapping.host_port not in _PORTS
            or mapping.protocol not in _PROTOCOLS
        ):
            raise InvalidArgument(
                f"cannot map host port {mapping.host_port} to port {mapping.container_port}: ports are 1 to 65535, "
                "protocols TCP, UDP and SCTP"
            )
        result.append(
            PortMapping(
                protocol=_PROTOCOLS[mapping.protocol],
                container_port=mapping.container_port,
                host_port=mapping.host_port,
                host_ip=mapping.host_ip,
            )
        )
    return result


def _same_or_refuse(existing: Pod, config: cri.PodSandboxConfig) -> str:
    if existing.ready and existing.config == config:
        return existing.id
    raise AlreadyExists(
        f"cannot run pod sandbox {_name_of(config)}: {existing.id} has the same name, namespace, uid and attempt; "
        "remove it or raise metadata.attempt"
    )
