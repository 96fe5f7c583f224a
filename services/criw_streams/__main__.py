"""criw-streams: the process of exec, attach and port-forward."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final

from criw import orphans
from criw.config.streams import StreamsSettings
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw_streams.front import listening
from criw_streams.rpc import StreamsRpc
from criw_streams.sessions import Sessions
from criw_streams.tokens import Tokens

log = logging.getLogger(__name__)
_SPARE_S: Final = 300.0  # without a session or a URL for one


@contextlib.asynccontextmanager
async def build(context: Context[StreamsSettings]) -> AsyncIterator[Collection[Servable]]:
    section = context.config.streams
    orphans.become_subreaper()
    # What an earlier process left: commands that were being started, and its own socket is not there yet.
    for path in context.config.run_dir("streams").glob("exec-*"):
        path.unlink()
    tokens = Tokens()
    sessions = Sessions(tokens, context.metrics.registry, idle_timeout_s=section.idle_timeout_s)
    async with listening(section, sessions) as base:
        background = [asyncio.create_task(orphans.reap_strays(), name="reap")]
        if context.on_demand:
            background.append(asyncio.create_task(_end_when_spare(sessions), name="spare"))
        try:
            yield [StreamsRpc(tokens, base)]
        finally:
            for task in background:
                task.cancel()


async def _end_when_spare(sessions: Sessions) -> None:
    """End this process when nobody has needed it for a while; whoever needs it again has it started again."""
    while (spare_s := time.monotonic() - sessions.last_used) < _SPARE_S:  # noqa: ASYNC110 — it is a clock
        await asyncio.sleep(_SPARE_S - spare_s)
    log.info("ending: nobody has a session", extra={"spare_s": round(spare_s)})
    signal.raise_signal(signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> None:
    run_service("streams", StreamsSettings, build, argv)


if __name__ == "__main__":
    main()
