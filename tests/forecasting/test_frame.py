"""Forecasts of a frame: what the forecaster is told of each series besides its values."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from forecasting.covariates import Covariates
from forecasting.errors import PanelError
from forecasting.frame import forecast_frame
from forecasting.spec import CovariatesSpec, ForecasterSpec, MLPSpec, StaticSpec
from tests.conftest import make_spec

NAN = float("nan")
COVARIATES = CovariatesSpec(
    past=("ambient",),
    future=("setpoint",),
    static=(StaticSpec(name="unique_id", categories=("a", "b")), StaticSpec(name="site", categories=("north",))),
    calendar=("weekday",),
)


@dataclass
class Listener:
    """A forecaster that keeps what it is told and forecasts nothing but zeros."""

    spec: ForecasterSpec
    told: list[tuple[object, ...]] = field(default_factory=list)

    def predict(self, *told: object) -> np.ndarray:
        self.told.append(told)
        return np.zeros((len(told[0]), self.spec.horizon, len(self.spec.quantiles)))  # type: ignore[arg-type]


def _frame() -> pd.DataFrame:
    """Return four observed days of `a` and three of `b`, which ends a day earlier; the set point goes on."""
    ds = pd.date_range("2024-01-01", periods=7, freq="D")
    setpoint = [1, 2, 3, 4, 5, 6, 7]
    a = pd.DataFrame({"unique_id": "a", "ds": ds, "y": [1, 2, 3, 4, NAN, NAN, NAN], "setpoint": setpoint})
    b = pd.DataFrame({"unique_id": "b", "ds": ds, "y": [5, 6, 7, NAN, NAN, NAN, NAN], "setpoint": setpoint})
    rows = pd.concat([a.assign(site="north"), b.assign(site="west")], ignore_index=True)
    return rows.assign(ambient=[10, 20, 30, 40, NAN, NAN, NAN] * 2)


def _ask(frame: pd.DataFrame, covariates: CovariatesSpec = COVARIATES) -> tuple[pd.DataFrame, tuple[object, ...]]:
    forecaster = Listener(make_spec(MLPSpec(input_size=2), covariates=covariates))
    return forecast_frame(forecaster, frame), forecaster.told[0]  # type: ignore[arg-type]


def test_each_series_is_told_what_was_known_at_its_own_cutoff() -> None:
    answer, (y_BL, told) = _ask(_frame())

    assert isinstance(told, Covariates)
    np.testing.assert_array_equal(y_BL, [[3, 4], [6, 7]])
    assert told.cutoff_B.tolist() == [pd.Timestamp("2024-01-04"), pd.Timestamp("2024-01-03")]
    np.testing.assert_array_equal(told.past_BLP, [[[30], [40]], [[20], [30]]])
    np.testing.assert_array_equal(told.future_BTF, np.array([[3, 4, 5, 6, 7], [2, 3, 4, 5, 6]])[..., None])
    assert told.static == {"unique_id": ("a", "b"), "site": ("north", "west")}
    assert answer["ds"].tolist()[:3] == list(pd.date_range("2024-01-05", periods=3))


def test_what_is_not_told_is_missing() -> None:
    _, (_, told) = _ask(_frame()[["unique_id", "ds", "y"]].dropna())

    assert isinstance(told, Covariates)
    assert np.isnan(told.past_BLP).all()
    assert np.isnan(told.future_BTF).all()
    assert told.past_BLP.shape == (2, 2, 1)
    assert told.future_BTF.shape == (2, 5, 1)
    assert told.static == {"unique_id": ("a", "b"), "site": ("", "")}


def test_a_forecaster_without_covariates_is_told_the_values_alone() -> None:
    _, (y_BL, told) = _ask(_frame(), CovariatesSpec())
    np.testing.assert_array_equal(y_BL, [[3, 4], [6, 7]])
    assert told is None


def test_a_bad_covariate_refuses_its_series_by_name() -> None:
    with pytest.raises(PanelError, match="series 'b' has two names in site: 'west' and 'east'"):
        _ask(_frame().assign(site=["north"] * 7 + ["west"] * 6 + ["east"]))
