"""A long frame in, a forecast frame out: the inference path for files, notebooks and MLflow's own tools."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import timestamps_after
from forecasting.errors import PanelError
from forecasting.forecaster import Forecaster, summarise
from forecasting.panel import Columns, Panel
from forecasting.price_panel import build_price_panel, find_made
from forecasting.spec import CovariatesSpec
from forecasting.transforms import apply_transform


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
    told = forecaster.spec.covariates
    panel = build_price_panel(frame, forecaster.spec.freq, columns=find_columns(frame, told), prices=told.prices)
    forecasts, problems = forecast_panel(forecaster, panel, level)
    if problems:
        raise PanelError(problems)
    return forecasts


def forecast_panel(
    forecaster: Forecaster, panel: Panel, level: Sequence[float] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Forecast every series of a panel that can be, as `forecast_frame` does; say what is wrong with the rest.

    Raises:
        InputError: a level reaches beyond the trained quantiles.
    """
    spec = forecaster.spec
    first_N, last_N = panel.spans()
    y_NL = _last_windows(panel, last_N, spec.input_size)
    problems = _without_history(panel.unique_ids, (last_N - first_N + 1).tolist(), spec.input_size)
    usable_N = np.isfinite(apply_transform(y_NL, spec.transform)).any(axis=1)
    for n in np.flatnonzero(~usable_N):
        uid = panel.unique_ids[n]
        problems.setdefault(uid, f"series {uid!r} has no usable value in its last {spec.input_size} steps")
    series_B = np.array([n for n, uid in enumerate(panel.unique_ids) if uid not in problems], dtype=np.int64)
    last_B = last_N[series_B]
    told = None
    if spec.takes_covariates:
        told = panel.covariates_at(series_B, last_B, spec.covariates, spec.input_size, spec.horizon)
    quantiles_BHQ = forecaster.predict(y_NL[series_B], told)
    columns = summarise(quantiles_BHQ, spec.quantiles, spec.level if level is None else level)
    forecasts = pd.DataFrame(
        {
            "unique_id": np.repeat(np.array(panel.unique_ids, dtype=object)[series_B], spec.horizon),
            "cutoff": panel.ds[last_B].repeat(spec.horizon),
            "ds": _steps_after(panel, last_B, spec.horizon),
            **{name: values_BH.ravel() for name, values_BH in columns.items()},
        }
    )
    return forecasts, problems


def _last_windows(panel: Panel, last_N: NDArray[np.int64], input_size: int) -> NDArray[np.float64]:
    """Return the last steps of every series, NaN before the grid begins."""
    step_NL = last_N[:, None] + np.arange(1 - input_size, 1)
    y_NL = panel.y_NT[np.arange(panel.n_series)[:, None], np.maximum(step_NL, 0)]
    return np.where(step_NL >= 0, y_NL, np.nan)


def _steps_after(panel: Panel, last_B: NDArray[np.int64], horizon: int) -> NDArray[np.datetime64]:
    """Return the timestamps after these positions; of many series most end at the same one."""
    ends, end_B = np.unique(last_B, return_inverse=True)
    ahead = [timestamps_after(panel.calendar, panel.ds[end], horizon).to_numpy() for end in ends]
    return np.stack(ahead)[end_B].ravel() if ahead else panel.ds[:0].to_numpy()


def find_columns(frame: pd.DataFrame, covariates: CovariatesSpec) -> Columns:
    """Return those of the forecaster's covariates that the frame has, or has the prices of."""
    there = set(frame.columns)
    made = set(find_made(covariates.ranges, covariates.prices, there))
    return Columns(
        past=tuple(name for name in covariates.past if name in there | made),
        future=tuple(name for name in covariates.future if name in there),
        static=tuple(static.name for static in covariates.static if static.name in there),
    )


def _without_history(unique_ids: Sequence[str], lengths: Sequence[int], needed: int) -> dict[str, str]:
    return {
        uid: f"series {uid!r} has {length} points; this model needs {needed} (input_size)"
        for uid, length in zip(unique_ids, lengths, strict=True)
        if length < needed
    }
