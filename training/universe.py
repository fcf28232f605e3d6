"""Membership by date: which series belonged to a universe, such as an index, at each moment.

What a job learns from and is asked about are members only, and by the date alone: whoever is a member today was
not always one, and who left, or was delisted, belonged to it until then. Values outside of a membership are
missing, as if the series had not been there; nothing of what comes after a date decides what is seen at it.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.errors import SourceError

COLUMNS = ("unique_id", "start", "end")
MOST_SPELLS = 1_000_000


@dataclass(frozen=True)
class Spell:
    """One membership of a series."""

    unique_id: str
    start: pd.Timestamp
    end: pd.Timestamp
    """The first date it is no member any more; the end of time where it still is one."""
    line: int
    """Of the file."""


@dataclass(frozen=True)
class Universe:
    """The memberships of a file, by series, in the order of time."""

    path: Path
    spells: Mapping[str, Sequence[Spell]]

    def are_members(self, names: pd.Series, ds: pd.DatetimeIndex) -> NDArray[np.bool_]:
        """Return which rows are of a member; a row without a timestamp is."""
        members = np.asarray(ds.isna()).copy()
        for name, place in pd.Series(range(len(names))).groupby(names.astype(str).to_numpy()):
            rows = place.to_numpy()
            for spell in self.spells.get(str(name), ()):
                members[rows] |= np.asarray((ds[rows] >= spell.start) & (ds[rows] < spell.end))
        return members

    def find_unknown(self, names: Sequence[str]) -> dict[str, str]:
        """Return what is wrong with memberships of series that are not among these."""
        there = set(names)
        return {
            name: f"{self.path} line {spells[0].line}: there is no series {name!r}"
            for name, spells in self.spells.items()
            if name not in there
        }


def load_universe(path: Path) -> Universe:
    """Read the memberships of a CSV file with the columns unique_id, start and end; an empty end is none yet.

    Raises:
        SourceError: it is not there, or a row of it is wrong; the message has the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            spells = list(_read_spells(path, file))
    except OSError as error:
        raise SourceError(f"cannot read the universe {path}: {error.strerror}") from error
    except (UnicodeError, csv.Error) as error:
        raise SourceError(f"the universe {path} is no CSV file in UTF-8: {error}") from error
    if not spells:
        raise SourceError(f"the universe {path} has no rows")
    by_name: dict[str, list[Spell]] = {}
    for spell in sorted(spells, key=lambda spell: (spell.start, spell.line)):
        by_name.setdefault(spell.unique_id, []).append(spell)
    for own in by_name.values():
        _refuse_overlaps(path, own)
    return Universe(path, by_name)


def _read_spells(path: Path, lines: Iterator[str]) -> Iterator[Spell]:
    reader = csv.DictReader(lines, skipinitialspace=True)
    absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if absent:
        raise SourceError(f"the universe {path} has no column {', '.join(absent)}; it takes {', '.join(COLUMNS)}")
    for number, row in enumerate(reader):
        where = f"{path} line {reader.line_num}"
        if number >= MOST_SPELLS:
            raise SourceError(f"{where}: more than {MOST_SPELLS} rows")
        name, start, end = ((row[column] or "").strip() for column in COLUMNS)
        if not name:
            raise SourceError(f"{where}: a row has no unique_id")
        spell = Spell(
            name,
            _read_date(start, "start", where),
            _read_date(end, "end", where) if end else pd.Timestamp.max.floor("D").as_unit("us"),
            reader.line_num,
        )
        if spell.start >= spell.end:
            raise SourceError(f"{where}: {name!r} starts at {start} and ends at {end}, which is not later")
        yield spell


def _read_date(text: str, column: str, where: str) -> pd.Timestamp:
    try:
        return pd.Timestamp(datetime.strptime(text, "%Y-%m-%d")).as_unit("us")
    except ValueError as error:
        raise SourceError(f"{where}: {column} {text!r} is no date such as 2012-06-29") from error


def _refuse_overlaps(path: Path, spells: Sequence[Spell]) -> None:
    for before, after in pairwise(spells):
        if after.start < before.end:
            raise SourceError(
                f"{path} line {after.line}: {after.unique_id!r} is a member from {after.start:%Y-%m-%d}, "
                f"and was one already by line {before.line}"
            )
