"""The state of one agent: pydantic models as JSON documents by kind and id, in one SQLite database (WAL).

A database belongs to one agent (several image agents share theirs); no other reads it. Every change is one
transaction. Crash safety is this: `commit()` returns after the transaction is in the write-ahead log, which a killed
process cannot lose. All SQLite work happens in one thread per store, off the event loop. A file beside it keeps space
for deleting on a full disk (`criw.reserve`): who has freed something can say so.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import pydantic.dataclasses  # noqa: F401 — pydantic imports it when it first reads JSON: see `criw.service`
from pydantic import BaseModel, ConfigDict, ValidationError

from criw.errors import AlreadyExists, DataLoss, FailedPrecondition, Fault, ResourceExhausted, Unavailable
from criw.reserve import Reserve

SCHEMA_VERSION: Final = 1
# What SQLite says on a full disk: the second of a file that cannot grow (-shm), the third of one that cannot be made.
_FOR_WANT_OF_SPACE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_BUSY_TIMEOUT_S: Final = 10.0
_BUSY_PAUSE_S: Final = 0.01
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS record (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID
"""


class Record(BaseModel):
    """A document in the store. Subclasses set `kind`; unknown fields are refused when it is read again."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]
    id: str


R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Store:
    """Use `open_store()`; an instance is good until that block is left."""

    def __init__(self, database: sqlite3.Connection, thread: ThreadPoolExecutor, reserve: Reserve) -> None:
        self._database = database
        self._thread = thread
        self._reserve = reserve

    async def _run(self, work: Callable[[], T]) -> T:
        # Shielded: a cancelled caller must not be told "cancelled" about a transaction that then commits halfway
        # through its own cleanup. The thread runs one piece at a time, in order.
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except sqlite3.DatabaseError as err:
            if (fault := _fault_of(err)) is None:
                raise
            raise fault from err

    async def get(self, kind: type[R], record_id: str) -> R | None:
        """The record, or None."""

        def read() -> str | None:
            row = self._database.execute(
                "SELECT document FROM record WHERE kind = ? AND id = ?", (kind.kind, record_id)
            ).fetchone()
            return None if row is None else str(row[0])

        document = await self._run(read)
        return None if document is None else _load(kind, record_id, document)

    async def all(self, kind: type[R]) -> list[R]:
        """All records of a kind, by id."""

        def read() -> list[tuple[str, str]]:
            return self._database.execute(
                "SELECT id, document FROM record WHERE kind = ? ORDER BY id", (kind.kind,)
            ).fetchall()

        return [_load(kind, record_id, document) for record_id, document in await self._run(read)]

    async def version(self) -> tuple[int, int]:
        """Differs from an earlier answer if this store or another process may have changed the database since."""

        def read() -> tuple[int, int]:
            # data_version counts what others committed, total_changes what this connection did.
            others = int(self._database.execute("PRAGMA data_version").fetchone()[0])
            return others, self._database.total_changes

        return await self._run(read)

    async def commit(
        self, *, put: Sequence[Record] = (), delete: Sequence[Record] = (), create: Sequence[Record] = ()
    ) -> None:
        """Change several records in one transaction: `delete`, then `create` (must be new), then `put` (new or not).

        Deleting what is not there is a success. Raises AlreadyExists, changing nothing, if one to create exists;
        ResourceExhausted on a full disk, where only deleting goes on for a while; Unavailable if the disk fails.
        """
        rows = [(type(r).kind, r.id, r.model_dump_json()) for r in put]
        fresh = [(type(r).kind, r.id, r.model_dump_json()) for r in create]
        gone = [(type(r).kind, r.id) for r in delete]

        def write() -> None:
            with self._database:  # commits, or rolls back on an exception
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("DELETE FROM record WHERE kind = ? AND id = ?", gone)
                for row in fresh:
                    try:
                        self._database.execute("INSERT INTO record VALUES (?, ?, ?)", row)
                    except sqlite3.IntegrityError as err:
                        raise AlreadyExists(f"cannot create {row[0]} {row[1]}: it exists") from err
                self._database.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", rows)

        def free() -> None:
            while True:
                try:
                    write()
                except sqlite3.OperationalError as err:
                    if _code(err) not in _FOR_WANT_OF_SPACE or not self._reserve.give():
                        raise
                else:
                    self._reserve.keep()
                    return

        await self._run(write if rows or fresh else free)

    async def put(self, *records: Record) -> None:
        """Save records, new or not, in one transaction."""
        await self.commit(put=records)

    async def delete(self, *records: Record) -> None:
        """Delete records in one transaction; those not there are no error."""
        await self.commit(delete=records)


def _load(kind: type[R], record_id: str, document: str) -> R:
    try:
        return kind.model_validate_json(document)
    except ValidationError as err:
        problems = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in err.errors())
        raise DataLoss(f"cannot read {kind.kind} {record_id} from the store: {problems}") from err


def _code(err: sqlite3.DatabaseError) -> int:
    """SQLite's primary result code; 0 for an error of the module itself."""
    return int(getattr(err, "sqlite_errorcode", 0)) & 0xFF


def _fault_of(err: sqlite3.DatabaseError) -> Fault | None:
    """A fault for what the machine's state is to blame for; None for our own mistakes."""
    match _code(err):
        case sqlite3.SQLITE_FULL:
            return ResourceExhausted("cannot save state: no space left on the device; free some and try again")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_BUSY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY:
            return Unavailable(f"cannot read or save state: {err}; is the disk full or failing?")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DataLoss(f"cannot read or save state: {err}; restore the database or put it aside")
    return None


def _connect(path: Path, reserve: Reserve) -> sqlite3.Connection:
    while True:
        with contextlib.ExitStack() as undo:
            try:
                database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
                undo.callback(database.close)
                _prepare(database, path)
            except sqlite3.OperationalError as err:
                if _code(err) in _FOR_WANT_OF_SPACE and reserve.give():
                    continue
                if _code(err) == sqlite3.SQLITE_FULL:
                    raise ResourceExhausted(f"cannot open {path}: no space left on the device; free some") from err
                raise FailedPrecondition(f"cannot open {path}: {err}") from err
            except sqlite3.DatabaseError as err:
                raise DataLoss(f"cannot use {path}: {err}; restore it or put it aside") from err
            undo.pop_all()
            return database


def _open(path: Path, reserve: Reserve) -> sqlite3.Connection:
    database = _connect(path, reserve)
    reserve.keep()
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    _use_write_ahead_log(database)
    # Safe against a killed process; a power failure may lose the last transactions, and the pods with them.
    database.execute("PRAGMA synchronous = NORMAL")
    found = int(database.execute("PRAGMA user_version").fetchone()[0])
    if found > SCHEMA_VERSION:
        raise DataLoss(f"cannot use {path}: it was written by a newer Criw (schema {found}); upgrade this agent")
    database.execute(_SCHEMA)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _use_write_ahead_log(database: sqlite3.Connection) -> None:
    until = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as err:
            # Two processes that open a new database at once: SQLite does not wait here, unlike everywhere else.
            if err.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_BUSY_PAUSE_S)
        else:
            return


@contextlib.asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    """Open the database at `path`, making it if needed. Its directory must exist.

    Raises DataLoss if the file was written by a newer version or is no database, FailedPrecondition if it cannot be
    opened.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="store") as thread:
        reserve = Reserve(path.with_name(f"{path.name}-reserve"))
        database = await asyncio.get_running_loop().run_in_executor(thread, _open, path, reserve)
        try:
            yield Store(database, thread, reserve)
        finally:
            await asyncio.get_running_loop().run_in_executor(thread, database.close)
