"""The client of a remote command: WebSocket, subprotocol v5.channel.k8s.io of Kubernetes.

A binary message is one byte for the channel, then data; the two bytes of `CLOSE` and a channel say that no more comes
on that one. The server ends with a status on the error channel and a close frame of code 1000.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import aiohttp
from pydantic import BaseModel, ValidationError

from criw.errors import Failed, Unavailable
from criw_ctl.descriptors import Output, read
from criw_ctl.terminal import DetachKeys, Window

PROTOCOL: Final = "v5.channel.k8s.io"
_MESSAGE_LIMIT_BYTES: Final = 16 * 1024 * 1024
_STATUS_LIMIT_BYTES: Final = 1024 * 1024
_CONNECT_LIMIT_S: Final = 10.0
_CLOSE_LIMIT_S: Final = 1.0
_PING_S: Final = 60.0  # a server may end what is silent for hours
_EXIT_CODE: Final = "ExitCode"
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as a shell tells of commands
_WORDS: Final[Mapping[str, int]] = {
    "no such file": _NOT_FOUND,
    "executable file not found": _NOT_FOUND,
    "permission denied": _NOT_EXECUTABLE,
}


class Channel(IntEnum):
    """The first byte of a message."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4
    CLOSE = 255


@dataclass(frozen=True)
class Streams:
    """Our descriptors that a session is joined to; None where it has no such stream."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None


class Detached(Exception):  # noqa: N818 — nothing went wrong
    """The user has typed the keys that leave the session."""


class NotRun(Failed):
    """The command was not run, or the session broke; `exit_code` is what a shell would give."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.exit_code = next((code for words, code in _WORDS.items() if words in message.lower()), 1)


class _Cause(BaseModel):
    reason: str = ""
    message: str = ""


class _Details(BaseModel):
    causes: list[_Cause] = []


class _Status(BaseModel):
    """The part of Kubernetes' Status that the error channel carries."""

    status: str
    message: str = ""
    details: _Details | None = None


def exit_code(status: bytes) -> int:
    """The exit code that a session's status tells; none at all is success. Raises NotRun for any other failure."""
    if not status:
        return 0
    try:
        told = _Status.model_validate_json(status)
        if told.status == "Success":
            return 0
        for cause in told.details.causes if told.details else ():
            if cause.reason == _EXIT_CODE:
                return int(cause.message)
    except (ValidationError, ValueError) as err:
        raise Failed(f"cannot understand how the session ended: {status[:200].decode(errors='replace')}") from err
    raise NotRun(f"cannot run it in the container: {told.message or 'the crew does not say why; see its log'}")


@contextlib.asynccontextmanager
async def connected(url: str, protocol: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A WebSocket to the streaming server. Raises Unavailable if it cannot be reached, Failed if it refuses."""
    async with aiohttp.ClientSession() as http:
        websocket = await _connect(http, url, protocol)
        try:
            yield websocket
        finally:
            with contextlib.suppress(TimeoutError):  # it reads nothing: the connection is cut
                async with asyncio.timeout(_CLOSE_LIMIT_S):
                    await websocket.close()


async def _connect(http: aiohttp.ClientSession, url: str, protocol: str) -> aiohttp.ClientWebSocketResponse:
    try:
        async with asyncio.timeout(_CONNECT_LIMIT_S):
            websocket = await http.ws_connect(url, protocols=(protocol,), max_msg_size=_MESSAGE_LIMIT_BYTES)
    except aiohttp.WSServerHandshakeError as err:
        raise Failed(f"cannot open the session: the streaming server answers {err.status} ({err.message})") from err
    except (aiohttp.ClientError, TimeoutError) as err:
        raise Unavailable(
            f"cannot reach the streaming server: {err or 'it does not answer'}; see criwctl status"
        ) from err
    if websocket.protocol != protocol:
        await websocket.close()
        raise Failed(f"cannot open the session: the streaming server does not speak {protocol}")
    return websocket


class Session:
    """One command or attachment, joined to descriptors until it ends. Use `run()` once."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse, streams: Streams) -> None:
        self._websocket = websocket
        self._streams = streams
        self._status = bytearray()
        self._first: aiohttp.WSMessage | None = None

    async def ready(self) -> None:
        """Wait until the server has its end of the streams: it says so with an empty message. Raises Unavailable."""
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_S):
                self._first = await self._websocket.receive()
        except TimeoutError as err:
            raise Unavailable("cannot open the session: the streaming server does not begin it; try again") from err

    async def run(self, *, window: Window | None = None, keys: DetachKeys | None = None) -> int:
        """The exit code it ends with.

        Raises Detached if `keys` were pressed, NotRun or Unavailable if it failed, OSError if a descriptor did:
        BrokenPipeError when nobody reads our output any more.
        """
        receiving = asyncio.create_task(self._receive(), name="output of the session")
        beside = [asyncio.create_task(self._keep_alive(), name="pings of the session")]
        if window is not None:
            beside.append(asyncio.create_task(self._send_sizes(window), name="sizes of the terminal"))
        if self._streams.stdin is not None:
            beside.append(asyncio.create_task(self._send_input(self._streams.stdin, keys), name="input of the session"))
        waiting = {receiving, *beside}
        try:
            while not receiving.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {receiving}:
                    task.result()
        finally:
            for task in (receiving, *beside):
                task.cancel()
            await asyncio.gather(receiving, *beside, return_exceptions=True)
        receiving.result()
        return exit_code(bytes(self._status))

    async def _receive(self) -> None:
        """Write what comes until the server closes the session."""
        outputs: dict[int, Output] = {
            channel: Output(descriptor)
            for channel, descriptor in ((Channel.STDOUT, self._streams.stdout), (Channel.STDERR, self._streams.stderr))
            if descriptor is not None
        }
        try:
            message = self._first or await self._websocket.receive()
            while message.type is aiohttp.WSMsgType.BINARY:
                channel, data = message.data[0] if message.data else -1, message.data[1:]
                if data and (output := outputs.get(channel)) is not None:
                    await output.write(data)
                elif channel == Channel.ERROR and len(self._status) < _STATUS_LIMIT_BYTES:
                    self._status += data
                message = await self._websocket.receive()
        finally:
            for output in outputs.values():
                output.close()
        if message.type is not aiohttp.WSMsgType.CLOSE or message.data != aiohttp.WSCloseCode.OK:
            raise Unavailable(
                "cannot go on with the session: the streaming server went away in it; what it ran may still run"
            )

    async def _send(self, channel: Channel, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the receiver learns of it, too, and why
            await self._websocket.send_bytes(bytes((channel,)) + data)

    async def _send_input(self, descriptor: int, keys: DetachKeys | None) -> None:
        while data := await read(descriptor):
            if keys is not None:
                data = keys.pass_on(data)
            if data:
                await self._send(Channel.STDIN, data)
            if keys is not None and keys.pressed:
                raise Detached
        await self._send(Channel.CLOSE, bytes((Channel.STDIN,)))

    async def _send_sizes(self, window: Window) -> None:
        while True:
            columns, rows = await window.size()
            if columns and rows:
                await self._send(Channel.RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(_PING_S)
            with contextlib.suppress(ConnectionError):
                await self._websocket.ping()
