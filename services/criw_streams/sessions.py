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
from criw_streams.tokens import KINDS, Session, Tokens

log = logging.getLogger(__name__)
_LOOKS: Final = 8  # within the idle timeout


class Sessions:
    def __init__(self, tokens: Tokens, registry: CollectorRegistry, *, idle_timeout_s: float) -> None:
        self.tokens = tokens
        self._idle_timeout_s = idle_timeout_s
        self._running = 0
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
    async def session(
        self, session: Session, last_used: Callable[[], float], end: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Count it as long as the block runs; `end` is called once it was not used for too long."""
        kind = next(kind for kind, form in KINDS.items() if isinstance(session, form))
        self._begun.labels(kind).inc()
        watching = asyncio.create_task(self._watch(kind, last_used, end), name=f"idle {kind}")
        with self._open.labels(kind).track_inprogress():
            self._running += 1
            try:
                yield
            finally:
                watching.cancel()
                self._running -= 1
                self._last_ended = time.monotonic()

    async def _watch(self, kind: str, last_used: Callable[[], float], end: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        while (idle := loop.time() - last_used()) < self._idle_timeout_s:  # noqa: ASYNC110 — it is a clock
            await asyncio.sleep(max(self._idle_timeout_s - idle, self._idle_timeout_s / _LOOKS))
        log.info("ending an idle session", extra={"kind": kind, "idle_s": round(idle)})
        end()

    async def over_spdy(self, session: Session, connection: Connection, version: spdy.Version) -> None:
        """Serve the client of a SPDY connection."""
        try:
            async with self.session(session, lambda: connection.last_activity, connection.close):
                if isinstance(session, Forwarding):
                    await forward_spdy.run(connection, session)
                else:
                    async with spdy.client_of(connection, session.ends or Ends(), version) as client:
                        if client is not None:
                            await serve(session, client)
        finally:
            connection.close()


async def serve(session: Command | Attachment, client: Client) -> None:
    """Run a command for its client, or attach it."""
    if isinstance(session, Command):
        await command.run(session, client)
    else:
        await attach.run(session, client)
