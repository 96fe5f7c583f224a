"""How layers are made, waited for and written, with a scripted worker."""

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, Histogram

from criw import kernel
from criw.errors import Failed, NotFound
from criw.store import open_store
from criw_storage import layers as module
from criw_storage.blobs import Blobs
from criw_storage.images import Images
from criw_storage.layers import Layers, open_layers
from criw_storage.leftovers import Leftovers
from criw_storage.unpack import Unpacked

ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")
TYPE = "application/vnd.oci.image.layer.v1.tar"


class Worker:
    """Stands for `unpack`: ends when it may; `ran` are the layers it was started for, `ended` those it finished."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.started = asyncio.Event()
        self.ran: list[str] = []
        self.ended: list[str] = []

    async def __call__(self, blob: int, target: Path, diff_id: str, *, lock: int) -> Unpacked:
        assert blob >= 0
        assert lock >= 0
        self.ran.append(diff_id)
        self.started.set()
        (target / "file").touch()
        await self.may_end.wait()
        self.ended.append(diff_id)
        return Unpacked((), (), ())


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    worker = Worker()
    monkeypatch.setattr(module, "unpack", worker)
    return worker


@pytest_asyncio.fixture
async def layers(tmp_path: Path, worker: Worker) -> AsyncIterator[Layers]:
    assert not worker.ran
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0").touch()
    seconds = Histogram("seconds", "", registry=CollectorRegistry())
    blobs = Blobs(tmp_path / "blobs", owner=(tmp_path / "blobs").stat().st_uid)
    async with (
        open_store(tmp_path / "db") as store,
        open_layers(store, tmp_path, blobs, Leftovers(), workers=1, seconds=seconds) as layers,
    ):
        yield layers
        await layers.operations.cancel()


@pytest.fixture
def images(layers: Layers) -> Images:
    return Images(layers._store, layers)


@pytest.mark.root
async def test_the_question_for_a_layer_needs_no_turn(images: Images, worker: Worker) -> None:
    worker.may_end.clear()
    slow = asyncio.create_task(images.unpack("image", ONE, "0", TYPE))
    await worker.started.wait()
    with pytest.raises(NotFound):
        await images.unpack("image", TWO, "none", TYPE)
    assert worker.ended == []
    worker.may_end.set()
    await slow


@pytest.mark.root
async def test_an_unpacking_ends_when_the_last_who_waits_for_it_goes(
    images: Images, worker: Worker, tmp_path: Path
) -> None:
    worker.may_end.clear()
    waiting = [asyncio.create_task(images.unpack(name, ONE, "0", TYPE)) for name in ("a", "b")]
    await worker.started.wait()
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    assert list((tmp_path / "unfinished").iterdir())
    waiting[1].cancel()
    await asyncio.wait(waiting)
    worker.may_end.set()
    assert await images.unpack("b", ONE, "0", TYPE) > 0  # one who comes then does not join what was given up
    assert worker.ran == [ONE[7:]] * 2
    assert worker.ended == [ONE[7:]]
    assert list((tmp_path / "unfinished").iterdir()) == []


@pytest.mark.root
async def test_an_image_is_written_once_and_recorded_after_that(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    monkeypatch.setattr(kernel, "syncfs", lambda _: written.append("image" in images.records))
    for diff_id in (ONE, TWO):
        await images.unpack("image", diff_id, "0", TYPE)
    assert written == []
    await images.commit("image", [ONE, TWO])
    assert written == [False]
    await images.unpack("other", ONE, "0", TYPE)
    await images.commit("other", [ONE])  # it is written already
    assert written == [False]


@pytest.mark.root
async def test_layers_that_could_not_be_written_are_of_no_image(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "the disk")

    await images.unpack("image", ONE, "0", TYPE)
    with monkeypatch.context() as failing:
        failing.setattr(kernel, "syncfs", fail)
        with pytest.raises(OSError, match="the disk"):
            await images.commit("image", [ONE])
    await images.unpack("image", TWO, "0", TYPE)
    with pytest.raises(Failed, match="could not be written"):
        await images.commit("image", [ONE, TWO])
    await images.remove("image")
    await images.unpack("image", ONE, "0", TYPE)
    await images.commit("image", [ONE])
