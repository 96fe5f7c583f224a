"""The door's process."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, closing

from criw.config.common import AgentName
from criw.config.cri import CriSettings
from criw.rpc.client import Channel
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw_cri.forward import Forwarder
from criw_cri.instances import Instances
from criw_cri.merged import Merged
from criw_cri.routes import routes


def main(argv: Sequence[str] | None = None) -> None:
    run_service("cri", CriSettings, build, argv)


@asynccontextmanager
async def build(context: Context[CriSettings]) -> AsyncIterator[Collection[Servable]]:
    behind: tuple[AgentName, ...] = ("supervisor", "image")
    instances = {agent: Instances(agent, context.config.run_dir(agent)) for agent in behind}
    with closing(Channel(context.config.socket("network"))) as network:
        try:
            forwarder = Forwarder(routes(), instances)
            # Later services win: Merged answers the two methods it has instead of passing them on.
            yield [forwarder, Merged(forwarder, network)]
        finally:
            for agent in behind:
                instances[agent].close()


if __name__ == "__main__":
    main()
