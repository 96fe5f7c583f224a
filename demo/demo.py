"""`make demo`: from an empty host to a pod and back, step by step, each with its time.

It starts a registry and a crew on directories, ports, a bridge and a cgroup of their own, does what a user would, and
proves at the end that nothing is left. It exits with 1 if a step fails, having cleaned up all the same. `KEEP=1` stops
before the removal and leaves pod and crew to the user.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import aiohttp

from criw import kernel
from criw.rpc.client import Channel
from criw_proto.runtime.v1 import (
    ContainerConfig,
    ContainerMetadata,
    CreateContainerRequest,
    ImageServiceStub,
    ImageSpec,
    LinuxContainerConfig,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    ListContainersRequest,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
    PodSandboxStatusRequest,
    PullImageRequest,
    RunPodSandboxRequest,
    RuntimeServiceStub,
    StartContainerRequest,
)
from demo.sessions import SIZE, forwarded, interactive
from support import host, images
from support.crew import Crew, python_environment
from support.registry import Registry, running_registry

LIMIT_S: Final = 30.0
CLIENT: Final = 'trap "exit 0" TERM; while true; do wget -qO- http://127.0.0.1/ || echo "no page yet"; sleep 0.2; done'
NAMESPACES: Final = ("ipc", "mnt", "net", "pid", "uts")


class StepFailed(Exception):  # noqa: N818 — said to the user, then the demo cleans up and ends
    """A step did not show what it should."""


class Demo:
    """What the steps share."""

    def __init__(self, crew: Crew, registry: Registry) -> None:
        self.crew = crew
        self.nginx = f"{registry.address}/library/nginx:latest"
        self.busybox = f"{registry.address}/library/busybox:latest"
        self.channel = Channel(crew.config.socket("cri"))
        self.runtime = RuntimeServiceStub(self.channel)
        self.up: subprocess.Popen[bytes] | None = None
        self.pod_id = ""
        self.ip = ""
        self.namespaces: set[str] = set()  # of the pod's containers, as /proc names them
        self.removal_began = 0.0  # seconds since the host was started
        self._numbers = itertools.count(1)

    @property
    def logs(self) -> Path:
        return self.crew.directory / "logs"

    @property
    def crew_log(self) -> Path:
        return self.crew.directory / "crew.log"

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        print(f"\n{next(self._numbers)}. {title}", flush=True)
        started = time.monotonic()
        try:
            yield
        finally:
            print(f"   ({time.monotonic() - started:.2f} s)", flush=True)

    async def criwctl(self, *argv: str, quiet: bool = False) -> str:
        """Run criwctl as a user would, show what it says unless `quiet`, and return it. Raises StepFailed."""
        if not quiet:
            show(f"$ criwctl {shlex.join(argv)}")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "criw_ctl", "--config", os.fspath(self.crew.config_path), *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=python_environment(),
        )
        try:
            stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode or not quiet:
            show((stdout + stderr).decode(errors="replace"))
        if process.returncode:
            raise StepFailed(f"criwctl {argv[0]} ended with {process.returncode}")
        return stdout.decode()

    async def inspect(self, name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(await self.criwctl("inspect", name, quiet=True))
        return found

    async def start_crew(self) -> None:
        with self.crew_log.open("wb") as log:
            self.up = subprocess.Popen(  # noqa: ASYNC220 — with KEEP=1 it outlives the event loop
                [sys.executable, "-m", "criw_ctl", "--config", os.fspath(self.crew.config_path), "up"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=python_environment(),
                start_new_session=True,
            )
        await eventually("the crew is ready", self._is_ready)
        show(f"criwctl up runs as process {self.up.pid}; its log is {self.crew_log}")

    async def _is_ready(self) -> bool:
        assert self.up is not None
        if self.up.poll() is not None:
            raise StepFailed(f"criwctl up ended with {self.up.returncode}:\n{self.crew_log.read_text()[-3000:]}")
        return "The crew is ready" in self.crew_log.read_text()

    async def pull(self, image: str) -> None:
        reply = await ImageServiceStub(self.channel).pull_image(PullImageRequest(image=ImageSpec(image=image)))
        show(f"PullImage {image} → {reply.image_ref}")

    async def run_pod(self) -> None:
        """A pod as the kubelet would make it: two containers that share the network."""
        self.logs.mkdir()
        config = PodSandboxConfig(
            metadata=PodSandboxMetadata(name="shop", uid=str(uuid.uuid4()), namespace="default"),
            hostname="shop",
            log_directory=os.fspath(self.logs),
            linux=LinuxPodSandboxConfig(
                security_context=LinuxSandboxSecurityContext(
                    namespace_options=NamespaceOption(pid=NamespaceMode.CONTAINER)
                )
            ),
        )
        self.pod_id = (await self.runtime.run_pod_sandbox(RunPodSandboxRequest(config=config))).pod_sandbox_id
        for name, image, command in (("nginx", self.nginx, []), ("client", self.busybox, ["sh", "-c", CLIENT])):
            container = ContainerConfig(
                metadata=ContainerMetadata(name=name),
                image=ImageSpec(image=image),
                command=command,
                log_path=f"{name}.log",
                linux=LinuxContainerConfig(
                    security_context=LinuxContainerSecurityContext(
                        namespace_options=NamespaceOption(pid=NamespaceMode.CONTAINER)
                    )
                ),
            )
            request = CreateContainerRequest(pod_sandbox_id=self.pod_id, config=container, sandbox_config=config)
            container_id = (await self.runtime.create_container(request)).container_id
            await self.runtime.start_container(StartContainerRequest(container_id=container_id))
            show(f"container {name}: {container_id}")
        status = (await self.runtime.pod_sandbox_status(PodSandboxStatusRequest(pod_sandbox_id=self.pod_id))).status
        assert status is not None
        assert status.network is not None
        self.ip = status.network.ip
        for pid in (await self.pids()).values():
            self.namespaces |= {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in NAMESPACES}
        self.namespaces -= {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in NAMESPACES}
        show(f"pod {self.pod_id} has the address {self.ip}, its containers the namespaces {sorted(self.namespaces)}")

    async def pids(self) -> dict[str, int]:
        """The containers' first processes, by name."""
        found = {}
        for name in ("nginx", "client"):
            info = (await self.inspect(name))["info"]
            assert isinstance(info, dict)
            found[name] = int(info["pid"])
        return found

    async def client_sees_the_page(self) -> None:
        log = self.logs / "client.log"

        async def seen() -> bool:
            return images.PAGE.strip() in log.read_text()

        await eventually("the client has fetched the page", seen)
        show(next(line for line in log.read_text().splitlines() if images.PAGE.strip() in line))

    async def fetch(self, url: str) -> None:
        """Raises StepFailed if it is not the page."""
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as reply:
            page = await reply.text()
        show(f"GET {url} → {reply.status} {page}")
        if page != images.PAGE:
            raise StepFailed("the page is another one")

    async def type_in_a_terminal(self) -> None:
        """A shell in the container, at a terminal that has our size; its exit code is criwctl's."""
        argv = ("exec", "-it", "client", "sh")
        show(f"$ criwctl {shlex.join(argv)}")
        async with interactive(self.crew, argv) as shell:
            shell.type("tty; stty size; exit 3\n")
            await shell.see(r"/dev/pts/\d+\s+{} {}\s".format(*SIZE))
            code = await shell.end()
        show(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shell.screen))  # without what moves the cursor
        if code != 3:
            raise StepFailed(f"criwctl exec ended with {code} and not with the shell's 3")

    async def local_port_leads_to_the_page(self) -> None:
        async with forwarded(self.crew, "shop", 80) as address:
            show(f"$ criwctl port-forward shop :80 → {address}")
            await self.fetch(f"http://{address}/")

    async def look_around(self) -> None:
        for argv in (("status",), ("pods",), ("ps",), ("logs", "--tail", "3", "nginx")):
            await self.criwctl(*argv)
        await self.criwctl("exec", "nginx", "sh", "-c", "hostname; ps")
        await self.criwctl("stats")

    async def kill_supervisor_under_a_session(self) -> None:
        """A session that is open goes on; so do the containers."""
        async with interactive(self.crew, ("exec", "-it", "nginx", "sh")) as shell:
            shell.type("echo be'fore'\n")
            await shell.see("before")
            await self.kill_supervisor()
            shell.type("echo af'ter'; exit\n")
            await shell.see("after")
            code = await shell.end()
        show(f"the shell that was open in nginx meanwhile went on, and ended with {code}")

    async def kill_supervisor(self) -> None:
        """The containers neither notice nor stop logging; the crew is whole again at once."""
        before = {name: (pid, birth(pid)) for name, pid in (await self.pids()).items()}
        log = self.logs / "client.log"
        lock = self.crew.config.state_dir("supervisor") / "0.lock"
        supervisor = int(lock.read_text())
        lines = len(log.read_text().splitlines())
        os.kill(supervisor, signal.SIGKILL)
        killed = time.monotonic()
        # The door holds the call until there is a supervisor again.
        await self.runtime.list_containers(ListContainersRequest(), timeout=LIMIT_S)
        show(f"killed process {supervisor}; {int(lock.read_text())} answers {time.monotonic() - killed:.2f} s later")
        after = {name: (pid, birth(pid)) for name, pid in (await self.pids()).items()}
        if before != after:
            raise StepFailed(f"the containers' processes are others: {before} before, {after} after")
        show(", ".join(f"{name} is still process {pid}" for name, (pid, _) in after.items()))

        async def logged_more() -> bool:
            return len(log.read_text().splitlines()) > lines + 10

        await eventually("the client has logged more", logged_more)
        times = [datetime.fromisoformat(line.split(" ")[0][:26]) for line in log.read_text().splitlines()[lines - 1 :]]
        longest = max((later - earlier).total_seconds() for earlier, later in itertools.pairwise(times))
        show(f"the client has logged {len(times) - 1} lines since, the longest pause being {longest:.2f} s")
        if longest > 2:
            raise StepFailed("the client's log has a gap")
        await self.criwctl("ps")

    async def remove_all(self) -> None:
        self.removal_began = time.clock_gettime(time.CLOCK_BOOTTIME)
        await self.criwctl("stop", "shop")
        await self.criwctl("ps", "-a")
        await self.criwctl("rm", "shop")
        await self.criwctl("rmi", self.nginx, self.busybox)
        await self.criwctl("images")

    async def stop_crew(self) -> None:
        self.channel.close()
        if self.up is None:
            return
        self.up.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self.up.wait)
        self.up = None
        show(self.crew_log.read_text().splitlines()[-1])
        if code:
            raise StepFailed(f"criwctl up ended with {code}; its log is {self.crew_log}")

    def nothing_is_left(self) -> None:
        left = [*host.contents(self.crew), *self._left_namespaces()]
        for finding in left:
            show(finding)
        if left:
            raise StepFailed("something is left")
        show("no process, mount, namespace, cgroup, link, address, nftables table or file")

    def _left_namespaces(self) -> list[str]:
        """Those of the pod that a process of before the removal is in; the kernel gives their numbers to new ones."""
        left = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if int(birth(int(process.name))) / os.sysconf("SC_CLK_TCK") < self.removal_began:
                    left |= self.namespaces & {str(namespace.readlink()) for namespace in (process / "ns").iterdir()}
        return [f"namespace {name}" for name in sorted(left)]

    def next_lines(self) -> None:
        self.channel.close()
        program = os.path.relpath(Path(sys.executable).with_name("criwctl"))
        command = f"{program} --config {self.crew.config_path}"
        assert self.up is not None
        print(
            "\nThe crew goes on. Type next:\n"
            f"  {command} ps\n"
            f"  {command} logs -f client\n"
            f"  {command} exec -it nginx sh\n"
            f"  {command} port-forward shop 8080:80\n"
            f"  {command} run --rm {self.busybox} echo hello\n"
            f"  curl http://{self.ip}/\n"
            "and to end it:\n"
            f"  {command} rm -f shop && {command} rmi {self.nginx} {self.busybox}\n"
            f"  kill {self.up.pid}; tail -f --pid {self.up.pid} /dev/null; rm -r {self.crew.directory}"
        )


