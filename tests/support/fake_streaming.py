"""A runtime's streaming server as a test scripts it: real sockets, real WebSockets, and a door that knows two pods.

`criwctl` is run against it as a process of its own.
"""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from aiohttp import WSMsgType, web

from criw_proto.runtime import v1 as cri
from support.crew import python_environment
from support.serving import serving

WEB_POD, WEB, CRON_POD, CRON, NEW_POD, NEW = (letter * 64 for letter in "1a2b3c")
V5: Final = "v5.channel.k8s.io"
SUCCESS: Final = b'{"status":"Success"}'
LIMIT_S: Final = 30.0
Script: TypeAlias = Callable[["Peer"], Awaitable[None]]


def ended_with(code: int) -> bytes:
    """The status of a command that ended so."""
    return json.dumps(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    ).encode()


def failed_with(message: str) -> bytes:
    """The status of what could not be run."""
    return json.dumps({"status": "Failure", "message": message, "reason": "InternalError", "code": 500}).encode()


class Peer:
    """The server's side of one session."""

    def __init__(self, websocket: web.WebSocketResponse, request: cri.ExecRequest | cri.AttachRequest) -> None:
        self.websocket = websocket
        self.request = request

    async def say(self, channel: int, data: bytes) -> None:
        await self.websocket.send_bytes(bytes((channel,)) + data)

    async def hear(self) -> bytes:
        """The next message; b"" at the end of the connection."""
        message = await self.websocket.receive()
        return message.data if message.type is WSMsgType.BINARY else b""

    async def until(self, channel: int, data: bytes) -> bytes:
        """Collect what comes on a channel until it ends with `data`; everything so far."""
        got = b""
        while not got.endswith(data):
            message = await self.hear()
            assert message, f"the client went away after {got!r}"
            if message[0] == channel:
                got += message[1:]
        return got

    async def end(self, status: bytes = SUCCESS) -> None:
        """What a server says last."""
        await self.say(3, status)
        await self.websocket.close()


