"""criw-streams: the process of exec, attach and port-forward."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from criw import orphans
from criw.config.streams import StreamsSettings
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw_streams.front import listening
from criw_streams.rpc import StreamsRpc
from criw_streams.sessions import Sessions
from criw_streams.tokens import Tokens


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
        reaping = asyncio.create_task(orphans.reap_strays(), name="reap")
        try:
            yield [StreamsRpc(tokens, base)]
        finally:
            reaping.cancel()


def main(argv: Sequence[str] | None = None) -> None:
    run_service("streams", StreamsSettings, build, argv)


if __name__ == "__main__":
    main()