def show(text: str) -> None:
    for line in text.rstrip().splitlines():
        print(f"   {line}", flush=True)


def birth(pid: int) -> str:
    """When a process was started, in the kernel's ticks: with the pid it names the process for good (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


async def eventually(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so. Raises StepFailed after `LIMIT_S`."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not await check():  # noqa: ASYNC110 — other processes set no event
                await asyncio.sleep(0.05)
    except TimeoutError as err:
        raise StepFailed(f"waited {LIMIT_S:g} s in vain until {what}") from err


def sweep(crew: Crew) -> None:
    """After a failure: take away what the crew would have, had it been able to."""
    for finding in host.processes(crew):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(finding.split()[1].rstrip(":")), signal.SIGKILL)
    for finding in host.mounts(crew):
        kernel.umount2(finding.removeprefix("mount "), flags=kernel.MNT_DETACH)
    for finding in host.links(crew):
        subprocess.run(["ip", "link", "delete", finding.removeprefix("link ")], check=False, capture_output=True)
    for finding in host.rules(crew):
        subprocess.run(["nft", "delete", *finding.removeprefix("nftables ").split()], check=False)
    for finding in host.cgroups(crew):
        subprocess.run(["find", finding.removeprefix("cgroup "), "-depth", "-type", "d", "-delete"], check=False)


async def tidy(demo: Demo) -> None:
    """After a failure: have the crew remove its pods, stop it, and take away what it could not."""
    print("\nThe end of the crew's log:")
    show("\n".join(demo.crew_log.read_text().splitlines()[-30:]) if demo.crew_log.exists() else "there is none")
    print("\nCleaning up")
    with contextlib.suppress(StepFailed):
        pods = json.loads(await demo.criwctl("pods", "-o", "json", quiet=True))["items"]
        await demo.criwctl("rm", "-f", *(pod["id"] for pod in pods))
    with contextlib.suppress(StepFailed):
        await demo.stop_crew()
    sweep(demo.crew)
    shutil.rmtree(demo.crew.directory)


async def play(demo: Demo, registry: Registry, *, keep: bool) -> None:
    with demo.step("Put nginx and busybox, built from Debian's packages, into a registry"):
        for name, image in (("nginx", images.nginx()), ("busybox", images.busybox())):
            show(f"{await registry.push(f'library/{name}:latest', image)}: {len(image.layers)} layers")
    with demo.step("Start the crew"):
        await demo.start_crew()
    with demo.step("Pull the images, one by criwctl, one through the CRI"):
        await demo.criwctl("pull", demo.nginx)
        await demo.pull(demo.busybox)
        await demo.criwctl("images")
    with demo.step("Run a pod with two containers, nginx and a client of it"):
        await demo.run_pod()
    with demo.step("The client fetches the page over the pod's loopback interface"):
        await demo.client_sees_the_page()
    with demo.step("The host fetches the page by the pod's address"):
        await demo.fetch(f"http://{demo.ip}/")
    with demo.step("A port of this host leads to the pod's"):
        await demo.local_port_leads_to_the_page()
    with demo.step("Type in a terminal in a container"):
        await demo.type_in_a_terminal()
    with demo.step("Look around: status, pods, containers, logs, exec, stats"):
        await demo.look_around()
    with demo.step("Kill the supervisor: the containers go on, and an open session"):
        await demo.kill_supervisor_under_a_session()
    if keep:
        demo.next_lines()
        return
    with demo.step("Stop and remove everything"):
        await demo.remove_all()
    with demo.step("Stop the crew"):
        await demo.stop_crew()
    with demo.step("Prove that nothing is left"):
        demo.nothing_is_left()
    shutil.rmtree(demo.crew.directory)


async def main(*, keep: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with running_registry() as registry:
        crew = Crew(f'log_level = "info"\n[image.registries."{registry.address}"]\nplain_http = true\n')
        demo = Demo(crew, registry)
        try:
            await play(demo, registry, keep=keep)
        except BaseException:
            await tidy(demo)
            raise


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("cannot run the demo: pods need mounts, namespaces and cgroups; run it as root")
    try:
        asyncio.run(main(keep=os.environ.get("KEEP") == "1"))
    except StepFailed as err:
        sys.exit(f"\nThe demo failed: {err}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("\nThe demo was interrupted.")
