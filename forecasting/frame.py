"""A long frame in, a forecast frame out: the inference path for files, notebooks and MLflow's own tools."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from forecasting.calendar import timestamps_after
from forecasting.errors import PanelError
from forecasting.forecaster import Forecaster, summarise
from forecasting.panel import build_panel


def forecast_frame(
    forecaster: Forecaster, frame: pd.DataFrame, level: Sequence[float] | None = None
) -> pd.DataFrame:
    """Forecast every series of a long frame (`unique_id`, `ds`, `y`) from its last observed value.

    Args:
        forecaster: any.
        frame: at least `input_size` steps a series.
        level: central intervals in percent; default those of the forecaster's spec.

    Returns:
        One row a series and step: `unique_id`, `cutoff`, `ds`, `mean`, and two bounds for each level.

    Raises:
        PanelError: series were refused or are too short; each is named.
        InputError: a level reaches beyond the trained quantiles.
    """
    spec = forecaster.spec
    panel = build_panel(frame, spec.freq)
    first_N, last_N = panel.spans()
    _require_history(panel.unique_ids, (last_N - first_N + 1).tolist(), spec.input_size)
    steps = last_N[:, None] + np.arange(1 - spec.input_size, 1)
    quantiles_BHQ = forecaster.predict(panel.y_NT[np.arange(panel.n_series)[:, None], steps])
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


def _require_history(unique_ids: Sequence[str], lengths: Sequence[int], needed: int) -> None:
    short = {
        uid: f"series {uid!r} has {length} points; this model needs {needed} (input_size)"
        for uid, length in zip(unique_ids, lengths, strict=True)
        if length < needed
    }
    if short:
        raise PanelError(short)
