"""criw-network: the network agent's process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from criw.config.network import NetworkSettings
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw.store import open_store
from criw_network.attachments import Attachments
from criw_network.builtin.bridge import Bridge
from criw_network.builtin.provider import builtin
from criw_network.rpc import NetworkRpc, NetworkStatusRpc


@contextlib.asynccontextmanager
async def build(context: Context[NetworkSettings]) -> AsyncIterator[Collection[Servable]]:
    settings = context.config.network
    state = context.config.state_dir("network")
    registry = context.metrics.registry
    bridge = Bridge(settings.bridge, owner=str(state), mtu=settings.mtu)
    async with (
        open_store(state / "network.db") as store,
        builtin(bridge, settings.pod_cidrs, store, registry) as provider,
    ):
        attachments = Attachments(store, provider, context.config.run_dir("network") / "netns", registry)
        await attachments.recover()
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(attachments.keep_undoing(), name="undo what is left"),
                tasks.create_task(provider.keep(), name="keep bridge and rules"),
            ]
            try:
                yield [NetworkRpc(attachments, provider.configure), NetworkStatusRpc(attachments, provider)]
            finally:
                for task in background:
                    task.cancel()
                await attachments.drain()


def main(argv: Sequence[str] | None = None) -> None:
    run_service("network", NetworkSettings, build, argv)


if __name__ == "__main__":
    main()
