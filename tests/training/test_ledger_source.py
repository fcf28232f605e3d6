"""The ledger as a job's source: training knows no ledger, only who reads it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from forecasting.errors import SourceError
from training.sources import LedgerSource, SourceContext


class Reader:
    """Remembers what it was asked, and answers with one column of numbers."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values, self.asked = values, {}

    def __call__(self, dataset: str, columns: Sequence[str], **more: object) -> pd.DataFrame:
        self.asked = {"dataset": dataset, "columns": list(columns), **more}
        ds = pd.date_range("2024", periods=len(self.values))
        return pd.DataFrame({"unique_id": "a", "ds": ds, **dict.fromkeys(columns, self.values)})


def context(reader: Reader | None) -> SourceContext:
    return SourceContext(
        Path(), Path(), names=("unique_id", "site"), columns=("Close", "ambient"), observations=reader
    )


def test_the_ledger_is_asked_for_the_columns_of_the_job() -> None:
    reader = Reader([1.0, np.nan])
    source = LedgerSource(dataset="plant", start="2024-02-01T02:00+02:00", as_of="2024-05-01T00:00Z")

    frame = source.load(context(reader))

    assert len(frame) == 2
    assert reader.asked == {
        "dataset": "plant",
        "columns": ["Close", "ambient"],
        "static": ["site"],
        "start": np.datetime64("2024-02-01T00:00"),
        "as_of": datetime(2024, 5, 1, tzinfo=UTC),
    }


def test_without_a_ledger_or_observations_the_dataset_is_named() -> None:
    source = LedgerSource(dataset="plant")
    with pytest.raises(SourceError, match="dataset 'plant' is in the ledger, and there is no ledger here"):
        source.load(context(None))
    with pytest.raises(SourceError, match="no observation of 'Close', 'ambient' in dataset 'plant'"):
        source.load(context(Reader([])))


def test_a_moment_without_a_zone_and_a_ledger_that_feeds_itself_are_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        LedgerSource(dataset="plant", as_of="2024-05-01T00:00")
    with pytest.raises(ValidationError, match="feed"):
        LedgerSource.model_validate({"dataset": "plant", "feed": {"kind": "ledger", "dataset": "other"}})
