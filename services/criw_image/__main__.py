"""Entry point of criw-image."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from prometheus_client import Counter, Gauge

from criw.config.image import ImageSettings
from criw.rpc.client import Channel
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw.store import open_store
from criw_image.catalogue import Catalogue
from criw_image.claims import Claims
from criw_image.joined import JoinedPulls
from criw_image.pull import Puller
from criw_image.removal import Removal
from criw_image.rpc import ImageRpc, ImagesRpc
from criw_image.transport import open_http
from criw_proto.criw.storage.v1 import DiskStub, LayersStub


@contextlib.asynccontextmanager
async def image_agent(context: Context[ImageSettings]) -> AsyncIterator[Collection[Servable]]:
    """Recovers first: no call is taken before what a killed agent left is gone."""
    state = context.config.state_dir("image")
    blobs, claimed = context.config.blobs, state / "claims"
    for directory in (blobs, claimed):
        directory.mkdir(mode=0o700, exist_ok=True)
    registry = context.metrics.registry
    outcomes = Counter("criw_image_pulls", "Pulls ended, by status code.", ["code"], registry=registry)
    downloaded = Counter("criw_image_downloaded_bytes", "Bytes of layers received from registries.", registry=registry)
    images = Gauge("criw_image_images", "Images on this node.", registry=registry)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(state / "image.db"))
        channel = Channel(context.config.socket("storage"))
        stack.callback(channel.close)
        storage = LayersStub(channel)
        claims = Claims(claimed)
        catalogue = Catalogue(store, claims)
        images.set_function(lambda: catalogue.count)
        removal = Removal(catalogue=catalogue, claims=claims, storage=storage, blobs=blobs)
        unfinished = Gauge(
            "criw_image_unfinished", "What is left of images and could not be removed yet.", registry=registry
        )
        unfinished.set_function(lambda: removal.failures)
        await removal.recover()
        puller = Puller(
            http=await stack.enter_async_context(open_http(context.config.image)),
            catalogue=catalogue,
            claims=claims,
            storage=storage,
            removal=removal,
            section=context.config.image,
            downloaded=downloaded,
        )
        pulls = await stack.enter_async_context(JoinedPulls(puller.pull, outcomes))
        async with asyncio.TaskGroup() as tasks:
            again = tasks.create_task(removal.run(), name="remove what is left")
            yield [ImageRpc(catalogue, pulls, removal, DiskStub(channel)), ImagesRpc(catalogue, pulls)]
            again.cancel()


def main(argv: Sequence[str] | None = None) -> None:
    """Run criw-image until it is told to stop."""
    run_service("image", ImageSettings, image_agent, argv)


if __name__ == "__main__":
    main()
