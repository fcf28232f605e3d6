"""The watched folder: files that lie in it are taken in once, whole, and moved away.

A file is complete when it has a name of its own (see UNFINISHED) and has not changed for a while. Its rows and its
checksum are kept in one transaction, so after a crash it is looked at again, and not taken in again. Looking is
polling: network drives tell nobody of changes.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from forecasting.errors import InputError, LedgerUnavailableError
from ledger.ingested import FileMark, IngestedFile
from ledger.ledger import Ledger
from ledger.rules import MOST_REPORTED, Checked, check_rows
from pipelines.report import Reporter
from training.sources.files import MISSING

DONE, REJECTED = "done", "rejected"
UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")
"""Endings of files that somebody is still writing; so are names that begin with a dot or an underscore."""
MOST_BYTES = 2 * 1024**3
LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class FileLayout:
    """What the files look like: long, one row an observation."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """What a column is, and its name in the file. Naming value columns keeps only those."""
    static: Sequence[str] = ()
    """Columns of names."""
    separator: str = ","
    decimal: str = "."


@dataclass
class Tally:
    """How many files were taken in, were known already, and were set aside."""

    done: int = 0
    known: int = 0
    rejected: int = 0


class FolderWatch:
    """Takes in the files of one folder for one dataset."""

    def __init__(
        self,
        folder: Path,
        dataset: str,
        ledger: Ledger,
        reporter: Reporter,
        layout: FileLayout | None = None,
        *,
        settle_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.dataset = dataset
        self.tally = Tally()
        self._ledger = ledger
        self._reporter = reporter
        self._layout = layout or FileLayout()
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}

    def run(self, poll_seconds: float, *, once: bool = False) -> None:
        """Look at the folder again and again; once: until every file that is there has been dealt with.

        Raises:
            InputError: the folder is not there.
            LedgerUnavailableError: the ledger does not answer, and `once` was asked.
        """
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is no folder")
        pause = poll_seconds
        while True:
            try:
                waiting = self.look()
                pause = poll_seconds
            except LedgerUnavailableError as error:
                if once:
                    raise
                pause = min(2 * pause, LONGEST_PAUSE)
                self._reporter.say(f"{error}; files stay where they are, trying again in {pause:g} s")
                waiting = 0
            except OSError as error:
                # A network drive that is away comes back.
                waiting = 1
                self._reporter.say(f"{self.folder} cannot be read: {error.strerror}")
            if once and not waiting:
                return
            time.sleep(min(pause, self._settle_seconds) if once else pause)

    def look(self) -> int:
        """Take in every complete file, the oldest first; return how many are not complete yet."""
        found = {path: _signature(path) for path in self.folder.iterdir() if _is_offered(path)}
        now = self._clock()
        self._seen = {
            path: self._seen[path] if path in self._seen and self._seen[path][0] == signature else (signature, now)
            for path, signature in found.items()
        }
        ready = [path for path, (_, since) in self._seen.items() if now - since >= self._settle_seconds]
        for path in sorted(ready, key=lambda path: (found[path][1], path.name)):
            self._take(path, found[path])
        return len(found) - len(ready)

    def _take(self, path: Path, signature: tuple[int, int]) -> None:
        if signature[0] > MOST_BYTES:
            self._reject(path, "too-large", [f"{signature[0]:,} bytes; at most {MOST_BYTES:,}"])
            return
        content = path.read_bytes()
        if _signature(path) != signature:
            return  # It has changed after all; it is looked at again.
        checksum = hashlib.sha256(content).hexdigest()
        known = self._ledger.ingested.find_file(self.dataset, checksum)
        if known is not None:
            self._note_known(path, checksum, known)
            return
        try:
            read = read_rows(path.name, content, self._layout)
        except InputError as error:
            self._reject(path, checksum, [str(error)])
            return
        if len(read.checked.rows):
            self._append(path, checksum, read)
        else:
            self._reject(path, checksum, [f"none of {read.refused:,} rows can be kept", *read.describe()])

    def _append(self, path: Path, checksum: str, read: "FileRows") -> None:
        mark = FileMark(path.name, checksum, read.refused)
        told = self._ledger.ingested.append_file(self.dataset, read.checked.rows, mark, static=self._layout.static)
        if isinstance(told, IngestedFile):
            self._note_known(path, checksum, told)
            return
        if read.refused:
            lines = [f"{read.refused:,} rows were refused, the others are kept:", *read.describe()]
            self._write_reason(path.name, lines)
        self._move(path, DONE, checksum)
        self.tally.done += 1
        values = f"{told.new:,} values new, {told.revised:,} revised, {told.unchanged:,} unchanged"
        self._reporter.say(f"{path.name}: {values}; {read.refused:,} rows refused")

    def _note_known(self, path: Path, checksum: str, known: IngestedFile) -> None:
        self._move(path, DONE, checksum)
        self.tally.known += 1
        self._reporter.say(
            f"{path.name}: taken in already, as {known.name} at {known.known_at:%Y-%m-%d %H:%M:%S} UTC"
        )

    def _reject(self, path: Path, checksum: str, reasons: Sequence[str]) -> None:
        # The reason first: a file that lies there without one would be a riddle.
        self._write_reason(path.name, reasons)
        self._move(path, REJECTED, checksum)
        self.tally.rejected += 1
        self._reporter.say(f"{path.name}: rejected, {reasons[0]}; see {REJECTED}/{path.name}.reason.txt")

    def _write_reason(self, name: str, lines: Sequence[str]) -> None:
        folder = self.folder / REJECTED
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.reason.txt").write_text("\n".join([name, *lines, ""]), encoding="utf-8")

    def _move(self, path: Path, to: str, checksum: str) -> None:
        folder = self.folder / to
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        if target.exists():
            target = folder / f"{path.stem}.{checksum[:12]}{path.suffix}"
        path.replace(target)
        self._seen.pop(path, None)


@dataclass(frozen=True)
class FileRows:
    """The rows of a file that can be kept, and what is wrong with the others."""

    checked: Checked
    malformed: Sequence[str]
    """Lines that are no rows at all."""

    @property
    def refused(self) -> int:
        """Return how many rows were refused."""
        return self.checked.refused + len(self.malformed)

    def describe(self) -> list[str]:
        """Say which rows and why, a line each, and how many more there are."""
        lines = [*self.malformed, *(f"row {one.row + 1}, {one}" for one in self.checked.refusals)]
        more = self.refused - len(lines[:MOST_REPORTED])
        return lines[:MOST_REPORTED] + ([f"and {more:,} more"] if more > 0 else [])


def read_rows(name: str, content: bytes, layout: FileLayout) -> FileRows:
    """Read a file and check its rows; row 1 is the first below the header.

    Raises:
        InputError: it is no file of rows, or lacks a column.
    """
    if name.endswith(".csv"):
        table, malformed = _read_csv(content, layout)
    elif name.endswith(".parquet"):
        table, malformed = _read_parquet(content), []
    else:
        raise InputError("is neither .csv nor .parquet")
    wanted = {"unique_id": "unique_id", "ds": "ds"} | dict(layout.columns)
    for column in wanted.values():
        if column not in table.columns:
            raise InputError(f"has no column {column!r}; it has {', '.join(map(repr, table.columns))}")
    chosen = [*wanted.values(), *(name for name in layout.static if name not in wanted.values())]
    values = [name for name in wanted if name not in ("unique_id", "ds", *layout.static)]
    kept = table[chosen] if values else table
    renamed = kept.rename(columns={column: name for name, column in wanted.items()})
    return FileRows(check_rows(renamed, static=layout.static), malformed)


def _read_csv(content: bytes, layout: FileLayout) -> tuple[pd.DataFrame, list[str]]:
    """Return the table, names and timestamps as text, and the lines that have not as many fields as the header."""
    malformed: list[str] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        malformed.append(f"line {row.number}: {row.actual_columns} fields; the header has {row.expected_columns}")
        return "skip"

    header = next(iter(content.split(b"\n", 1)), b"").decode("utf-8-sig", errors="replace").strip()
    names = [name.strip().strip('"') for name in header.split(layout.separator)]
    try:
        table = pyarrow.csv.read_csv(
            BytesIO(content),
            pyarrow.csv.ReadOptions(use_threads=False),
            pyarrow.csv.ParseOptions(
                delimiter=layout.separator, newlines_in_values=True, invalid_row_handler=skip
            ),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except (pa.ArrowException, UnicodeError) as error:
        raise InputError(f"cannot be read as CSV: {str(error).splitlines()[0]}") from error
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise InputError(f"has more than one column {twice[0]!r}")
    taken = {layout.columns.get(name, name) for name in ("unique_id", "ds", *layout.static)}
    columns = {name: _as_texts(table.column(name)) for name in table.column_names}
    return pd.DataFrame(
        {
            name.strip(): texts if name.strip() in taken else _as_numbers(texts, layout.decimal)
            for name, texts in columns.items()
        }
    ), malformed


def _as_texts(column: pa.ChunkedArray) -> pd.Series:
    texts: pd.Series = column.cast(pa.string()).to_pandas().astype("str").str.strip()
    return pd.Series(texts.mask(texts.isin(MISSING)))


def _as_numbers(texts: pd.Series, decimal: str) -> pd.Series:
    """Return numbers, and text where it is none, to be refused with its row."""
    plain = texts.str.replace(decimal, ".", regex=False) if decimal != "." else texts
    numbers = pd.to_numeric(plain, errors="coerce")
    odd = numbers.isna() & texts.notna()
    return numbers.astype(object).where(~odd, texts.astype(object)) if odd.any() else numbers


def _read_parquet(content: bytes) -> pd.DataFrame:
    try:
        table = pyarrow.parquet.read_table(BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise InputError(f"has more than one column {twice[0]!r}")
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return frame


def _is_offered(path: Path) -> bool:
    if path.name.startswith((".", "_")) or path.name.lower().endswith(UNFINISHED):
        return False
    return path.is_file()


def _signature(path: Path) -> tuple[int, int]:
    """Return what changes with a file: its size and the time of its last change."""
    told = path.stat()
    return told.st_size, told.st_mtime_ns
