"""CSV and Parquet files: one, a folder or a glob; long (one row an observation) or wide (one column a series)."""

import codecs
import csv
import gzip
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from pydantic import Field, field_validator, model_validator

from forecasting.errors import SourceError
from training.adjust import Quoted, adjust_rows
from training.sources.base import SourceConfig, SourceContext
from training.sources.wall_clock import EPOCH_UNITS, TimeZone, read_timestamps, split_unread

NAMES = ("unique_id", "ds")
MISSING = ("", "NA", "N/A", "NaN", "nan", "NAN", "null", "NULL", "None", "-")
"""Texts that mean a missing value in any CSV file."""


class FileSource(SourceConfig):
    """Files that hold series: everything CSV and Parquet have in common."""

    path: str = Field(
        min_length=1,
        description="A file, a folder (all files of the kind directly in it) or a glob (** for subfolders); "
        "relative to the folder of the job file.",
    )
    layout: Literal["long", "wide"] = Field(
        "long", description="long: one row an observation. wide: one column a series, named after it."
    )
    columns: dict[str, str] = Field(
        {},
        description="What a column is, and its name in the file: {unique_id: sensor, ds: time, y: value}. "
        "unique_id and ds default to their own names; without a unique_id column a file is one series, named "
        "like the file. Naming value columns keeps only those (wide: {series: column}); default all.",
    )
    timestamp_format: str | None = Field(
        None,
        description=f"How timestamps are written: a strptime format, or {', '.join(EPOCH_UNITS)}. "
        "Default ISO 8601.",
    )
    timezone: TimeZone | None = Field(
        None,
        description="Zone of wall-clock times without an offset, such as Europe/Berlin. Default: UTC for steps "
        "shorter than a day, and dates stay dates.",
    )

    adjust: Literal["none", "forward"] = Field(
        "none",
        description="forward: Open, High, Low, Close and Volume, so called in the file or by columns, are "
        "adjusted for its Dividends and Stock Splits, point in time: nothing later moves a value.",
    )
    prices: Quoted = Field(
        "traded",
        description="What is adjusted: prices as traded, or split_adjusted, that is divided by all later splits.",
    )

    @model_validator(mode="after")
    def _columns_fit_the_layout(self) -> "FileSource":
        if self.layout == "wide" and "unique_id" in self.columns:
            raise ValueError("columns: a wide file has no unique_id column; its columns are the series")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: one column of the file cannot be two things")
        if self.adjust == "forward" and self.layout == "wide":
            raise ValueError("adjust: forward takes a long file, with a column a price")
        return self

    def load(self, context: SourceContext) -> pd.DataFrame:
        """Return the rows of all files as a long frame.

        Raises:
            SourceError: a file is absent, empty, damaged or has other columns; or a timestamp cannot be read.
        """
        paths = self._find_files(context.base_dir)
        names = [self.columns.get(name, name) for name in ("unique_id", *context.names)]
        tables = {path: self._read_table(path, names) for path in paths}
        empty = [path for path, table in tables.items() if table.empty]
        if len(empty) == len(paths):
            raise SourceError(f"no rows in {', '.join(map(str, empty[:5]))}")
        for path in empty:
            context.note(f"{path} holds no rows")
        frame = pd.concat([self._to_long(tables[path], path) for path in paths if path not in empty])
        frame = self._with_timestamps(frame.reset_index(drop=True), row_by_row=context.row_by_row)
        if self.adjust == "none":
            return frame
        ds, _ = split_unread(frame["ds"])
        return adjust_rows(frame, ds, self.prices)

    @property
    @abstractmethod
    def _suffixes(self) -> Sequence[str]:
        """Return what file names of this kind end with."""

    @abstractmethod
    def _read_table(self, path: Path, names: Sequence[str]) -> pd.DataFrame:
        """Read one file, its columns as they are; those in `names` are text."""

    def _find_files(self, base_dir: Path) -> list[Path]:
        place = base_dir / self.path
        if place.is_file():
            return [place]
        if place.is_dir():
            found = [path for path in place.iterdir() if path.name.endswith(tuple(self._suffixes))]
        else:
            root = Path(place.anchor) if Path(self.path).is_absolute() else base_dir
            found = list(root.glob(str(place.relative_to(root))))
        found = sorted(path for path in found if path.is_file() and not path.name.startswith("."))
        if not found:
            what = f"no {' or '.join(self._suffixes)} file in this folder" if place.is_dir() else "no such file"
            raise SourceError(f"{place}: {what}")
        return found

    def _to_long(self, table: pd.DataFrame, path: Path) -> pd.DataFrame:
        wanted = {"ds": "ds"} | self.columns
        self._require_columns(table, wanted, path)
        renamed = {column: name for name, column in wanted.items()}
        chosen = [column for name, column in wanted.items() if name not in NAMES]
        ids = [] if self.layout == "wide" else [self.columns.get("unique_id", "unique_id")]
        values = chosen or [column for column in table.columns if column not in [wanted["ds"], *ids]]
        if not values:
            raise SourceError(f"{path} has no column of values beside {', '.join(map(repr, table.columns))}")
        long = table[[*(i for i in ids if i in table.columns), wanted["ds"], *values]].rename(columns=renamed)
        for name in long.columns[long.columns.duplicated()]:
            raise SourceError(
                f"{path} has a column {name!r} beside the one mapped to it; name the value columns too"
            )
        if self.layout == "wide":
            return long.melt("ds", var_name="unique_id", value_name="y")[["unique_id", "ds", "y"]]
        if "unique_id" not in long.columns:
            long.insert(0, "unique_id", _series_name(path))
        return long

    def _require_columns(self, table: pd.DataFrame, wanted: dict[str, str], path: Path) -> None:
        there = ", ".join(map(repr, table.columns))
        for name, column in wanted.items():
            if column not in table.columns:
                mapped = f" (columns: {name})" if name != column else ""
                raise SourceError(f"{path} has no column {column!r}{mapped}; it has {there}")

    def _with_timestamps(self, frame: pd.DataFrame, *, row_by_row: bool) -> pd.DataFrame:
        names = frame["unique_id"]
        if not row_by_row and (names.isna().any() or (names.astype(str).str.strip() == "").any()):
            raise SourceError(f"{self.path}: a row has no unique_id")
        frame["ds"] = read_timestamps(
            frame["ds"], names, self.timestamp_format, self.timezone, row_by_row=row_by_row
        )
        return frame