class Runtime(cri.RuntimeServiceBase):
    """Answers with URLs of the streaming server. `asked` are the requests for sessions."""

    def __init__(self) -> None:
        self.asked: list[cri.ExecRequest | cri.AttachRequest | cri.PortForwardRequest] = []
        self.base = ""
        self.config: Mapping[str, object] = {}
        self.calls: list[str] = []  # of a pod that is run here
        self.created = cri.ContainerConfig()
        self.exited = asyncio.Event()

    async def list_pod_sandbox(self, message: cri.ListPodSandboxRequest) -> cri.ListPodSandboxResponse:
        pods = {WEB_POD: "web", CRON_POD: "cron"}
        if message.filter is not None and message.filter.label_selector:
            pods = {NEW_POD: "new"}
        return cri.ListPodSandboxResponse(
            items=[cri.PodSandbox(id=key, metadata=cri.PodSandboxMetadata(name=name)) for key, name in pods.items()]
        )

    async def list_containers(self, message: cri.ListContainersRequest) -> cri.ListContainersResponse:
        return cri.ListContainersResponse(
            containers=[
                cri.Container(
                    id=key,
                    pod_sandbox_id=pod,
                    metadata=cri.ContainerMetadata(name=name),
                    state=cri.ContainerState.CONTAINER_RUNNING,
                )
                for key, pod, name in ((WEB, WEB_POD, "web"), (CRON, CRON_POD, "job"))
            ]
        )

    async def container_status(self, message: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
        info = {"info": json.dumps({"pid": 7, "config": self.config})}
        status = cri.ContainerStatus(id=message.container_id)
        if self.exited.is_set():
            status.state, status.exit_code = cri.ContainerState.CONTAINER_EXITED, 5
        return cri.ContainerStatusResponse(status=status, info=info)

    async def run_pod_sandbox(self, message: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
        self.calls.append("run_pod_sandbox")
        return cri.RunPodSandboxResponse(pod_sandbox_id=NEW_POD)

    async def create_container(self, message: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
        assert message.config is not None
        self.created = message.config
        self.calls.append("create_container")
        return cri.CreateContainerResponse(container_id=NEW)

    async def start_container(self, message: cri.StartContainerRequest) -> cri.StartContainerResponse:
        self.calls.append("start_container")
        return cri.StartContainerResponse()

    async def stop_container(self, message: cri.StopContainerRequest) -> cri.StopContainerResponse:
        self.calls.append("stop_container")
        self.exited.set()
        return cri.StopContainerResponse()

    async def stop_pod_sandbox(self, message: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
        return cri.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, message: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
        self.calls.append("remove_pod_sandbox")
        return cri.RemovePodSandboxResponse()

    async def exec(self, message: cri.ExecRequest) -> cri.ExecResponse:
        self.asked.append(message)
        return cri.ExecResponse(url=f"{self.base}/exec/token")

    async def attach(self, message: cri.AttachRequest) -> cri.AttachResponse:
        self.asked.append(message)
        self.calls.append("attach")
        return cri.AttachResponse(url=f"{self.base}/attach/token")

    async def port_forward(self, message: cri.PortForwardRequest) -> cri.PortForwardResponse:
        self.asked.append(message)
        return cri.PortForwardResponse(url=f"{self.base}/portforward/token")


class Images(cri.ImageServiceBase):
    """Has every image."""

    async def image_status(self, message: cri.ImageStatusRequest) -> cri.ImageStatusResponse:
        return cri.ImageStatusResponse(image=cri.Image(id="sha256:" + "0" * 64))


class Streaming:
    """Use `streaming()`. `script` is what the server does in each exec and attach session."""

    def __init__(self, config: Path, runtime: Runtime) -> None:
        self.config = config
        self.runtime = runtime
        self.script: Script = Peer.end
        self.forwarded: Callable[[web.WebSocketResponse], Awaitable[None]] | None = None
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(protocols=(V5,), autoping=True)
        await websocket.prepare(request)
        await websocket.send_bytes(b"\x01")  # what tells clients that they are connected
        asked = self.runtime.asked[-1]
        assert not isinstance(asked, cri.PortForwardRequest)
        await self.script(Peer(websocket, asked))
        return websocket

    async def tunnel(self, request: web.Request) -> web.StreamResponse:
        websocket = web.WebSocketResponse(protocols=("SPDY/3.1+portforward.k8s.io",), max_msg_size=0)
        await websocket.prepare(request)
        assert self.forwarded is not None
        await self.forwarded(websocket)
        return websocket


def running_in(directory: Path, programs: Mapping[str, Sequence[str]]) -> Script:
    """A script that runs commands here, in `directory`; what is not among the `programs` is not found."""

    async def script(peer: Peer) -> None:
        assert isinstance(peer.request, cri.ExecRequest)
        program, *arguments = peer.request.cmd
        if program not in programs:
            await peer.end(failed_with(f'exec: "{program}": executable file not found in $PATH'))
            return
        process = await asyncio.create_subprocess_exec(
            *(*programs[program], *arguments), stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=directory
        )
        inward = asyncio.create_task(_send_in(peer, process))
        try:
            await asyncio.gather(_say_all(peer, 1, process.stdout), _say_all(peer, 2, process.stderr))
            code = await process.wait()
            await peer.say(3, ended_with(code) if code else SUCCESS)
        finally:
            inward.cancel()
            await asyncio.gather(inward, return_exceptions=True)
            if process.returncode is None:
                process.kill()
                await process.wait()
            await peer.websocket.close()

    return script


async def _send_in(peer: Peer, process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        while peer.request.stdin and (message := await peer.hear()) != b"\xff\x00":
            if not message:
                process.kill()
                break
            if message[0] == 0:
                process.stdin.write(message[1:])
                await process.stdin.drain()
        process.stdin.close()


async def _say_all(peer: Peer, channel: int, pipe: asyncio.StreamReader | None) -> None:
    assert pipe is not None
    while data := await pipe.read(32 * 1024):
        await peer.say(channel, data)


@contextlib.asynccontextmanager
async def streaming(directory: Path) -> AsyncIterator[Streaming]:
    """A crew's door and its streaming server below `directory`, with a configuration that names them."""
    runtime = Runtime()
    config = directory / "criw.toml"
    config.write_text(f'root = "{directory}/lib"\nrun = "{directory}/run"\n')
    (directory / "run").mkdir()
    made = Streaming(config, runtime)
    app = web.Application()
    for kind in ("exec", "attach"):
        app.router.add_get(f"/{kind}/token", made.answer)
    app.router.add_get("/portforward/token", made.tunnel)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    runtime.base = f"http://127.0.0.1:{made.port}"
    try:
        async with serving(directory / "run" / "criw.sock", runtime, Images()):
            yield made
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    code: int
    out: bytes
    err: str


async def start(server: Streaming, *argv: str, stdin: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "criw_ctl", "--config", os.fspath(server.config), *argv),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=python_environment(),
    )


async def criwctl(server: Streaming, *argv: str, stdin: bytes | None = None) -> Ended:
    kind = asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE
    return await end(await start(server, *argv, stdin=kind), stdin)


async def end(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Ended:
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin), LIMIT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out, err.decode())
