"""The streams on disk: those that are not in memory, and the last snapshot of those that are.

One SQLite file of rows, each with a check sum. Nothing is lost when it is: streams then begin afresh. What cannot
be read is put aside.
"""

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from pydantic_core import from_json, to_json

from forecasting.stream import Layout

log = logging.getLogger("hindcast.streams")

FORMAT = 1
TOGETHER = 500
"""Rows of one question: SQLite bounds the parameters of a statement."""

_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS origins (id INTEGER PRIMARY KEY, content TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS streams (
    model TEXT NOT NULL, unique_id TEXT NOT NULL, origin INTEGER NOT NULL, used INTEGER NOT NULL,
    crc INTEGER NOT NULL, content BLOB NOT NULL, PRIMARY KEY (model, unique_id));
CREATE INDEX IF NOT EXISTS streams_used ON streams (used);
"""


@dataclass(frozen=True)
class Origin:
    """What a row was made by: without it, it could not be read."""

    version: str
    digest: str
    layout: Layout
    categories: dict[str, tuple[str, ...]]
    """The names of each static, but those of the series, which are its own."""

    @cached_property
    def content(self) -> str:
        """The same as it is kept."""
        return to_json(asdict(self)).decode()


@dataclass(frozen=True)
class Kept:
    """One stream as it is kept."""

    unique_id: str
    content: bytes
    used: int
    """The group it was last used in."""


class Store:
    """Rows by model and series."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = self._open()

    def save(self, model: str, origin: Origin, rows: Iterable[Kept]) -> None:
        """Keep rows in the place of those known."""
        with self._connection as connection:
            number = self._number_of(origin)
            connection.executemany(
                "INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?, ?)",
                [(model, row.unique_id, number, row.used, zlib.crc32(row.content), row.content) for row in rows],
            )

    def load(self, model: str, unique_ids: Sequence[str]) -> list[tuple[Origin, Kept]]:
        """Return the rows there are of some series; one that is damaged counts as none."""
        found: list[tuple[Origin, Kept]] = []
        for i in range(0, len(unique_ids), TOGETHER):
            asked = unique_ids[i : i + TOGETHER]
            places = ",".join("?" * len(asked))
            rows = self._connection.execute(
                "SELECT origins.content, unique_id, streams.content, used, crc FROM streams "  # noqa: S608
                f"JOIN origins ON origins.id = origin WHERE model = ? AND unique_id IN ({places})",
                (model, *asked),
            )
            for told, unique_id, content, used, crc in rows:
                origin = _read_origin(told)
                if zlib.crc32(content) == crc and len(content) == origin.layout.dtype.itemsize:
                    found.append((origin, Kept(unique_id, content, used)))
                else:
                    log.error("a stream of model %s is damaged on disk and begins afresh", model)
        return found

    def count(self) -> int:
        """Return how many series are kept; those in memory are among them once they were saved."""
        (count,) = self._connection.execute("SELECT count(*) FROM streams").fetchone()
        return int(count)

    @property
    def last_group(self) -> int:
        """Return the newest group any row was used in."""
        (last,) = self._connection.execute("SELECT max(used) FROM streams").fetchone()
        return int(last or 0)

    @property
    def nbytes(self) -> int:
        """Return the bytes in use."""
        pages, free, size = (
            int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def trim(self, max_bytes: int) -> int:
        """Forget the least recently used until the rest fits; return how many were forgotten."""
        forgotten = 0
        while self.nbytes > max_bytes:
            with self._connection as connection:
                done = connection.execute(
                    "DELETE FROM streams WHERE rowid IN (SELECT rowid FROM streams ORDER BY used LIMIT ?)",
                    (TOGETHER,),
                ).rowcount
            if not done:
                break
            forgotten += done
        return forgotten

    def sync(self) -> None:
        """Make everything saved until now survive a loss of power."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def start_afresh(self, why: Exception) -> None:
        """Put the file aside, and begin another."""
        log.error("the streams on disk cannot be read and are put aside: %s", why)
        with suppress(sqlite3.Error):
            self._connection.close()
        self._put_aside()
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            log.error("%s cannot be read and is put aside: %s", self.path.name, error)
            self._put_aside()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False)
        try:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found not in (0, FORMAT):
                raise sqlite3.DatabaseError(f"it is of format {found}, and not {FORMAT}")
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _put_aside(self) -> None:
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        if self.path.exists():
            self.path.rename(self.path.with_suffix(".unreadable"))

    def _number_of(self, origin: Origin) -> int:
        told = (origin.content,)
        self._connection.execute("INSERT OR IGNORE INTO origins (content) VALUES (?)", told)
        (number,) = self._connection.execute("SELECT id FROM origins WHERE content = ?", told).fetchone()
        return int(number)


@lru_cache(maxsize=64)
def _read_origin(content: str) -> Origin:
    told = from_json(content)
    layout = told["layout"]
    names = {name: tuple(layout[name]) for name in ("past", "future", "static")}
    categories = {name: tuple(known) for name, known in told["categories"].items()}
    return Origin(told["version"], told["digest"], Layout(**{**layout, **names}), categories)
