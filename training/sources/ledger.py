"""The ledger: what was observed, as it was known at one moment.

Training knows no ledger; whoever runs it hands a reader over with the context.
"""

from datetime import UTC, date, datetime
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import AwareDatetime, Field

from forecasting.errors import SourceError
from forecasting.spec import MODEL_NAME_PATTERN
from training.sources.base import SourceConfig, SourceContext
from training.sources.files import CsvSource, ParquetSource
from training.sources.samples import SampleSource
from training.sources.simulate import SimulateSource
from training.sources.sql import SqlSource
from training.sources.yahoo import YahooSource

Feed = Annotated[
    SampleSource | SimulateSource | CsvSource | ParquetSource | YahooSource | SqlSource,
    Field(discriminator="kind"),
]
"""A source that brings rows from outside."""


class LedgerSource(SourceConfig):
    """Observations of one dataset of the ledger."""

    kind: Literal["ledger"] = Field("ledger", description="The ledger's observations.")
    dataset: str = Field(pattern=MODEL_NAME_PATTERN, description="The name the series are kept under.")
    feed: Feed | None = Field(
        None, description="Where `hindcast ingest` fetches rows for the dataset. Default: they come by other ways."
    )
    start: date | datetime | None = Field(
        None, description="First timestamp wanted; in UTC where it carries an offset. Default: all there is."
    )
    as_of: AwareDatetime | None = Field(
        None, description="Read what was known at this moment, revisions after it unseen. Default: now."
    )

    def load(self, context: SourceContext) -> pd.DataFrame:
        """Return the columns the context asks for, one row a series and timestamp.

        Raises:
            SourceError: there is no ledger to read, or nothing in it.
        """
        if context.observations is None:
            raise SourceError(f"dataset {self.dataset!r} is in the ledger, and there is no ledger here to read")
        columns = context.columns or ("y",)
        names = [name for name in context.names if name != "unique_id"]
        frame = context.observations(
            self.dataset, columns, static=names, start=self._first_stamp(), as_of=self.as_of
        )
        empty = [name for name in columns if frame[name].isna().all()]
        if empty:
            when = "" if self.as_of is None else f" that was known at {self.as_of}"
            raise SourceError(
                f"the ledger has no observation{when} of {', '.join(map(repr, empty))} in dataset {self.dataset!r}"
            )
        return frame

    def _first_stamp(self) -> np.datetime64 | None:
        start = self.start
        if isinstance(start, datetime) and start.tzinfo is not None:
            start = start.astimezone(UTC).replace(tzinfo=None)
        return None if start is None else np.datetime64(start, "us")
