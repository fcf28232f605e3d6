"""Issued forecasts: kept as they were, with all it takes to compute them again."""

import threading
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from forecasting.covariates import Covariates
from forecasting.errors import InputError
from ledger.database import writing
from ledger.forecasts import (
    ISSUE_LOCK,
    ForecastInputs,
    IssuedForecast,
    _to_row,
    inputs_of,
    restore_covariates,
)
from ledger.ledger import Ledger
from ledger.schema import forecasts

DAYS = pd.date_range("2024-01-01", periods=5).as_unit("us").to_numpy()
ISSUED_AT = datetime(2024, 1, 3, 12, tzinfo=UTC)


def issued(unique_id: str = "pump-7", position: int = 0, **changes: object) -> IssuedForecast:
    rng = np.random.default_rng(position)
    fields: dict[str, object] = {
        "forecast_id": "f-1",
        "position": position,
        "batch_id": "f-1",
        "issued_at": ISSUED_AT,
        "dataset": "plant",
        "model": "pumps",
        "version": "3",
        "role": "champion",
        "unique_id": unique_id,
        "cutoff": DAYS[2],
        "ds_H": DAYS[3:],
        "quantiles": (0.1, 0.5, 0.9),
        "values_HQ": rng.normal(size=(2, 3)),
        "adjustment_HQ": None,
        "inputs": ForecastInputs(np.array([1.0, np.nan, 1 / 3])),
    }
    return IssuedForecast(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_forecast_comes_back_bit_for_bit(ledger: Ledger) -> None:
    adjusted = issued("b", 1, adjustment_HQ=np.full((2, 3), 0.1), status="degraded", reason="too short")
    assert ledger.forecasts.append([issued("a"), adjusted]) == 2

    one, other = ledger.forecasts.find("f-1")

    for kept, told in ((one, issued("a")), (other, adjusted)):
        np.testing.assert_array_equal(kept.values_HQ, told.values_HQ)
        np.testing.assert_array_equal(kept.inputs.y_L, told.inputs.y_L)
        np.testing.assert_array_equal(kept.ds_H, told.ds_H)
        assert kept.cutoff == told.cutoff
        for name in ("unique_id", "version", "role", "issued_at", "quantiles", "status", "reason", "horizon"):
            assert getattr(kept, name) == getattr(told, name)
    assert one.adjustment_HQ is None
    np.testing.assert_array_equal(other.adjustment_HQ, adjusted.adjustment_HQ)


@pytest.mark.parametrize("name", ["pump\x00", "pump\ud83d", "p" * 257], ids=["NUL", "half", "long"])
def test_a_forecast_that_cannot_be_kept_is_named(ledger: Ledger, name: str) -> None:
    with pytest.raises(InputError, match="forecast 'f-1', number 2: unique_id "):
        ledger.forecasts.append([issued("a"), issued(name, 1)])
    with pytest.raises(InputError, match="forecast 'f-1', number 1: the column "):
        ledger.forecasts.append_once([issued(target=name)])
    assert ledger.forecasts.find("f-1") == []


def test_what_is_quoted_of_something_that_cannot_be_kept_is_kept_without_it(ledger: Ledger) -> None:
    ledger.forecasts.append([issued(reason="series 'a\x00\ud83d' is short")])
    assert ledger.forecasts.find("f-1")[0].reason == "series 'a??' is short"
    run = ledger.runs.request("plant", "request", "asked by \x00", "key")
    ledger.runs.start(run.key, "worker")
    ended = ledger.runs.finish(run.key, "failed", error="no \x00 here")
    assert (ended.cause, ended.error) == ("asked by ?", "no ? here")


def test_a_forecast_once_issued_is_not_changed(ledger: Ledger) -> None:
    ledger.forecasts.append([issued()])

    assert ledger.forecasts.append([issued(values_HQ=np.zeros((2, 3))), issued("b", 1)]) == 1

    np.testing.assert_array_equal(ledger.forecasts.find("f-1")[0].values_HQ, issued().values_HQ)


def test_inputs_with_covariates_become_the_arguments_of_predict_again(ledger: Ledger) -> None:
    y_BL = np.array([[1.0, 2.0], [3.0, np.nan]])
    told = Covariates(
        cutoff_B=pd.DatetimeIndex(DAYS[1:3]),
        past_BLP=np.arange(4.0).reshape(2, 2, 1),
        future_BTF=np.arange(8.0).reshape(2, 4, 1),
        static={"site": ("north", "west")},
    )
    kept = [issued(str(b), b, inputs=inputs, cutoff=DAYS[1 + b]) for b, inputs in enumerate(inputs_of(y_BL, told))]
    ledger.forecasts.append(kept)

    back = restore_covariates(ledger.forecasts.batch("f-1"))

    assert back is not None
    assert back.cutoff_B.tolist() == told.cutoff_B.tolist()
    np.testing.assert_array_equal(back.past_BLP, told.past_BLP)
    np.testing.assert_array_equal(back.future_BTF, told.future_BTF)
    assert back.static == told.static


def test_the_time_of_the_cutoff_alone_is_a_covariate_too(ledger: Ledger) -> None:
    (shown,) = inputs_of(np.ones((1, 2)), Covariates(pd.DatetimeIndex(DAYS[2:3])))
    ledger.forecasts.append([issued(inputs=shown)])

    back = restore_covariates(ledger.forecasts.batch("f-1"))

    assert back is not None
    assert back.cutoff_B[0] == pd.Timestamp(DAYS[2])
    assert back.past_BLP is None


def test_no_covariates_are_none(ledger: Ledger) -> None:
    ledger.forecasts.append([issued()])
    assert restore_covariates(ledger.forecasts.batch("f-1")) is None


@pytest.mark.parametrize(
    "change", [{"y_L": np.array([1.0, 2.0])}, {"static": {"site": "x"}}, {"has_covariates": True}]
)
def test_the_digest_is_that_of_everything_shown(change: dict[str, object]) -> None:
    shown = ForecastInputs(np.array([1.0, np.nan]))
    assert shown.digest() == ForecastInputs(np.array([1.0, np.nan])).digest()
    assert shown.digest() != replace(shown, **change).digest()  # type: ignore[arg-type]


def test_the_newest_forecasts_of_a_series_come_first(ledger: Ledger) -> None:
    ledger.forecasts.append([issued(forecast_id=f"f-{k}", cutoff=DAYS[k]) for k in (1, 2, 0)])
    ledger.forecasts.append([issued(forecast_id="shadow", role="shadow"), issued("other", 1)])

    found = ledger.forecasts.of_series("pumps", "pump-7", role="champion", limit=2)

    assert [one.forecast_id for one in found] == ["f-2", "f-1"]


def test_who_issues_at_the_same_time_waits_to_see_what_the_other_kept(ledger: Ledger) -> None:
    """Whoever looks before the other has kept it would keep the same answer at another position."""
    found: list[int] = []
    late = threading.Thread(target=lambda: found.append(ledger.forecasts.append_once([issued("b", 1)])))
    with writing(ledger.engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ISSUE_LOCK)))
        late.start()
        late.join(0.5)
        assert not found
        connection.execute(sa.insert(forecasts), [_to_row(issued("a", 0))])
    late.join(30)
    assert found == [0]
    assert [kept.unique_id for kept in ledger.forecasts.find("f-1")] == ["a"]
