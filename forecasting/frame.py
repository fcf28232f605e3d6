"""A long frame in, a forecast frame out: the inference path for files, notebooks and MLflow's own tools."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from forecasting.calendar import timestamps_after
from forecasting.errors import PanelError
from forecasting.forecaster import Forecaster, summarise
from forecasting.panel import Columns, build_panel
from forecasting.spec import CovariatesSpec


def forecast_frame(
    forecaster: Forecaster, frame: pd.DataFrame, level: Sequence[float] | None = None
) -> pd.DataFrame:
    """Forecast every series of a long frame (`unique_id`, `ds`, `y`) from its last observed value.

    Args:
        forecaster: any.
        frame: at least `input_size` steps a series, with the covariates the forecaster knows beside `y`. What
            future columns are known to be is told by rows after the last value, their `y` empty. A covariate
            that the frame does not have is missing throughout, as networks have learnt to do without.
        level: central intervals in percent; default those of the forecaster's spec.

    Returns:
        One row a series and step: `unique_id`, `cutoff`, `ds`, `mean`, and two bounds for each level.

    Raises:
        PanelError: series were refused or are too short; each is named.
        InputError: a level reaches beyond the trained quantiles.
    """
    spec = forecaster.spec
    panel = build_panel(frame, spec.freq, columns=_find_columns(frame, spec.covariates))
    first_N, last_N = panel.spans()
    _require_history(panel.unique_ids, (last_N - first_N + 1).tolist(), spec.input_size)
    series_N = np.arange(panel.n_series)
    y_BL = panel.y_NT[series_N[:, None], last_N[:, None] + np.arange(1 - spec.input_size, 1)]
    told = None
    if spec.takes_covariates:
        told = panel.covariates_at(series_N, last_N, spec.covariates, spec.input_size, spec.horizon)
    quantiles_BHQ = forecaster.predict(y_BL, told)
    columns = summarise(quantiles_BHQ, spec.quantiles, spec.level if level is None else level)
    ahead = [timestamps_after(panel.calendar, panel.ds[last], spec.horizon) for last in last_N]
    return pd.DataFrame(
        {
            "unique_id": np.repeat(np.array(panel.unique_ids, dtype=object), spec.horizon),
            "cutoff": panel.ds[last_N].repeat(spec.horizon),
            "ds": np.concatenate([ds.to_numpy() for ds in ahead]),
            **{name: values_BH.ravel() for name, values_BH in columns.items()},
        }
    )


def _find_columns(frame: pd.DataFrame, covariates: CovariatesSpec) -> Columns:
    """Return those of the forecaster's covariates that the frame has."""
    there = set(frame.columns)
    return Columns(
        past=tuple(name for name in covariates.past if name in there),
        future=tuple(name for name in covariates.future if name in there),
        static=tuple(static.name for static in covariates.static if static.name in there),
    )


def _require_history(unique_ids: Sequence[str], lengths: Sequence[int], needed: int) -> None:
    short = {
        uid: f"series {uid!r} has {length} points; this model needs {needed} (input_size)"
        for uid, length in zip(unique_ids, lengths, strict=True)
        if length < needed
    }
    if short:
        raise PanelError(short)
