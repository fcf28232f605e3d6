"""What a data source is: configuration that can load a long frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict


def _say_nothing(message: str) -> None:
    del message


class ObservationReader(Protocol):
    """Reads the ledger's observations."""

    def __call__(
        self,
        dataset: str,
        columns: Sequence[str],
        *,
        static: Sequence[str],
        start: np.datetime64 | None,
        as_of: datetime | None,
    ) -> pd.DataFrame:
        """Return a long frame of a dataset as known at a moment, which is that of the run where none is given."""


@dataclass(frozen=True)
class SourceContext:
    """Where a source may look and what it may say."""

    base_dir: Path
    """Relative paths in a job file start here: the folder of the job file."""
    cache_dir: Path
    """A source may keep here what it fetched; it may be deleted at any time."""
    note: Callable[[str], None] = _say_nothing
    """Called with one line a person should read: progress, a retry, a partial failure."""
    names: Sequence[str] = ()
    """Columns that hold names, beside `unique_id`: text, also where it looks like numbers."""
    columns: Sequence[str] = ()
    """Columns of values that are wanted, for a source that is to be told; others bring all they have."""
    freq: str | None = None
    """The job's, for a source that knows when a step is over."""
    row_by_row: bool = False
    """A row whose timestamp cannot be read is handed on with an `Unread` in its place, instead of failing all."""
    observations: ObservationReader | None = None
    """Reads the ledger, where there is one."""


class SourceConfig(BaseModel):
    """The `source:` of a job file; subclasses add their fields and the constant `kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Protocol):
    """Where rows come from."""

    def load(self, context: SourceContext) -> pd.DataFrame:
        """Return a long frame: `unique_id`, `ds` and one or more value columns.

        Raises:
            SourceError: the source did not deliver; the message says what was asked for and what came.
        """
