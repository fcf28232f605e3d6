"""Streams: step by step equals the full pass, whatever way the observations arrive in."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecasting.covariates import Covariates
from forecasting.forecaster import Forecaster
from forecasting.spec import (
    CovariatesSpec,
    EnsembleSpec,
    MLPSpec,
    NetworkSpec,
    RecurrentSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
    SegmentSpec,
    StaticSpec,
    VolatilitySpec,
)
from forecasting.stream import NOT_TOLD, Observed, Outcome, Streams
from tests.conftest import make_forecaster

START = pd.Timestamp("2024-01-01")
DAY = 86_400_000_000
REWIND, GAP = 4, 20

EVERY_STEP: list[NetworkSpec] = [
    RecurrentSpec(kind="lstm", input_size=8, hidden_size=5),
    RecurrentSpec(kind="gru", input_size=8, hidden_size=5, layers=2, scaling="mean"),
    RecurrentSpec(kind="rnn", input_size=8, hidden_size=5, scaling="difference", head="student_t"),
    RecurrentSpec(kind="lstm", input_size=8, hidden_size=5, decoding="autoregressive"),
    EnsembleSpec(n_members=2, member=RecurrentSpec(kind="lstm", input_size=8, hidden_size=5)),
]
WINDOWED: list[NetworkSpec] = [
    MLPSpec(input_size=8, hidden_size=5),
    RidgeSpec(input_size=8),
    SeasonalNaiveSpec(input_size=8, season_length=7),
    SegmentSpec(kind="segment_lstm", input_size=8, segment_size=2, hidden_size=5, cycle=7),
    VolatilitySpec(input_size=8, hidden_size=5),
    EnsembleSpec(n_members=2, member=MLPSpec(input_size=8, hidden_size=5)),
]
COVARIATES = CovariatesSpec(
    past=("load",),
    future=("setpoint",),
    static=(StaticSpec(name="site", categories=("north", "south")),),
    calendar=("weekday",),
)


def name_of(network: NetworkSpec) -> str:
    return f"{network.kind}-{getattr(network, 'decoding', '')}-{getattr(network, 'scaling', '')}"


def ds_of(steps: np.ndarray) -> np.ndarray:
    return START.as_unit("us").asm8.view(np.int64) + DAY * np.asarray(steps, dtype=np.int64)


def open_streams(forecaster: Forecaster, **changes: int) -> Streams:
    return Streams(forecaster, **{"rewind": REWIND, "gap": GAP, "capacity": 4, **changes})


def observe(streams: Streams, slot: int, step: int, y: float) -> Outcome:
    """Tell a stream one value of one day."""
    (outcome,) = streams.observe(Observed(np.array([slot]), ds_of(np.array([step])), np.array([y])))
    return Outcome(outcome)


def feed(streams: Streams, y_T: np.ndarray, slot: int = 0) -> np.ndarray:
    """Tell a stream its values in order, settled step by step, and return its forecast."""
    for step, y in enumerate(y_T):
        observe(streams, slot, step, float(y))
        streams.settle(np.array([slot]))
    return streams.forecast(np.array([slot]))[0]


def whole_pass(forecaster: Forecaster, y_T: np.ndarray) -> np.ndarray:
    """Forecast from the whole history in one pass of the same network, which is `predict` on a longer window."""
    longer = forecaster.spec.network.model_copy(update={"input_size": len(y_T)})
    network = forecaster.spec.network
    if isinstance(network, EnsembleSpec):
        member = network.member.model_copy(update={"input_size": len(y_T)})
        longer = network.model_copy(update={"member": member})
    spec = forecaster.spec.model_copy(update={"network": longer})
    return Forecaster(spec, forecaster.network).predict(y_T[None])[0]


def walk(n_steps: int, seed: int = 0, missing: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y_T = 50 + rng.normal(size=n_steps).cumsum()
    y_T[rng.random(n_steps) < missing] = np.nan
    y_T[0] = 50.0
    return y_T


@pytest.mark.parametrize("transform", ["none", "log_return"])
@pytest.mark.parametrize("network", EVERY_STEP, ids=name_of)
def test_a_stream_equals_the_full_pass_over_its_whole_history(network: NetworkSpec, transform: str) -> None:
    forecaster, y_T = make_forecaster(network, transform=transform), walk(60)
    with torch.no_grad():
        forecaster.network.offsets_HQ.copy_(torch.randn_like(forecaster.network.offsets_HQ))
    np.testing.assert_allclose(feed(open_streams(forecaster), y_T), whole_pass(forecaster, y_T), rtol=2e-6)


@pytest.mark.parametrize("network", WINDOWED, ids=name_of)
def test_a_network_without_a_state_forecasts_from_the_last_values(network: NetworkSpec) -> None:
    forecaster, y_T = make_forecaster(network), walk(30)
    streams = open_streams(forecaster)
    shown_HQ = feed(streams, y_T)
    told = None
    if forecaster.spec.takes_covariates:
        told = Covariates(pd.DatetimeIndex([START + pd.Timedelta(days=29)]).as_unit("us"))
    np.testing.assert_array_equal(shown_HQ, forecaster.predict(y_T[None], told)[0])


LSTM = make_forecaster(EVERY_STEP[0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(1, 59), max_size=5), missing=st.floats(0, 0.9))
def test_it_does_not_matter_in_which_chunks_and_with_which_gaps_values_arrive(
    seed: int, cuts: list[int], missing: float
) -> None:
    y_T = walk(60, seed, missing)
    streams, rng = open_streams(LSTM, gap=60), np.random.default_rng(seed)
    for chunk in np.split(np.arange(60), sorted(set(cuts))):
        for step in chunk:
            # A missing value is a step left out or a null: the last one has to be said.
            if np.isfinite(y_T[step]) or rng.random() < 0.5 or step == 59:
                observe(streams, 0, int(step), y_T[step])
        streams.settle(np.array([0]))
    np.testing.assert_allclose(streams.forecast(np.array([0]))[0], whole_pass(LSTM, y_T), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_late_and_revised_values_end_where_those_in_order_do(data: st.DataObject) -> None:
    y_T = walk(40, data.draw(st.integers(0, 1000)), missing=0.0)
    streams, in_order = open_streams(LSTM), open_streams(LSTM)
    waiting: list[int] = []
    for step in range(40):
        if data.draw(st.booleans()):
            waiting.append(step)
        else:
            observe(streams, 0, step, y_T[step] if data.draw(st.booleans()) else 0.0)
            waiting.append(step)
            streams.settle(np.array([0]))
        while waiting and (waiting[0] <= step - REWIND + 1 or data.draw(st.booleans())):
            late = waiting.pop(0)
            assert not observe(streams, 0, late, y_T[late]).is_refused
    for late in waiting:
        observe(streams, 0, late, y_T[late])
    np.testing.assert_allclose(streams.forecast(np.array([0]))[0], feed(in_order, y_T), rtol=1e-6)


def test_the_same_observation_again_changes_nothing() -> None:
    streams = open_streams(LSTM)
    first_HQ = feed(streams, walk(30))
    before = streams.rows[0].tobytes()
    for step in (29, 25, 20):
        assert observe(streams, 0, step, walk(30)[step]) == Outcome.KNOWN
    assert streams.rows[0].tobytes() == before
    np.testing.assert_array_equal(streams.forecast(np.array([0]))[0], first_HQ)


def test_what_is_older_than_the_rewind_is_refused_and_changes_nothing() -> None:
    streams = open_streams(LSTM)
    feed(streams, walk(30))
    before = streams.rows[0].tobytes()
    assert observe(streams, 0, 30 - 1 - REWIND, 7.0) == Outcome.TOO_LATE
    assert observe(streams, 0, 30 - 1 - 1000, 7.0) == Outcome.TOO_LATE
    assert streams.rows[0].tobytes() == before
    assert observe(streams, 0, 30 - REWIND, 7.0) == Outcome.REVISED


def test_a_value_may_come_before_the_first_one() -> None:
    streams, in_order, y_T = open_streams(LSTM), open_streams(LSTM), walk(6, missing=0)
    for step in (2, 3, 1, 0, 4, 5):
        assert not observe(streams, 0, step, y_T[step]).is_refused
    np.testing.assert_allclose(streams.forecast(np.array([0]))[0], feed(in_order, y_T), rtol=1e-6)
    assert streams.lengths(np.array([0]))[0] == 6


def test_a_gap_is_bridged_up_to_its_bound_and_begins_afresh_beyond() -> None:
    y_T = walk(30, missing=0)
    streams, fresh = open_streams(LSTM), open_streams(LSTM)
    feed(streams, y_T)
    assert observe(streams, 0, 30 + GAP, 51.0) == Outcome.NEW
    gapped_T = np.concatenate([y_T, np.full(GAP, np.nan), [51.0]])
    np.testing.assert_allclose(streams.forecast(np.array([0]))[0], whole_pass(LSTM, gapped_T), rtol=2e-6)
    assert observe(streams, 0, 30 + GAP + GAP + 2, 52.0) == Outcome.RESTARTED
    assert streams.lengths(np.array([0]))[0] == 1
    observe(fresh, 0, 0, 52.0)
    np.testing.assert_array_equal(streams.forecast(np.array([0])), fresh.forecast(np.array([0])))


def test_a_timestamp_off_the_grid_is_refused() -> None:
    streams = open_streams(LSTM)
    feed(streams, walk(10))
    noon = ds_of(np.array([10])) + DAY // 2
    assert streams.observe(Observed(np.array([0]), noon, np.array([1.0])))[0] == Outcome.OFF_GRID
    weekly = open_streams(make_forecaster(EVERY_STEP[0], freq="W-SAT"))
    assert observe(weekly, 0, 0, 1.0) == Outcome.OFF_GRID  # a Monday


def test_streams_advance_together_and_do_not_touch_one_another() -> None:
    together, alone = open_streams(LSTM), open_streams(LSTM)
    ys = np.stack([walk(25, seed) for seed in range(3)])
    for step in range(25):
        slots = np.array([2, 0, 1])
        together.observe(Observed(slots, ds_of(np.full(3, step)), ys[slots, step]))
        together.settle(slots)
    for slot in range(3):
        feed(alone, ys[slot], slot)
    np.testing.assert_allclose(together.forecast(np.arange(3)), alone.forecast(np.arange(3)), rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 1e6, 1e9])
def test_a_high_level_takes_nothing_from_small_movements(level: float) -> None:
    small_T = 0.1 * (walk(200, missing=0.1) - 50)
    low_HQ = whole_pass(LSTM, small_T)
    np.testing.assert_allclose(
        feed(open_streams(LSTM), level + small_T) - level, low_HQ, atol=2e-6 + level * 1e-15
    )


def test_a_walk_that_goes_far_is_followed_as_precisely_as_one_that_stays() -> None:
    rng = np.random.default_rng(1)
    far_T = np.concatenate([np.linspace(0, 1e9, 100), 1e9 + rng.normal(size=100).cumsum()])
    spread = np.abs(np.diff(far_T[-8:])).mean()
    shown_HQ = feed(open_streams(LSTM), far_T)
    np.testing.assert_allclose(shown_HQ, whole_pass(LSTM, far_T), atol=1e-3 * spread)


def test_a_value_that_cannot_be_worked_with_counts_as_missing_from_the_next_step_on() -> None:
    streams, y_T = open_streams(LSTM), walk(20, missing=0)
    feed(streams, y_T)
    observe(streams, 0, 20, 1e300)
    assert np.isnan(streams.forecast(np.array([0]))).all()
    observe(streams, 0, 21, 50.0)
    expected_HQ = whole_pass(LSTM, np.concatenate([y_T, [np.nan, 50.0]]))
    np.testing.assert_allclose(streams.forecast(np.array([0]))[0], expected_HQ, rtol=2e-6)
    assert observe(streams, 0, 20, 49.0) == Outcome.REVISED
    assert np.isfinite(streams.forecast(np.array([0]))).all()


def test_a_stream_that_saw_nothing_yet_has_no_forecast() -> None:
    for network in (EVERY_STEP[0], WINDOWED[0]):
        streams = open_streams(make_forecaster(network))
        observe(streams, 0, 0, np.nan)
        assert np.isnan(streams.forecast(np.array([0]))).all()


def observe_told(streams: Streams, step: int, y: float, load: float, setpoint_T: np.ndarray, site: int) -> None:
    told = (np.array([[load]]), setpoint_T[None, :, None], np.array([[site]]))
    streams.observe(Observed(np.array([0]), ds_of(np.array([step])), np.array([y]), *told))


@pytest.mark.parametrize("network", [EVERY_STEP[0], EVERY_STEP[3], WINDOWED[0]], ids=name_of)
def test_covariates_are_seen_as_the_full_pass_sees_them(network: NetworkSpec) -> None:
    forecaster, y_T = make_forecaster(network, covariates=COVARIATES), walk(20)
    rng = np.random.default_rng(3)
    load_T, setpoint_T = rng.normal(size=20), rng.normal(size=23)
    streams = open_streams(forecaster)
    for step in range(20):
        observe_told(streams, step, y_T[step], load_T[step], setpoint_T[step : step + 4], 2)
    seen = 20 if streams.has_state else 8
    longer = network.model_copy(update={"input_size": seen})
    spec = forecaster.spec.model_copy(update={"network": longer})
    cutoff = pd.DatetimeIndex([START + pd.Timedelta(days=19)]).as_unit("us")
    told = Covariates(cutoff, load_T[None, -seen:, None], setpoint_T[None, -seen - 3 :, None], {"site": ["south"]})
    expected_HQ = Forecaster(spec, forecaster.network).predict(y_T[None], told)[0]
    np.testing.assert_allclose(streams.forecast(np.array([0]))[0], expected_HQ, rtol=2e-6)


def test_a_late_covariate_is_replayed_and_what_is_not_told_stays() -> None:
    forecaster = make_forecaster(EVERY_STEP[0], covariates=COVARIATES)
    late, in_order = open_streams(forecaster), open_streams(forecaster)
    nothing = np.full(4, np.nan)
    for step in range(10):
        observe_told(in_order, step, 1.0 + step, 2.0, nothing, NOT_TOLD)
        observe_told(late, step, 1.0 + step, np.nan if step == 8 else 2.0, nothing, NOT_TOLD)
    assert not np.array_equal(late.forecast(np.array([0])), in_order.forecast(np.array([0])))
    observe_told(late, 8, 9.0, 2.0, nothing, NOT_TOLD)
    np.testing.assert_allclose(late.forecast(np.array([0])), in_order.forecast(np.array([0])), rtol=1e-6)


def test_another_version_is_rebuilt_from_the_observations_that_are_kept() -> None:
    old, new = open_streams(LSTM), open_streams(make_forecaster(EVERY_STEP[0], seed=9))
    y_T = walk(40)
    feed(old, y_T)
    new.take_over(np.array([2]), old.rows[:1], old.layout, {})
    kept = old.layout.length
    expected_HQ = whole_pass(new.forecaster, y_T[-kept:])
    np.testing.assert_allclose(new.forecast(np.array([2]))[0], expected_HQ, rtol=2e-6)
    assert observe(new, 2, 38, 3.0) == Outcome.REVISED


def test_a_row_read_back_from_its_bytes_is_the_stream() -> None:
    streams, other = open_streams(LSTM), open_streams(LSTM)
    feed(streams, walk(40))
    other.rows[3] = np.frombuffer(streams.rows[0].tobytes(), dtype=other.layout.dtype)[0]
    observe(streams, 0, 40, 1.0)
    observe(other, 3, 40, 1.0)
    np.testing.assert_array_equal(other.forecast(np.array([3])), streams.forecast(np.array([0])))
