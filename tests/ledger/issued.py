"""Forecasts as a test needs them: of hourly pumps, with quantiles around a value."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from forecasting.spec import quantiles_for
from ledger.forecasts import ForecastInputs, IssuedForecast

QUANTILES = quantiles_for((80.0, 90.0, 95.0))
START = np.datetime64("2024-03-01T00:00:00", "us")


def hour(n: int) -> np.datetime64:
    """Return the n-th hour."""
    return START + np.timedelta64(n, "h")


def rows_of(values: Sequence[float], unique_id: str = "pump-1", first: int = 0) -> pd.DataFrame:
    """Return hourly observations from the hour `first` on."""
    ds = [hour(first + i) for i in range(len(values))]
    return pd.DataFrame({"unique_id": unique_id, "ds": ds, "y": np.asarray(values, dtype=float)})


def issued(
    cutoff: int, centre: Sequence[float] | float = 10.0, spread: float = 4.0, horizon: int = 3, **changes: Any
) -> IssuedForecast:
    """Return a forecast whose quantiles are `centre` and evenly spread in probability around it."""
    centre_H = np.broadcast_to(np.asarray(centre, dtype=float), horizon)
    fields: dict[str, Any] = {
        "forecast_id": f"{changes.get('version', '1')}-{changes.get('unique_id', 'pump-1')}-{cutoff}",
        "position": 0,
        "batch_id": "batch",
        "issued_at": datetime(2024, 3, 1, tzinfo=UTC) + timedelta(hours=cutoff),
        "dataset": "pumps",
        "model": "pumps",
        "version": "1",
        "role": "champion",
        "unique_id": "pump-1",
        "cutoff": hour(cutoff),
        "ds_H": np.array([hour(cutoff + h) for h in range(1, horizon + 1)]),
        "quantiles": QUANTILES,
        "values_HQ": centre_H[:, None] + spread * (np.array(QUANTILES) - 0.5),
        "adjustment_HQ": None,
        "inputs": ForecastInputs(np.array([8.0, 9.0])),
        "freq": "h",
        "season_length": 2,
    }
    return IssuedForecast(**{**fields, **changes})
