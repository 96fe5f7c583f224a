"""A CRI client with the few words tests need: pods and containers with sensible defaults, removed at the end."""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from criw.rpc.client import Channel
from criw_proto.runtime import v1 as cri

LIMIT_S: Final = 60.0
_POLL_S: Final = 0.02
PRIVATE_PID: Final = cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER)


class Client:
    """`name` begins the names of everything it makes."""

    def __init__(self, channel: Channel, logs: Path, *, name: str) -> None:
        self.runtime = cri.RuntimeServiceStub(channel, timeout=LIMIT_S)
        self.images = cri.ImageServiceStub(channel, timeout=LIMIT_S)
        self._logs = logs
        self._name = name
        self._numbers = itertools.count()
        self._pods: dict[str, cri.PodSandboxConfig] = {}

    # --- images

    async def pull(self, reference: str) -> str:
        """The image's id."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=reference))
        return (await self.images.pull_image(request)).image_ref

    async def remove_image(self, reference: str) -> None:
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=reference))
        await self.images.remove_image(request)

    # --- pods

    def pod_config(self, **changes: object) -> cri.PodSandboxConfig:
        """A pod of its own name whose containers have PID namespaces of their own, as the kubelet asks."""
        name = f"{self._name}-{next(self._numbers)}"
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="test"),
            hostname=name[-60:],
            log_directory=str(self._logs / name),
            linux=cri.LinuxPodSandboxConfig(
                security_context=cri.LinuxSandboxSecurityContext(namespace_options=PRIVATE_PID)
            ),
        )
        for field, value in changes.items():
            setattr(config, field, value)
        return config

    def privileged_pod_config(self) -> cri.PodSandboxConfig:
        """A pod that may have privileged containers."""
        config = self.pod_config()
        assert config.linux is not None
        assert config.linux.security_context is not None
        config.linux.security_context.privileged = True
        return config

    async def run_pod(self, config: cri.PodSandboxConfig | None = None) -> str:
        config = config or self.pod_config()
        reply = await self.runtime.run_pod_sandbox(cri.RunPodSandboxRequest(config=config))
        self._pods[reply.pod_sandbox_id] = config
        return reply.pod_sandbox_id

    async def pod_status(self, pod_id: str) -> cri.PodSandboxStatus:
        reply = await self.runtime.pod_sandbox_status(cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id))
        assert reply.status is not None
        return reply.status

    async def stop_pod(self, pod_id: str) -> None:
        await self.runtime.stop_pod_sandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod_id))

    async def remove_pod(self, pod_id: str) -> None:
        await self.runtime.remove_pod_sandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
        self._pods.pop(pod_id, None)

    async def remove_all(self) -> None:
        """Stop and remove every pod that was run here."""
        for pod_id in list(self._pods):
            await self.stop_pod(pod_id)
            await self.remove_pod(pod_id)

    # --- containers

    async def create(
        self,
        pod_id: str,
        image: str,
        command: Sequence[str] = ("sleep", "3600"),
        *,
        name: str = "main",
        attempt: int = 0,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[cri.Mount] = (),
        security: cri.LinuxContainerSecurityContext | None = None,
        resources: cri.LinuxContainerResources | None = None,
        change: Callable[[cri.ContainerConfig], None] = lambda config: None,
    ) -> str:
        """CreateContainer; its log is `<name>.log` in the pod's log directory."""
        pod = self._pods[pod_id]
        options = pod.linux.security_context.namespace_options if pod.linux and pod.linux.security_context else None
        context = security or cri.LinuxContainerSecurityContext()
        context.namespace_options = context.namespace_options or options
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name, attempt=attempt),
            image=cri.ImageSpec(image=image),
            command=list(command),
            envs=[cri.KeyValue(key=key, value=value.encode()) for key, value in (env or {}).items()],
            mounts=list(mounts),
            log_path=f"{name}.log",
            linux=cri.LinuxContainerConfig(resources=resources, security_context=context),
        )
        change(config)
        request = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
        return (await self.runtime.create_container(request)).container_id

    async def start(self, container_id: str) -> None:
        await self.runtime.start_container(cri.StartContainerRequest(container_id=container_id))

    async def run(
        self, pod_id: str, image: str, command: Sequence[str] = ("sleep", "3600"), *, name: str = "main"
    ) -> str:
        """Create and start."""
        container_id = await self.create(pod_id, image, command, name=name)
        await self.start(container_id)
        return container_id

    async def stop(self, container_id: str, *, timeout_s: int = 0) -> None:
        await self.runtime.stop_container(cri.StopContainerRequest(container_id=container_id, timeout=timeout_s))

    async def remove(self, container_id: str) -> None:
        await self.runtime.remove_container(cri.RemoveContainerRequest(container_id=container_id))

    async def status(self, container_id: str) -> cri.ContainerStatus:
        reply = await self.runtime.container_status(cri.ContainerStatusRequest(container_id=container_id))
        assert reply.status is not None
        return reply.status

    async def exited(self, container_id: str) -> cri.ContainerStatus:
        """The status as soon as the container has ended; asked for again and again, as the CRI has no call to wait."""
        until = time.monotonic() + LIMIT_S
        while (status := await self.status(container_id)).state != cri.ContainerState.CONTAINER_EXITED:
            assert time.monotonic() < until, f"container {container_id} is still {status.state!r}"
            await asyncio.sleep(_POLL_S)
        return status

    async def exec(self, container_id: str, *command: str, timeout_s: int = 20) -> cri.ExecSyncResponse:
        return await self.runtime.exec_sync(
            cri.ExecSyncRequest(container_id=container_id, cmd=list(command), timeout=timeout_s)
        )

    async def output(self, container_id: str, *command: str) -> str:
        """What a command that must succeed prints."""
        reply = await self.exec(container_id, *command)
        assert reply.exit_code == 0, reply
        return reply.stdout.decode()

    def log(self, pod_id: str, name: str = "main") -> list[str]:
        """The lines of a container's log, without the newline."""
        return Path(self._pods[pod_id].log_directory, f"{name}.log").read_text().splitlines()
