import asyncio
import contextlib
import errno
import itertools
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from criw import kernel
from criw.errors import AlreadyExists, DataLoss, FailedPrecondition, Fault, ResourceExhausted, Unavailable
from criw.store import SCHEMA_VERSION, Record, Store, open_store
from support.crew import python_environment


class Pod(Record):
    kind: ClassVar[str] = "pod"
    name: str = ""


class Newer(Record):
    """A pod as a later version might write it."""

    kind: ClassVar[str] = "pod"
    name: str = ""
    colour: str = "red"


class Address(Record):
    kind: ClassVar[str] = "address"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest_asyncio.fixture
async def store(database: Path) -> AsyncIterator[Store]:
    async with open_store(database) as store:
        yield store


async def test_a_record_comes_back_as_it_was(store: Store, database: Path) -> None:
    pod = Pod(id="1", name="“ä”\x00\n")
    await store.put(pod)
    assert await store.get(Pod, "1") == pod
    async with open_store(database) as again:
        assert await again.get(Pod, "1") == pod


async def test_what_is_not_there_is_none(store: Store) -> None:
    await store.put(Address(id="1"))
    assert await store.get(Pod, "1") is None
    assert await store.all(Pod) == []


async def test_all_of_a_kind_come_by_id(store: Store) -> None:
    await store.put(Pod(id="b"), Address(id="c"), Pod(id="a"))
    assert [pod.id for pod in await store.all(Pod)] == ["a", "b"]


async def test_putting_replaces_and_deleting_forgets(store: Store) -> None:
    await store.put(Pod(id="1", name="old"), Pod(id="2"))
    await store.put(Pod(id="1", name="new"))
    await store.delete(Pod(id="2"), Pod(id="never was"))
    assert await store.all(Pod) == [Pod(id="1", name="new")]


async def test_a_change_of_several_records_is_one(store: Store) -> None:
    await store.put(Pod(id="intent"))
    await store.commit(delete=[Pod(id="intent")], create=[Pod(id="1")], put=[Address(id="a")])
    assert (await store.all(Pod), await store.all(Address)) == ([Pod(id="1")], [Address(id="a")])


async def test_a_refused_change_changes_nothing(store: Store) -> None:
    await store.put(Pod(id="1", name="first"), Pod(id="2"))
    with pytest.raises(AlreadyExists, match=r"^cannot create pod 1"):
        await store.commit(delete=[Pod(id="2")], create=[Address(id="a"), Pod(id="1")], put=[Address(id="b")])
    assert [pod.id for pod in await store.all(Pod)] == ["1", "2"]
    assert await store.all(Address) == []
    await store.put(Pod(id="3"))  # and the store is good for the next


async def test_what_is_deleted_may_be_created_in_the_same_change(store: Store) -> None:
    await store.put(Pod(id="1", name="old"))
    await store.commit(delete=[Pod(id="1")], create=[Pod(id="1", name="new")])
    assert await store.get(Pod, "1") == Pod(id="1", name="new")


async def test_a_cancelled_change_is_made_before_what_comes_after_it(store: Store) -> None:
    putting = asyncio.create_task(store.put(Pod(id="1")))
    await asyncio.sleep(0)  # it has been handed to the thread
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await store.delete(Pod(id="1"))  # the caller's undo
    assert await store.all(Pod) == []


async def test_unknown_fields_are_refused(store: Store) -> None:
    await store.put(Newer(id="1"))
    for reading in (store.get(Pod, "1"), store.all(Pod)):
        with pytest.raises(DataLoss, match=r"^cannot read pod 1 from the store: colour: [^\n]*$"):
            await reading


async def test_a_database_of_a_newer_version_is_refused_untouched(database: Path) -> None:
    with sqlite3.connect(database) as newer:
        newer.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    newer.close()
    with pytest.raises(DataLoss, match=r"newer Criw \(schema 2\); upgrade"):
        async with open_store(database):
            pass
    with sqlite3.connect(database) as newer:
        assert newer.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    newer.close()


async def test_a_file_that_is_no_database_is_refused(database: Path) -> None:
    database.write_bytes(b"not a database" * 1000)
    with pytest.raises(DataLoss, match=str(database)):
        async with open_store(database):
            pass


async def test_a_database_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="missing"):
        async with open_store(tmp_path / "missing" / "state.db"):
            pass


