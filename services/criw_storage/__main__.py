"""criw-storage: wiring."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Gauge, Histogram

from criw.callers import user_of
from criw.config.storage import StorageSettings
from criw.rpc.server import Servable
from criw.service import Context, run_service
from criw.store import open_store
from criw_storage.blobs import Blobs
from criw_storage.images import Images
from criw_storage.layers import Layers, open_layers
from criw_storage.leftovers import Leftovers
from criw_storage.rootfs import RootFilesystems
from criw_storage.rpc import DiskRpc, LayersRpc, RootfsRpc
from criw_storage.usage import Usage

_UNPACK_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


@asynccontextmanager
async def build(context: Context[StorageSettings]) -> AsyncIterator[Collection[Servable]]:
    """Recover what is on disk and in the kernel, then serve it; the interface of `run_service`."""
    section = context.config.storage
    state, run = context.config.state_dir("storage"), context.config.run_dir("storage")
    registry = context.metrics.registry
    seconds = Histogram(
        "criw_storage_unpack_seconds", "Time to unpack one layer.", buckets=_UNPACK_BUCKETS, registry=registry
    )
    blobs = Blobs(context.config.blobs, owner=user_of("image", context.config, seen_from="storage"))
    leftovers = Leftovers()
    async with (
        open_store(state / "storage.db") as store,
        open_layers(store, state, blobs, leftovers, workers=section.unpack_workers, seconds=seconds) as layers,
    ):
        images = Images(store, layers)
        usage = Usage()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="closing") as closing:
            rootfs = RootFilesystems(store, layers, images, usage, leftovers, state=state, run=run, closing=closing)
            await images.load()
            await rootfs.load()
            await rootfs.sweep()
            await layers.sweep()
            _count(registry, layers, rootfs, leftovers)
            async with asyncio.TaskGroup() as tasks:
                measuring = tasks.create_task(usage.keep_measuring(section.usage_interval_s), name="measure usage")
                trying = tasks.create_task(leftovers.keep_trying(), name="leftovers")
                try:
                    yield [LayersRpc(images), RootfsRpc(rootfs), DiskRpc(layers, usage, state=state)]
                finally:
                    measuring.cancel()
                    trying.cancel()
                    await layers.operations.cancel()  # what waits for an unpacking goes on then
                    await images.operations.drain()
                    await rootfs.operations.drain()


def _count(registry: CollectorRegistry, layers: Layers, rootfs: RootFilesystems, leftovers: Leftovers) -> None:
    Gauge("criw_storage_layers", "Unpacked layers.", registry=registry).set_function(lambda: len(layers.records))
    Gauge("criw_storage_layer_bytes", "Disk space of all unpacked layers.", registry=registry).set_function(
        lambda: layers.size_bytes(layers.records)
    )
    Gauge("criw_storage_rootfs", "Root filesystems of containers.", registry=registry).set_function(
        lambda: len(rootfs.records)
    )
    Gauge("criw_storage_leftovers", "What could not be removed yet.", registry=registry).set_function(
        lambda: len(leftovers.steps)
    )


def main(argv: Sequence[str] | None = None) -> None:
    run_service("storage", StorageSettings, build, argv)


if __name__ == "__main__":
    main()
