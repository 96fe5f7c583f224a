"""What runs behind a URL once its client is there, counted and ended when nothing comes or goes any more."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from criw.spdy.connection import Connection
from criw_proto.criw.streams.v1 import Attachment, Command, Ends, Forwarding
from criw_streams import attach, command, forward_spdy, spdy
from criw_streams.client import Client
from criw_streams.status import Status
from criw_streams.tokens import KINDS, Session, Tokens

log = logging.getLogger(__name__)
_LOOKS: Final = 8  # within the idle timeout
_GOODBYE_LIMIT_S: Final = 1.0


class Sessions:
    def __init__(self, tokens: Tokens, registry: CollectorRegistry, *, idle_timeout_s: float) -> None:
        self.tokens = tokens
        self.idle_timeout_s = idle_timeout_s
        self._running: set[asyncio.Task[object]] = set()
        self._last_ended = time.monotonic()
        labels = ["kind"]
        self._open = Gauge("criw_streams_sessions", "Sessions with a client.", labels, registry=registry)
        self._begun = Counter("criw_streams_sessions_begun", "Sessions a client has begun.", labels, registry=registry)
        for kind in KINDS:
            self._open.labels(kind)
            self._begun.labels(kind)
        Gauge("criw_streams_waiting", "URLs given out and not used yet.", registry=registry).set_function(
            lambda: len(tokens)
        )

    @property
    def last_used(self) -> float:
        """When there was last a session or a URL for one, by `time.monotonic()`."""
        if self._running or self.tokens:
            return time.monotonic()
        return max(self._last_ended, self.tokens.last_gone)

    @contextlib.asynccontextmanager
    async def session(self, session: Session, last_used: Callable[[], float]) -> AsyncIterator[None]:
        """Count it as long as the block runs. The block's task is cancelled once it was not used for too long."""
        kind = next(kind for kind, form in KINDS.items() if isinstance(session, form))
        self._begun.labels(kind).inc()
        task = asyncio.current_task()
        assert task is not None
        watching = asyncio.create_task(self._watch(kind, last_used, task), name=f"idle {kind}")
        with self._open.labels(kind).track_inprogress():
            self._running.add(task)
            try:
                yield
            finally:
                watching.cancel()
                self._running.discard(task)
                self._last_ended = time.monotonic()

    async def stop(self) -> None:
        """End all sessions; their clients are told, as far as they listen."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=2 * _GOODBYE_LIMIT_S)

    async def _watch(self, kind: str, last_used: Callable[[], float], task: asyncio.Task[object]) -> None:
        loop = asyncio.get_running_loop()
        while (idle := loop.time() - last_used()) < self.idle_timeout_s:  # noqa: ASYNC110 — it is a clock
            await asyncio.sleep(max(self.idle_timeout_s - idle, self.idle_timeout_s / _LOOKS))
        log.info("ending an idle session", extra={"kind": kind, "idle_s": round(idle)})
        task.cancel()

    async def over_spdy(self, session: Session, connection: Connection, version: spdy.Version) -> None:
        """Serve the client of a SPDY connection."""
        try:
            async with self.session(session, lambda: connection.last_activity):
                if isinstance(session, Forwarding):
                    await forward_spdy.run(connection, session)
                else:
                    async with spdy.client_of(connection, session.ends or Ends(), version) as client:
                        if client is not None:
                            await serve(session, client)
        finally:
            connection.close()


async def serve(session: Command | Attachment, client: Client) -> None:
    """Run a command for its client, or attach it. Cancelled, it says so: no word would be taken for success."""
    try:
        if isinstance(session, Command):
            await command.run(session, client)
        else:
            await attach.run(session, client)
    except asyncio.CancelledError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_LIMIT_S):
                await client.end(Status("the session was ended: it was idle for too long, or criw-streams stops"))
        raise
