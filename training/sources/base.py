"""What a data source is: configuration that can load a long frame."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd
from pydantic import BaseModel, ConfigDict


def _say_nothing(message: str) -> None:
    del message


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
