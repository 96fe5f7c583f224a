"""Port-forward over SPDY (`portforward.k8s.io`): each connection is a pair of streams, one of them for its error."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from criw.errors import Fault
from criw.spdy.connection import Closed, Connection, Stream
from criw_proto.criw.streams.v1 import Forwarding
from criw_streams import forward

log = logging.getLogger(__name__)
PROTOCOL: Final = "portforward.k8s.io"
_PAIR_LIMIT_S: Final = 30.0


@dataclass
class _Pair:
    """The two streams of a connection, as they come."""

    port: int
    error: Stream | None = None
    data: Stream | None = None
    timer: asyncio.TimerHandle | None = None


class _DataStream:
    """The client's end of a connection (`forward.Link`)."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.read = stream.read
        self.write = stream.write
        self.close_write = stream.close_write
        self.wait_gone = stream.wait_gone

    @property
    def gone(self) -> bool:
        return self._stream.lost is not None


async def run(connection: Connection, forwarding: Forwarding) -> None:
    """Forward whatever the client opens, until it closes the connection."""
    pairs: dict[str, _Pair] = {}
    tasks: set[asyncio.Task[None]] = set()
    try:
        while (stream := await connection.accept()) is not None:
            pair = _paired(pairs, stream)
            if pair is None or pair.error is None or pair.data is None:
                continue
            task = asyncio.create_task(_forward(forwarding, pair.port, pair.error, pair.data))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for pair in pairs.values():
            if pair.timer is not None:
                pair.timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _paired(pairs: dict[str, _Pair], stream: Stream) -> _Pair | None:
    """The pair a stream belongs to, which is complete if this was the second; None if the stream is refused."""
    kind, text = stream.headers.get("streamtype", ""), stream.headers.get("port", "")
    port = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if kind not in {"error", "data"} or not 0 < port < 65536:
        stream.refuse()
        return None
    # Very old clients give no id: their error stream is the one opened just before.
    key = stream.headers.get("requestid") or f"stream {stream.id if kind == 'error' else stream.id - 2}"
    pair = pairs.setdefault(key, _Pair(port))
    stream.accept()
    if getattr(pair, kind) is not None:
        _tell(pair.error, f"error forwarding port {port}: a second {kind} stream of {key}")
        stream.reset()
        return None
    if kind == "error":
        pair.error = stream
        stream.discard()
    else:
        pair.data = stream
    if pair.timer is None:
        pair.timer = asyncio.get_running_loop().call_later(_PAIR_LIMIT_S, _give_up, pairs, key)
    else:
        pair.timer.cancel()
        del pairs[key]
    return pair


def _give_up(pairs: dict[str, _Pair], key: str) -> None:
    pair = pairs.pop(key)
    _tell(pair.error, f"error forwarding port {pair.port}: no second stream of {key} came in {_PAIR_LIMIT_S:g} s")
    if pair.data is not None:
        pair.data.reset()


def _tell(error: Stream | None, message: str) -> None:
    if error is not None:
        telling = asyncio.ensure_future(_write_error(error, message))
        telling.add_done_callback(lambda task: task.exception())


async def _write_error(error: Stream, message: str) -> None:
    try:
        await error.write(message.encode())
        error.close_write()
    except Closed:
        log.debug("a client does not want to hear of an error", extra={"error": message})


async def _forward(forwarding: Forwarding, port: int, error: Stream, data: Stream) -> None:
    try:
        connected = await forward.connect(forwarding, port)
    except (Fault, OSError) as err:
        log.info("cannot forward a port", extra={"pod": forwarding.pod_id, "error": str(err)})
        await _write_error(error, str(err))
        data.reset()
        return
    try:
        await forward.copy(connected, _DataStream(data))
    finally:
        data.discard()
        # Always: the client waits for it without a limit.
        error.close_write()