def _series_name(path: Path) -> str:
    """Return the file name up to its first kind: pump-7 for pump-7.csv.gz."""
    name = path.name
    for suffix in (".gz", ".csv", ".parquet"):
        name = name.removesuffix(suffix)
    return name


class CsvSource(FileSource):
    """Text files with a header line and one separator throughout."""

    kind: Literal["csv"] = Field("csv", description="CSV files; .gz is unpacked.")
    separator: str = Field(",", min_length=1, max_length=1, description="Character between two fields.")
    decimal: Literal[".", ","] = Field(".", description="Decimal sign. There is no sign for thousands.")
    encoding: str = Field("utf-8", description="Encoding of the text.")
    missing: tuple[str, ...] = Field(
        (), description="Texts that mean a missing value, such as -999, beside the usual empty, NA, NaN, null."
    )

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            return codecs.lookup(encoding).name
        except LookupError as error:
            raise ValueError(f"unknown encoding {encoding!r}") from error

    @property
    def _suffixes(self) -> Sequence[str]:
        return (".csv", ".csv.gz")

    def _read_table(self, path: Path, names: Sequence[str]) -> pd.DataFrame:
        try:
            header, lines = self._read_header(path)
            if not header:
                return pd.DataFrame()
            table = self._read_texts(path, header, lines)
        except (pa.ArrowException, OSError, EOFError, UnicodeError, csv.Error) as error:
            raise SourceError(self._find_fault(path, error)) from error
        as_text = {self.columns.get("ds", "ds"), *names}
        return pd.DataFrame(
            {
                name: column.to_pandas() if name in as_text else self._read_numbers(column, name, path)
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        )

    def _open(self, path: Path) -> IO[str]:
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding=encoding, newline="")
        return path.open(encoding=encoding, newline="")

    def _read_header(self, path: Path) -> tuple[list[str], int]:
        """Return the column names and the number of lines up to and with them."""
        with self._open(path) as file:
            reader = csv.reader(file, delimiter=self.separator)
            header = [name.strip() for name in next(filter(None, reader), [])]
        for name in header:
            if header.count(name) > 1:
                raise SourceError(f"{path} has more than one column {name!r}")
        return header, reader.line_num

    def _read_texts(self, path: Path, header: list[str], lines: int) -> pa.Table:
        """Read all columns as text: what a number is depends on the column and the decimal sign."""
        reads = pyarrow.csv.ReadOptions(
            column_names=header, skip_rows=lines, encoding=self.encoding, use_threads=False
        )
        converts = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        )
        parses = pyarrow.csv.ParseOptions(delimiter=self.separator, newlines_in_values=True)
        return pyarrow.csv.read_csv(path, reads, parses, converts)

    def _find_fault(self, path: Path, error: Exception) -> str:
        """Say where a file is malformed; the fast reader knows rows but not lines."""
        if isinstance(error, UnicodeError) or "UTF8" in str(error):
            return f"{path} is not encoded as {self.encoding}; set encoding"
        try:
            with self._open(path) as file:
                reader = csv.reader(file, delimiter=self.separator)
                n_fields = len(next(filter(None, reader)))
                for row in filter(None, reader):
                    if len(row) != n_fields:
                        return f"{path} line {reader.line_num}: {len(row)} fields; the header has {n_fields}"
        except (OSError, EOFError, csv.Error, UnicodeError):
            pass
        return f"{path} cannot be read: {error}"

    def _read_numbers(self, column: pa.ChunkedArray, name: str, path: Path) -> pd.Series:
        """Return numbers, NaN where missing; text stays text, for the panel to refuse by series."""
        texts = pc.utf8_trim_whitespace(column)
        texts = pc.if_else(pc.is_in(texts, pa.array([*MISSING, *self.missing])), None, texts)
        if self.decimal == ",":
            self._refuse_thousands(texts, name, path)
            texts = pc.replace_substring(texts, ",", ".")
        try:
            numbers: pd.Series = pc.cast(texts, pa.float64()).to_pandas()
        except pa.ArrowInvalid:
            found = pd.to_numeric(texts.to_pandas(), errors="coerce").astype(object)
            numbers = found.where(found.notna() | texts.to_pandas().isna(), column.to_pandas())
        return numbers

    def _refuse_thousands(self, texts: pa.ChunkedArray, name: str, path: Path) -> None:
        pointed = texts.filter(pc.match_substring_regex(texts, r"^[+-]?\d+(\.\d+)+(,\d*)?$"))
        if len(pointed):
            raise SourceError(
                f"{path}: {pointed[0].as_py()!r} in column {name!r} has a point, but the decimal sign is a comma"
            )


class ParquetSource(FileSource):
    """Parquet files, with the types they declare."""

    kind: Literal["parquet"] = Field("parquet", description="Parquet files.")

    @property
    def _suffixes(self) -> Sequence[str]:
        return (".parquet",)

    def _read_table(self, path: Path, names: Sequence[str]) -> pd.DataFrame:
        del names  # the file declares what is text
        try:
            table = pyarrow.parquet.read_table(path, partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path} cannot be read as Parquet: {error}") from error
        twice = [name for name in table.column_names if table.column_names.count(name) > 1]
        if twice:
            raise SourceError(f"{path} has more than one column {twice[0]!r}")
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)  # a stored index is a column like any other
        return frame
