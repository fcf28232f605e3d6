"""The simulated sensors: every defect in the dose that was asked for."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from forecasting.errors import SourceError
from forecasting.panel import Columns, build_panel
from training.sources import SimulateSource, SourceContext
from training.sources.simulate import AMBIENT_LEAD, KINDS

QUIET = {
    "daily_amplitude": 0,
    "weekly_amplitude": 0,
    "fluctuation": 0,
    "drift": 0,
    "noise": 0,
    "stuck_rate": 0,
    "missing_rate": 0,
}


def _load(**settings: object) -> pd.DataFrame:
    return SimulateSource.model_validate(settings).load(SourceContext(Path(), Path()))


def _table(**settings: object) -> pd.DataFrame:
    """Return one column a sensor, everything off that is not asked for."""
    return _load(**(QUIET | settings)).pivot_table(index="ds", columns="unique_id", values="y", dropna=False)


def test_the_same_seed_gives_the_same_frame_and_another_seed_another() -> None:
    first = _load(n_steps=500, seed=7)
    pd.testing.assert_frame_equal(_load(n_steps=500, seed=7), first, check_exact=True)
    assert not _load(n_steps=500, seed=8)["y"].equals(first["y"])


def test_frames_stay_what_they_were_before_there_were_covariates() -> None:
    frame = _load(n_sensors=3, n_steps=200)
    assert list(frame) == ["unique_id", "ds", "y"]
    digest = hashlib.sha256(frame["y"].to_numpy().tobytes()).hexdigest()
    assert digest == "7665d7b4c98be1a03f529c8c024f9d46a30e68073bbe84edbd4a94117c3b8a8a"


def test_the_frame_is_a_panel_of_the_size_asked_for() -> None:
    panel = build_panel(_load(n_sensors=12, n_steps=300, freq="15min", start="2024-03-31T00:00"), "15min")
    assert (panel.n_series, panel.n_steps) == (12, 300)
    assert panel.ds[0] == pd.Timestamp("2024-03-31")
    assert panel.unique_ids[:2] == ("sensor-0", "sensor-1")


def test_nothing_asked_for_is_a_flat_line() -> None:
    assert (_table(n_sensors=2, n_steps=50, level=7.5) == 7.5).all(axis=None)


def test_the_daily_cycle_repeats_every_day() -> None:
    table = _table(n_sensors=3, n_steps=96, daily_amplitude=2).to_numpy()
    np.testing.assert_allclose(table[24:], table[:-24], atol=1e-9)
    assert (np.ptp(table, axis=0) > 1.5).all()


def test_the_weekly_cycle_repeats_every_week_and_shows_in_days() -> None:
    table = _table(n_sensors=3, n_steps=21, freq="D", daily_amplitude=5, weekly_amplitude=2).to_numpy()
    np.testing.assert_allclose(table[7:], table[:-7], atol=1e-9)
    assert (np.ptp(table, axis=0) > 1.5).all()


def test_cycles_shorter_than_a_step_are_not_seen() -> None:
    assert (_table(n_steps=50, freq="W", daily_amplitude=5, weekly_amplitude=5) == 20).all(axis=None)


def test_sensors_share_their_weather() -> None:
    shared = _table(n_sensors=20, n_steps=3000, fluctuation=1, noise=0.1).corr().to_numpy()
    alone = _table(n_sensors=20, n_steps=3000, noise=1).corr().to_numpy()
    pairs = np.triu_indices(20, 1)
    assert np.median(shared[pairs]) > 0.5
    assert np.ptp(shared[pairs]) > 0.2  # each in its own way
    assert np.abs(alone[pairs]).max() < 0.15


def test_one_kind_of_weather_moves_all_sensors_as_one() -> None:
    correlations = _table(n_sensors=5, n_steps=500, fluctuation=1, n_factors=1).corr()
    np.testing.assert_allclose(correlations, 1)


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.95])
def test_weather_is_remembered_as_far_as_asked(memory: float) -> None:
    weather = _table(n_sensors=1, n_steps=50_000, fluctuation=2, memory=memory)["sensor-0"] - 20
    assert weather.std() == pytest.approx(2, rel=0.1)
    assert weather.autocorr(1) == pytest.approx(memory, abs=0.03)


def test_drift_is_as_wide_as_asked_after_a_thousand_steps() -> None:
    table = _table(n_sensors=500, n_steps=1001, drift=3)
    assert (table.iloc[-1] - table.iloc[0]).std() == pytest.approx(3, rel=0.1)


def test_stuck_stretches_repeat_a_reading_in_the_share_and_length_asked_for() -> None:
    table = _table(n_sensors=20, n_steps=5000, noise=1, stuck_rate=0.1, stuck_length=10).to_numpy()
    repeats = np.diff(table, axis=0) == 0
    assert repeats.mean() == pytest.approx(0.1, abs=0.015)
    edges = np.diff(np.pad(repeats[:, 0], 1).astype(int))
    runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    assert runs[:-1].min() == 9  # nine repeats: ten equal readings; touching stretches make longer ones


def test_missing_stretches_come_in_the_share_and_length_asked_for() -> None:
    table = _table(n_sensors=20, n_steps=5000, missing_rate=0.1, missing_length=5)
    missing = table.isna().to_numpy()
    assert missing.mean() == pytest.approx(0.1, abs=0.015)
    edges = np.diff(np.pad(missing[:, 0], 1).astype(int))
    runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    assert runs[:-1].min() == 5


def test_covariates_are_columns_of_a_panel() -> None:
    columns = Columns(past=("ambient",), future=("setpoint",), static=("unique_id", "site", "kind"))
    panel = build_panel(_load(n_sensors=9, n_steps=300, covariates=True), "h", columns=columns)
    assert np.isfinite(panel.past_NTP).all()
    assert np.isfinite(panel.future_NUF).all()
    assert len(set(zip(panel.static["site"], panel.static["kind"], strict=True))) == 9


def test_covariates_move_the_sensors_and_leave_their_defects_where_they_were() -> None:
    plain, moved = _load(n_sensors=4), _load(n_sensors=4, covariates=True)
    assert (moved["y"] - plain["y"]).std() > 1
    assert moved["y"].isna().equals(plain["y"].isna())


def test_a_set_point_is_planned_in_steps_and_followed_with_the_gain_of_the_kind() -> None:
    frame = _load(**QUIET, n_sensors=9, n_steps=5000, covariates=True)
    for (kind, _), sensor in frame.groupby(["kind", "unique_id"]):
        held = sensor["setpoint"].diff().abs().rolling(60).sum() == 0
        assert 0.02 < (sensor["setpoint"].diff() != 0).mean() < 0.08
        reached = (sensor["y"] - 20)[held] / (sensor["setpoint"] - 20)[held]
        np.testing.assert_allclose(reached, KINDS[str(kind)].gain, rtol=0.01)


def test_the_ambient_reading_is_felt_later() -> None:
    frame = _load(**(QUIET | {"fluctuation": 1}), n_sensors=1, n_steps=20_000, covariates=True, memory=0.5)
    ambient, felt = frame["ambient"], frame["y"]
    lags = [abs(ambient.shift(lag).corr(felt)) for lag in range(12)]
    assert int(np.argmax(lags)) == AMBIENT_LEAD


def test_a_site_and_a_kind_decide_when_and_how_high_the_daily_cycle_is() -> None:
    frame = _load(**(QUIET | {"daily_amplitude": 4}), n_sensors=9, n_steps=24 * 400, covariates=True)
    cycle = frame.groupby(["site", "kind", frame["ds"].dt.hour])["y"].mean().unstack()
    height = (cycle.max(axis=1) - cycle.min(axis=1)).unstack()
    assert (height["chiller"] > height["boiler"]).all()
    assert cycle.xs("chiller", level="kind").idxmax(axis=1).nunique() == 3


def _error(x: np.ndarray, y: np.ndarray) -> float:
    """Return the error of a linear fit on the second half, learnt on the first."""
    half = len(y) // 2
    weights, *_ = np.linalg.lstsq(x[:half], y[:half])
    return float(np.abs(x[half:] @ weights - y[half:]).mean())


@pytest.mark.parametrize("steps_ahead", [1, 6, 24])
def test_whoever_knows_the_covariates_forecasts_better(steps_ahead: int) -> None:
    frame = _load(n_sensors=3, n_steps=3000, covariates=True, stuck_rate=0, missing_rate=0)
    for _, sensor in frame.groupby("unique_id"):
        y, ambient, setpoint = (sensor[name].to_numpy() for name in ("y", "ambient", "setpoint"))
        cutoffs = np.arange(48, 3000 - steps_ahead)
        lags = cutoffs[:, None] - np.arange(48)
        values = np.column_stack([y[lags], np.ones(len(cutoffs))])
        ahead = setpoint[cutoffs[:, None] + np.arange(1, steps_ahead + 1)]
        told = np.column_stack([values, ambient[lags[:, :12]], setpoint[lags[:, :12]], ahead])
        target = y[cutoffs + steps_ahead]
        assert _error(told, target) < 0.95 * _error(values, target)


def test_a_start_off_the_grid_is_refused() -> None:
    with pytest.raises(SourceError, match=r"2024-12-25.* is not a session of XNYS"):
        _load(freq="XNYS", start="2024-12-25")


def test_a_start_in_another_zone_is_told_in_utc() -> None:
    assert _load(n_steps=1, start="2024-06-01T02:00+02:00")["ds"][0] == pd.Timestamp("2024-06-01")


def test_more_values_than_memory_holds_are_refused() -> None:
    with pytest.raises(SourceError, match="at most 50000000 values"):
        _load(n_sensors=10_000, n_steps=1_000_000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_sensors", 0),
        ("n_steps", 0),
        ("freq", "fortnightly"),
        ("memory", 1.0),
        ("noise", -1),
        ("missing_rate", 1.0),
        ("stuck_length", 1),
        ("level", float("inf")),
        ("n_sensor", 3),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        _load(**{field: value})


def test_a_million_readings_take_a_moment() -> None:
    started = time.perf_counter()
    assert len(_load(n_sensors=1000, n_steps=1000)) == 1_000_000
    assert time.perf_counter() - started < 3
