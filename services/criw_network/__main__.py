"""criw-network: the network agent's process."""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from criw.config.network import NetworkSettings
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw.store import open_store
from criw_network.addresses import parse_ranges
from criw_network.attachments import Attachments, Ranges
from criw_network.bridge import Bridge
from criw_network.builtin import Rotation, builtin
from criw_network.rpc import NetworkRpc


@contextlib.asynccontextmanager
async def build(context: Context[NetworkSettings]) -> AsyncIterator[Collection[Servable]]:
    settings = context.config.network
    state = context.config.state_dir("network")
    bridge = Bridge(settings.bridge, owner=str(state), mtu=settings.mtu)
    async with open_store(state / "network.db") as store:
        saved = await store.get(Ranges, "pods")
        networks = parse_ranges(saved.cidrs if saved else settings.pod_cidrs)
        async with builtin(bridge, networks, await store.all(Rotation)) as provider:
            pins = context.config.run_dir("network") / "netns"
            attachments = Attachments(store, provider, pins, context.metrics.registry)
            await attachments.recover()
            try:
                yield [NetworkRpc(attachments)]
            finally:
                await attachments.close()


def main(argv: Sequence[str] | None = None) -> None:
    run_service("network", NetworkSettings, build, argv)


if __name__ == "__main__":
    main()
