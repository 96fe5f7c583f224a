"""Images: pulled with a bar per layer, listed, removed."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from criw.config.common import Common
from criw.errors import Failed, NotFound
from criw.rpc.client import ask, watch
from criw_ctl.door import Door, channel_to
from criw_ctl.tables import short, size
from criw_proto.criw.image.v1 import ImagesStub, LayerProgress, LayerState, PullRequest
from criw_proto.runtime.v1 import Image, ImageSpec, ImageStatusRequest, RemoveImageRequest

COLUMNS: Final = ("IMAGE", "TAG", "ID", "SIZE")
REMOVE_LIMIT_S: Final = 120.0
_WORD: Final = {
    LayerState.WAITING: "waiting",
    LayerState.DOWNLOADING: "downloading",
    LayerState.UNPACKING: "unpacking",
    LayerState.DONE: "done",
}


class Bars:
    """A bar for each layer of one image."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[int, TaskID] = {}

    def show(self, layers: Sequence[LayerProgress]) -> None:
        if layers:
            self._progress.start()  # not before: a pull that fails at once shows its error only
        for index, layer in enumerate(layers):  # by place: the same layer may stand in an image twice
            if index not in self._bars:
                self._bars[index] = self._progress.add_task(short(layer.digest), total=None, state="")
            self._progress.update(
                self._bars[index],
                total=layer.total_bytes or None,
                completed=layer.done_bytes,
                state=_WORD.get(layer.state, ""),
            )


@contextlib.contextmanager
def _bars() -> Iterator[Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    try:
        yield Bars(progress)
    finally:
        if progress.live.is_started:
            progress.live.stop()


async def pull(config: Common, image: str) -> str:
    """Pull an image, showing the progress on stderr; its id. Raises what the image agent answers."""
    image_id = ""
    async with channel_to(config, "cri") as channel:
        with _bars() as bars:
            async for progress in watch(ImagesStub(channel).pull, PullRequest(image=image), agent="the image agent"):
                bars.show(progress.layers)
                image_id = progress.image_id
    if not image_id:
        raise Failed(f"cannot tell whether {image} was pulled: the image agent ended its answer early; try again")
    return image_id


async def find(door: Door, image: str) -> Image | None:
    """The image that this name, digest or id means, if it is here."""
    reply = await ask(door.images.image_status, ImageStatusRequest(image=ImageSpec(image=image)))
    return reply.image


async def pulled(door: Door, image: str) -> str:
    """The id of an image, which is pulled if it is not here."""
    found = await find(door, image)
    return found.id if found else await pull(door.config, image)


async def remove(door: Door, image: str) -> None:
    """Remove an image with all its names. Raises NotFound."""
    found = await find(door, image)
    if found is None:
        raise NotFound(f"cannot remove image {image}: there is none; criwctl images lists what there is")
    await ask(door.images.remove_image, RemoveImageRequest(image=ImageSpec(image=found.id)), timeout_s=REMOVE_LIMIT_S)


def rows(images: Sequence[Image]) -> list[tuple[str, ...]]:
    """A row per name of each image; images without one by their digest."""
    found = []
    for image in images:
        names = [name.rpartition(":")[::2] for name in image.repo_tags]
        names = names or [(name.partition("@")[0], "<none>") for name in image.repo_digests] or [("<none>", "<none>")]
        found += [(name, tag, short(image.id), size(image.size)) for name, tag in names]
    return sorted(found)