async def test_a_full_disk_is_told_and_loses_nothing(store: Store) -> None:
    await store.put(Pod(id="1"))
    await store._run(lambda: store._database.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(ResourceExhausted, match="no space"):
        await store.put(Pod(id="2", name="x" * 100_000))
    await store._run(lambda: store._database.execute("PRAGMA max_page_count = 100000"))
    await store.put(Pod(id="3"))
    assert [pod.id for pod in await store.all(Pod)] == ["1", "3"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    kernel.mount("tmpfs", directory, fstype="tmpfs", data="size=8388608")
    yield directory
    kernel.umount2(directory, flags=kernel.MNT_DETACH)


def fill(directory: Path) -> None:
    """Take all the space there is, as a container does."""
    with (directory / "filler").open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            with kernel.suppress_errno(errno.ENOSPC):
                while True:
                    file.write(bytes(size))


@pytest.mark.root
async def test_what_was_freed_can_be_deleted_on_a_full_disk(small_disk: Path) -> None:
    records = [Pod(id=str(number), name="x" * 3000) for number in range(50)]
    async with open_store(small_disk / "state.db") as store:
        await store.put(*records)
        fill(small_disk)
        for number in itertools.count():  # what the write-ahead log has room for still
            try:
                await store.put(Pod(id=f"more-{number}", name="y" * 100_000))
            except ResourceExhausted:
                break
        for record in records:
            await store.delete(record)
            fill(small_disk)  # it gets whatever is given back
        with pytest.raises(ResourceExhausted):
            await store.put(Pod(id="big", name="y" * 3_000_000))
        (small_disk / "filler").unlink()
        await store.delete(*(Pod(id=f"more-{one}") for one in range(number + 1)))
        assert (small_disk / "state.db-reserve").stat().st_blocks * 512 >= 2 * 1024 * 1024  # it is kept again
        assert await store.all(Pod) == []


@pytest.mark.root
async def test_a_store_on_a_full_disk_is_opened(small_disk: Path) -> None:
    async with open_store(small_disk / "state.db") as store:
        await store.put(Pod(id="1"))
    fill(small_disk)
    async with open_store(small_disk / "state.db") as store:
        await store.delete(Pod(id="1"))
        assert await store.all(Pod) == []


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (sqlite3.SQLITE_FULL, ResourceExhausted),
        (sqlite3.SQLITE_IOERR_SHMSIZE, Unavailable),
        (sqlite3.SQLITE_IOERR_WRITE, Unavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Unavailable),
        (sqlite3.SQLITE_CORRUPT, DataLoss),
    ],
)
async def test_what_the_machine_is_to_blame_for_is_a_fault(store: Store, code: int, fault: type[Fault]) -> None:
    def fail() -> None:
        err = sqlite3.OperationalError("injected")
        err.sqlite_errorcode = code
        raise err

    with pytest.raises(fault, match=r"^cannot "):
        await store._run(fail)


async def test_a_mistake_of_ours_is_none(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await store._run(lambda: store._database.execute("SELECT * FROM missing"))


async def test_a_reader_does_not_wait_for_a_writer(store: Store, database: Path) -> None:
    await store.put(Pod(id="1"))
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM record")
        assert await store.all(Pod) == [Pod(id="1")]
        other.execute("COMMIT")
    assert await store.all(Pod) == []


async def test_a_database_another_process_is_just_making_is_waited_for(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        opening = asyncio.create_task(put_in(database, Pod(id="1")))
        await asyncio.wait({opening}, timeout=0.1)
        assert not opening.done()
        other.execute("COMMIT")
    await opening


async def put_in(database: Path, pod: Pod) -> None:
    async with open_store(database) as store:
        await store.put(pod)


WRITER = """
import asyncio, sys
from pathlib import Path
from typing import ClassVar
from criw.store import Record, open_store

class Pod(Record):
    kind: ClassVar[str] = "pod"
    name: str = ""

async def main() -> None:
    async with open_store(Path(sys.argv[1])) as store:
        for number in range(int(sys.argv[3])):
            await store.commit(create=[Pod(id=f"{sys.argv[2]}-{number}-{half}", name="x" * 500) for half in "ab"])
            print(number, flush=True)

asyncio.run(main())
"""


async def writer(database: Path, name: str, count: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, str(database), name, str(count)),
        stdout=asyncio.subprocess.PIPE,
        env=python_environment(),
    )


async def test_processes_share_a_database(database: Path) -> None:
    """As several image agents do; they open it for the first time at once, too."""
    writers = [await writer(database, name, 50) for name in "abcd"]
    for process in writers:
        said, _ = await process.communicate()
        assert (process.returncode, len(said.split())) == (0, 50)
    async with open_store(database) as store:
        assert len(await store.all(Pod)) == 4 * 50 * 2


@pytest.mark.parametrize("acknowledged", [1, 7, 40])
async def test_a_killed_writer_loses_nothing_acknowledged(acknowledged: int, database: Path) -> None:
    process = await writer(database, "w", 100_000)
    assert process.stdout is not None
    for _ in range(acknowledged):
        await process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    said = acknowledged + len((await process.stdout.read()).split())
    async with open_store(database) as store:
        ids = {pod.id for pod in await store.all(Pod)}
        assert {f"w-{number}-{half}" for number in range(said) for half in "ab"} <= ids
        assert len(ids) % 2 == 0  # the last change is there as a whole or not at all
        await store.put(Pod(id="next"))
