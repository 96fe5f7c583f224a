"""Measure each call of a pod's life against any CRI socket: p50, p95, p99 in milliseconds.

    python -m benchmarks.latency --endpoint /run/criw/criw.sock --image REFERENCE [--lives 30] [--json]

A life is RunPodSandbox, CreateContainer, StartContainer, StopContainer, StopPodSandbox, RemoveContainer and
RemovePodSandbox, with statuses and lists between them. The image must have a shell; it is pulled if it is missing.
`start` is the sum of the first three calls, `stop` that of the last four. With --list N, N containers (in as many pods)
are made and ListContainers is timed.
"""

import argparse
import json
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import uvloop
from grpclib.const import Cardinality

from criw.rpc.client import Channel
from criw_proto.runtime import v1 as cri

T = TypeVar("T")
_COMMAND = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
_LISTS = 200
_UNARY = Cardinality.UNARY_UNARY


class Timings:
    """Milliseconds by name of call."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {}

    async def time(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        started = time.perf_counter()
        result = await call()
        self.add(name, (time.perf_counter() - started) * 1000)
        return result

    def add(self, name: str, milliseconds: float) -> None:
        self.of.setdefault(name, []).append(milliseconds)

    def summary(self) -> dict[str, dict[str, float]]:
        return {name: _percentiles(values) for name, values in self.of.items()}


def _percentiles(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "p99": round(cuts[98], 2)}


def _pod(log_directory: str) -> cri.PodSandboxConfig:
    options = cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER)  # as the kubelet asks
    name = f"bench-{uuid.uuid4().hex[:12]}"
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=str(uuid.uuid4()), namespace="bench"),
        hostname="bench",
        log_directory=f"{log_directory}/{name}" if log_directory else "",
        linux=cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options)),
    )


def _container(image: str) -> cri.ContainerConfig:
    options = cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER)
    security = cri.LinuxContainerSecurityContext(namespace_options=options, seccomp=cri.SecurityProfile())
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="main"),
        image=cri.ImageSpec(image=image),
        command=_COMMAND,
        log_path="main.log",
        linux=cri.LinuxContainerConfig(security_context=security),
    )


async def _life(runtime: cri.RuntimeServiceStub, image: str, log_directory: str, timings: Timings) -> None:
    pod, container = _pod(log_directory), _container(image)
    begun = time.perf_counter()
    pod_id = (await timings.time("RunPodSandbox", lambda: runtime.run_pod_sandbox(_run(pod)))).pod_sandbox_id
    create = cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=pod)
    container_id = (await timings.time("CreateContainer", lambda: runtime.create_container(create))).container_id
    start = cri.StartContainerRequest(container_id=container_id)
    await timings.time("StartContainer", lambda: runtime.start_container(start))
    timings.add("start", (time.perf_counter() - begun) * 1000)
    pod_status = cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
    await timings.time("PodSandboxStatus", lambda: runtime.pod_sandbox_status(pod_status))
    status = cri.ContainerStatusRequest(container_id=container_id)
    await timings.time("ContainerStatus", lambda: runtime.container_status(status))
    execute = cri.ExecSyncRequest(container_id=container_id, cmd=["true"], timeout=10)
    await timings.time("ExecSync", lambda: runtime.exec_sync(execute))
    await timings.time("ListPodSandbox", lambda: runtime.list_pod_sandbox(cri.ListPodSandboxRequest()))
    await timings.time("ListContainers", lambda: runtime.list_containers(cri.ListContainersRequest()))
    stats = cri.ListContainerStatsRequest()
    await timings.time("ListContainerStats", lambda: runtime.list_container_stats(stats))
    begun = time.perf_counter()
    stop = cri.StopContainerRequest(container_id=container_id, timeout=10)
    await timings.time("StopContainer", lambda: runtime.stop_container(stop))
    stop_pod = cri.StopPodSandboxRequest(pod_sandbox_id=pod_id)
    await timings.time("StopPodSandbox", lambda: runtime.stop_pod_sandbox(stop_pod))
    remove = cri.RemoveContainerRequest(container_id=container_id)
    await timings.time("RemoveContainer", lambda: runtime.remove_container(remove))
    remove_pod = cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
    await timings.time("RemovePodSandbox", lambda: runtime.remove_pod_sandbox(remove_pod))
    timings.add("stop", (time.perf_counter() - begun) * 1000)


def _run(pod: cri.PodSandboxConfig) -> cri.RunPodSandboxRequest:
    return cri.RunPodSandboxRequest(config=pod)


async def _lists(runtime: cri.RuntimeServiceStub, image: str, log_directory: str, count: int, timings: Timings) -> None:
    pods = []
    try:
        for _ in range(count):
            pod = _pod(log_directory)
            pod_id = (await runtime.run_pod_sandbox(_run(pod))).pod_sandbox_id
            pods.append(pod_id)
            await runtime.create_container(
                cri.CreateContainerRequest(pod_sandbox_id=pod_id, config=_container(image), sandbox_config=pod)
            )
        for _ in range(_LISTS):
            await timings.time(f"ListContainers of {count}", lambda: _raw_list(runtime))
    finally:
        for pod_id in pods:
            await runtime.remove_pod_sandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


async def _raw_list(runtime: cri.RuntimeServiceStub) -> None:
    """ListContainers without decoding the reply here: the kubelet's time for that is not the runtime's."""
    path = "/runtime.v1.RuntimeService/ListContainers"
    assert isinstance(runtime.channel, Channel)
    async with runtime.channel.request(path, _UNARY, bytes, bytes, timeout=60) as stream:
        await stream.send_message(b"", end=True)
        await stream.recv_message()


async def measure(endpoint: Path, image: str, *, lives: int, list_of: int, log_directory: str) -> Timings:
    """Run the lives one after the other; the first one, which warms caches, is not counted."""
    timings = Timings()
    with closing(Channel(endpoint)) as channel:
        runtime, images = cri.RuntimeServiceStub(channel, timeout=240), cri.ImageServiceStub(channel, timeout=600)
        spec = cri.ImageSpec(image=image)
        if (await images.image_status(cri.ImageStatusRequest(image=spec))).image is None:
            await images.pull_image(cri.PullImageRequest(image=spec))
        await _life(runtime, image, log_directory, Timings())
        for _ in range(lives):
            await _life(runtime, image, log_directory, timings)
        if list_of:
            await _lists(runtime, image, log_directory, list_of, timings)
    return timings


def main() -> None:
    parser = argparse.ArgumentParser(description="Time each call of a pod's life against a CRI socket.")
    parser.add_argument("--endpoint", type=Path, default=Path("/run/criw/criw.sock"))
    parser.add_argument("--image", required=True, help="an image with a shell")
    parser.add_argument("--lives", type=int, default=30)
    parser.add_argument("--list", type=int, default=0, metavar="N", help="also time a list of N containers")
    parser.add_argument("--logs", default="", metavar="DIR", help="where the containers' logs go (default: none)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    timings = uvloop.run(
        measure(options.endpoint, options.image, lives=options.lives, list_of=options.list, log_directory=options.logs)
    )
    summary = timings.summary()
    if options.json:
        json.dump(summary, sys.stdout, indent=2)
        print()
        return
    print(f"{'call':<24}{'p50':>9}{'p95':>9}{'p99':>9}  ms")
    for name, row in summary.items():
        print(f"{name:<24}{row['p50']:>9.2f}{row['p95']:>9.2f}{row['p99']:>9.2f}")


if __name__ == "__main__":
    main()
