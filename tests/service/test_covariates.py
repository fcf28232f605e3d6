"""What is told besides values reaches the forecaster at its own steps, or is refused, or is said to be missing."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecasting.calendar import format_timestamp, parse_freq
from forecasting.covariates import Covariates
from forecasting.forecaster import Forecaster
from forecasting.panel import Columns, build_panel
from forecasting.spec import CovariatesSpec, EnsembleSpec, MLPSpec, NetworkSpec, SegmentSpec, StaticSpec
from service.histories import Prepared, prepare
from service.model_slot import LoadedModel
from service.parsing import parse_request
from service.problems import ProblemError
from service.settings import ServiceSettings
from tests.service.conftest import COVARIATES, Publish, Serve, build_forecaster

NAN = float("nan")
SIZE, HORIZON = 3, 2
DAYS = [f"2024-01-0{day}" for day in range(1, 10)]
Y = [1.0, 2.0, 3.0, 4.0, 5.0]
TOLD: dict[str, Any] = {
    "past": {"ambient": [10, 20, 30, 40, 50], "load": [1, 1, 2, 3, 5]},
    "future": {"setpoint": [1, 2, 3, 4, 5, 6, 7]},
    "static": {"site": "north"},
}


def loaded(
    covariates: CovariatesSpec = COVARIATES, freq: str = "D", network: NetworkSpec | None = None
) -> LoadedModel:
    network = network or MLPSpec(input_size=SIZE, hidden_size=4)
    forecaster = build_forecaster("boiler", freq, network, horizon=HORIZON, covariates=covariates)
    return LoadedModel(
        "boiler", "1", "champion", "d", datetime.now(UTC), forecaster, parse_freq(freq), "plant", "y"
    )


BOILER, PUMP = loaded(), loaded(CovariatesSpec())


def ask(*series: dict[str, Any], h: int | None = None, model: LoadedModel = BOILER, **limits: int) -> Prepared:
    """Prepare a request for histories that default to five values of `boiler-1`, told everything."""
    named = [{"unique_id": "boiler-1", "start": DAYS[0], "y": Y, **TOLD, **one} for one in series]
    kept = [{key: value for key, value in one.items() if value is not None} for one in named]
    chosen = ServiceSettings(**limits)
    request = parse_request(json.dumps({"model": "boiler", "h": h, "series": kept}).encode(), chosen)
    return prepare(request, model, chosen)


def told(prepared: Prepared) -> Covariates:
    assert prepared.covariates is not None
    return prepared.covariates


def reason(**series: Any) -> str | None:
    return ask(series).windows[0].reason


def refused(*, model: LoadedModel = BOILER, h: int | None = None, **series: Any) -> tuple[str, str]:
    """Return path and detail of the one problem with a series."""
    with pytest.raises(ProblemError) as caught:
        ask(series, model=model, h=h, max_length=8)
    (error,) = caught.value.errors
    assert error.unique_id == "boiler-1"
    return error.path, error.detail


def test_columns_come_in_the_order_of_the_model_and_end_at_their_own_steps() -> None:
    past = dict(reversed(TOLD["past"].items()))
    known = told(ask({"past": past}, {"unique_id": "boiler-2", "start": DAYS[2]}))

    assert known.cutoff_B.tolist() == [pd.Timestamp("2024-01-05"), pd.Timestamp("2024-01-07")]
    assert known.cutoff_B.dtype == "datetime64[us]"
    np.testing.assert_array_equal(known.past_BLP, [[[30, 2], [40, 3], [50, 5]]] * 2)
    np.testing.assert_array_equal(known.future_BTF, [[[3], [4], [5], [6], [7]]] * 2)
    assert known.static == {"unique_id": ("boiler-1", "boiler-2"), "site": ("north", "north")}


def test_a_silent_end_moves_the_cutoff_and_leaves_what_is_known_ahead_at_its_steps() -> None:
    known = told(ask({"y": [1.0, 2.0, 3.0, 4.0, None]}))

    assert known.cutoff_B[0] == pd.Timestamp("2024-01-04")
    np.testing.assert_array_equal(known.past_BLP[0], [[20, 1], [30, 2], [40, 3]])  # nothing after the cutoff
    np.testing.assert_array_equal(known.future_BTF[0, :, 0], [2, 3, 4, 5, 6])


def test_what_is_sent_beyond_the_last_step_changes_nothing() -> None:
    known = told(ask({"future": {"setpoint": [1, 2, 3, 4, 5, 6, 7, 8]}}))
    np.testing.assert_array_equal(known.future_BTF[0, :, 0], [3, 4, 5, 6, 7])


def test_columns_follow_their_timestamps_and_go_on_after_the_latest() -> None:
    order = [3, 0, 4, 2]  # the second of January is left out
    known = told(
        ask(
            {
                "start": None,
                "ds": [DAYS[i] for i in order],
                "y": [4.0, 1.0, None, 3.0],
                "past": {"ambient": [40, 10, 50, 30], "load": [3, 1, 5, 2]},
                "future": {"setpoint": [4, 1, 5, 3, 6, 7]},
            }
        )
    )
    assert known.cutoff_B[0] == pd.Timestamp("2024-01-04")
    np.testing.assert_array_equal(known.past_BLP[0, :, 0], [NAN, 30, 40])
    np.testing.assert_array_equal(known.future_BTF[0, :, 0], [NAN, 3, 4, 5, 6])


columns = st.lists(st.none() | st.integers(-99, 99), min_size=9, max_size=9)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["h", "D", "W-WED", "MS", "B", "XNYS"]),
    st.lists(st.none() | st.floats(1, 9), min_size=7, max_size=7).filter(
        lambda y: y[0] is not None and any(v is not None for v in y[2:])
    ),
    columns,
    columns,
    st.randoms(),
)
def test_start_and_ds_and_the_panel_tell_the_same(
    freq: str, y: list[float | None], past: list[int | None], future: list[int | None], random: Any
) -> None:
    covariates = CovariatesSpec(past=("ambient",), future=("setpoint",))
    calendar = parse_freq(freq)
    ds = calendar.range(calendar.first_after(pd.Timestamp("2024-01-02")), 9)
    texts = [format_timestamp(stamp, calendar) for stamp in ds]
    order = list(range(7))
    random.shuffle(order)
    shuffled = [*order, 7, 8]
    by_start = {"start": texts[0], "y": y, "past": {"ambient": past[:7]}, "future": {"setpoint": future}}
    by_ds = {
        "start": None,
        "ds": [texts[i] for i in order],
        "y": [y[i] for i in order],
        "past": {"ambient": [past[i] for i in order]},
        "future": {"setpoint": [future[i] for i in shuffled]},
    }
    found = ask(
        {"static": None, **by_start},
        {"static": None, "unique_id": "boiler-2", **by_ds},
        model=loaded(covariates, freq),
    )

    frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": [*y, None, None], "ambient": past, "setpoint": future})
    frame = frame.astype({"y": float, "ambient": float, "setpoint": float})
    panel = build_panel(frame, freq, columns=Columns(past=("ambient",), future=("setpoint",)))
    _, last = panel.spans()
    expected = panel.covariates_at(np.array([0]), last, covariates, SIZE, HORIZON)
    for row in range(2):
        assert told(found).cutoff_B[row] == expected.cutoff_B[0]
        np.testing.assert_array_equal(told(found).past_BLP[row], expected.past_BLP[0])
        np.testing.assert_array_equal(told(found).future_BTF[row], expected.future_BTF[0])


def test_a_static_may_say_that_a_series_is_another_one() -> None:
    """As in what-if questions: several histories, or plans, of one series of the training."""
    prepared = ask({"unique_id": "plan b", "static": {"unique_id": "boiler-2", "site": "south"}})
    assert told(prepared).static["unique_id"] == ("boiler-2",)
    assert prepared.windows[0].reason is None
    unknown = reason(unique_id="plan b", static={"unique_id": "boiler-9", "site": "south"})
    assert unknown == "series 'boiler-9' was not in training: answered as an unknown one"


def test_a_model_without_covariates_is_told_nothing() -> None:
    prepared = ask({"past": None, "future": None, "static": None}, model=PUMP)
    assert prepared.covariates is None
    assert prepared.windows[0].told is None


def test_a_model_with_a_cycle_is_told_the_time_alone() -> None:
    cycle = SegmentSpec(input_size=SIZE, segment_size=3, hidden_size=4, cycle=7)
    prepared = ask({"past": None, "future": None, "static": None}, model=loaded(CovariatesSpec(), network=cycle))
    assert told(prepared).cutoff_B[0] == pd.Timestamp("2024-01-05")
    assert prepared.windows[0].reason is None
    forecast = prepared.model.forecaster.predict(prepared.y_BL, prepared.covariates)
    assert np.isfinite(forecast).all()


@pytest.mark.parametrize(
    ("wrong", "path", "detail"),
    [
        (
            {"future": {"temp": [1] * 7}},
            "future.temp",
            "series 'boiler-1' comes with future 'temp', which model 'boiler' does not take; it takes "
            "past 'ambient', past 'load', future 'setpoint', static 'unique_id', static 'site'",
        ),
        ({"past": {"setpoint": [1] * 5}}, "past.setpoint", "past 'setpoint', which model 'boiler' does not take"),
        ({"static": {"colour": "red"}}, "static.colour", "static 'colour', which model 'boiler' does not take"),
        (
            {"past": {"load": [1] * 4}},
            "past.load",
            "past 'load' of series 'boiler-1' has 4 values and y has 5: past columns are as long as y",
        ),
        ({"past": {"load": [1] * 6}}, "past.load", "has 6 values and y has 5"),
        (
            {"future": {"setpoint": [1] * 4}},
            "future.setpoint",
            "future 'setpoint' of series 'boiler-1' has 4 values and y has 5: "
            "future columns are as long as y, and go on over the steps ahead",
        ),
        ({"future": {"setpoint": [1] * 11}}, "future.setpoint", "has 11 values of at most 10"),
        ({"past": {"load": [1, "2", 3, 4, 5]}}, "past.load[1]", "got the string '2'"),
        (
            {"past": {"load": [1, 2, 1e39, 4, 5]}},
            "past.load[2]",
            "less than or equal to 1000000000000000000000000000000, got 1e+39",
        ),
        ({"past": {"load": []}}, "past.load", "at least 1 item"),
        ({"past": {"load": None}}, "past.load", "got null"),
        ({"past": [1]}, "past", "got a list"),
        ({"static": {"site": 7}}, "static.site", "got 7"),
        ({"static": {"site": "n" * 257}}, "static.site", "at most 256 characters"),
        ({"past": {str(i): [1] for i in range(257)}}, "past", "257 columns; at most 256"),
        ({"static": dict.fromkeys(map(str, range(257)), "a")}, "static", "257 columns; at most 256"),
    ],
)
def test_what_a_model_cannot_take_is_refused_by_name(wrong: dict[str, Any], path: str, detail: str) -> None:
    found_path, found_detail = refused(**wrong)
    assert found_path == f"series[0].{path}"
    assert detail in found_detail


def test_infinity_is_refused() -> None:
    body = (
        '{"model": "boiler", "series": [{"unique_id": "a", "start": "2024-01-01", "y": [1], "past": {"x": [%s]}}]}'
    )
    for number in ("NaN", "Infinity"):
        with pytest.raises(ProblemError, match="invalid-request") as caught:
            parse_request((body % number).encode(), ServiceSettings())
        assert [error.path for error in caught.value.errors] == ["series[0].past.x[0]"]


def test_a_model_without_covariates_takes_none() -> None:
    _, detail = refused(model=PUMP, past={"temp": [1] * 5}, future=None, static=None)
    assert detail.endswith("past 'temp', which model 'boiler' does not take; it takes none")
    path, _ = refused(model=PUMP, past=None, future=None, static={"unique_id": "boiler-1"})
    assert path == "series[0].static.unique_id"


def test_no_list_of_errors_grows_with_the_columns() -> None:
    with pytest.raises(ProblemError) as caught:
        ask({"past": {str(i): ["x"] for i in range(256)}})
    assert len(caught.value.errors) == 16


def test_a_contradiction_at_one_timestamp_is_refused() -> None:
    days = {"start": None, "ds": [*DAYS[:5], DAYS[3]], "y": [*Y, 4.0], "future": None}
    path, detail = refused(**days, past={"load": [1, 1, 2, 3, 5, 9]})
    assert (path, detail) == (
        "series[0].past.load[5]",
        "series 'boiler-1' has two different values of past.load at 2024-01-04",
    )
    agreeing = {"load": [1, 1, 2, 3, 5, None], "ambient": [1, 1, 2, 3, 5, 3]}
    known = told(ask({**days, "past": agreeing}))
    np.testing.assert_array_equal(known.past_BLP[0, :, 1], [2, 3, 5])


def test_a_horizon_that_leaves_the_calendar_is_refused_whatever_is_asked_for() -> None:
    """The network is told of its whole horizon: the calendar must reach that far."""
    last = parse_freq("XNYS").ending(pd.Timestamp("2049-12-31"), SIZE + 1)
    days = [format_timestamp(stamp, parse_freq("XNYS")) for stamp in last[:-1]]
    calendar = {"model": loaded(CovariatesSpec(calendar=("weekday",)), "XNYS")}
    nothing = {"past": None, "future": None, "static": None, "start": None, "ds": days, "y": Y[:SIZE]}
    path, detail = refused(**calendar, **nothing, h=1)
    assert path == "series[0].ds"
    assert "are known until 2049-12-31 only" in detail


def test_what_a_request_may_cost_counts_its_covariates() -> None:
    wide = loaded(CovariatesSpec(past=tuple("abcdefghij"), future=tuple("klmnopqrst"), calendar=("hour",)))
    nothing = {"past": None, "future": None, "static": None}
    numbers = 10 * SIZE + (10 + 2) * (SIZE + HORIZON)
    assert ask(nothing, model=wide, max_values=numbers).windows
    with pytest.raises(ProblemError) as caught:
        ask(nothing, model=wide, max_values=numbers - 1)
    assert "would take 90 numbers; at most 89" in caught.value.detail


def test_all_that_was_there_in_training_leaves_nothing_to_say() -> None:
    assert reason() is None
    gaps = {"past": {**TOLD["past"], "load": [1, 1, None, 3, None]}}
    assert reason(**gaps) is None, "some missing values are everyday"


@pytest.mark.parametrize(
    ("less", "expected"),
    [
        ({"past": {"ambient": Y}}, "past 'load' is missing"),
        ({"past": {**TOLD["past"], "load": [1, 1, None, None, None]}}, "past 'load' is missing"),
        ({"past": None}, "past 'ambient' is missing; past 'load' is missing"),
        ({"future": None}, "future 'setpoint' is missing"),
        ({"future": {"setpoint": [1, 2, None, None, None]}}, "future 'setpoint' is missing"),
        ({"future": {"setpoint": Y}}, "future 'setpoint' is missing in 2 of 2 steps ahead"),
        ({"future": {"setpoint": [*Y, None, 7]}}, "future 'setpoint' is missing in 1 of 2 steps ahead"),
        (
            {"future": {"setpoint": [1, 2, None, None, None, 6, 7]}},
            "future 'setpoint' is missing in the whole window",
        ),
        ({"static": None}, "static 'site' is missing: answered as an unknown one"),
        ({"static": {"site": " "}}, "static 'site' is missing: answered as an unknown one"),
        ({"static": {"site": "west"}}, "site 'west' was not in training: answered as an unknown one"),
        ({"unique_id": "boiler-9"}, "series 'boiler-9' was not in training: answered as an unknown one"),
        (
            {"unique_id": "boiler-9", "static": {"site": "west"}, "future": {"setpoint": [*Y, 6]}},
            "future 'setpoint' is missing in 1 of 2 steps ahead; "
            "series 'boiler-9' was not in training: answered as an unknown one; "
            "site 'west' was not in training: answered as an unknown one",
        ),
    ],
)
def test_whatever_a_forecast_goes_without_is_named(less: dict[str, Any], expected: str) -> None:
    assert reason(**less) == expected


def test_only_the_steps_that_were_asked_for_must_be_known() -> None:
    one_ahead = {"future": {"setpoint": [*Y, 6]}}
    assert ask(one_ahead, h=1).windows[0].reason is None
    assert ask(one_ahead, h=2).windows[0].reason is not None


def test_reasons_of_the_transform_and_of_the_covariates_are_joined() -> None:
    forecaster = build_forecaster(
        "boiler", "D", MLPSpec(input_size=SIZE), transform="log_return", covariates=COVARIATES
    )
    model = LoadedModel(
        "boiler", "1", "champion", "d", datetime.now(UTC), forecaster, parse_freq("D"), "plant", "y"
    )
    prepared = ask({"y": [1.0, 2.0, -3.0, 4.0, 5.0], "static": {"site": "west"}, "future": None}, model=model, h=2)
    assert prepared.windows[0].reason == (
        "1 of the last 3 values are not above zero; log_return takes them as missing; "
        "future 'setpoint' is missing; site 'west' was not in training: answered as an unknown one"
    )


def test_a_long_list_of_what_is_missing_is_cut() -> None:
    many = CovariatesSpec(past=tuple(f"p{i}" for i in range(30)))
    prepared = ask({"past": None, "future": None, "static": None}, model=loaded(many))
    text = prepared.windows[0].reason
    assert text is not None
    assert text.startswith("past 'p0' is missing; past 'p1' is missing; ")
    assert text.endswith("past 'p9' is missing; and 20 more")


HOURS = {"start": "2024-01-01T00:00:00Z", "y": [20, 21, 22, 21, 20, 19]}
ALL_HOURS: dict[str, Any] = {
    "past": {"ambient": [1, 2, 3, 2, 1, 0], "load": [5, 5, 5, 6, 6, 6]},
    "future": {"setpoint": [20, 20, 20, 22, 22, 22, 22, 20, 20, 20]},
    "static": {"site": "south"},
}


def post(client: httpx.Client, *series: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/v1/forecast", json={"model": "boiler", "series": list(series)})
    assert answer.status_code == 200, answer.text
    forecasts: list[dict[str, Any]] = answer.json()["forecasts"]
    return forecasts


def test_an_answer_says_how_much_it_was_told(client: httpx.Client, forecasters: dict[str, Forecaster]) -> None:
    whole, less = post(
        client,
        {"unique_id": "boiler-2", **HOURS, **ALL_HOURS},
        {"unique_id": "boiler-3", **HOURS, "static": {"site": "south"}},
    )
    assert (whole["status"], whole["reason"]) == ("ok", None)
    assert less["status"] == "degraded"
    assert less["reason"] == (
        "past 'ambient' is missing; past 'load' is missing; future 'setpoint' is missing; "
        "series 'boiler-3' was not in training: answered as an unknown one"
    )
    covariates = Covariates(
        pd.DatetimeIndex(["2024-01-01T05:00"] * 2).as_unit("us"),
        np.array([list(zip(*ALL_HOURS["past"].values(), strict=True)), [(NAN, NAN)] * 6]),
        np.array([ALL_HOURS["future"]["setpoint"], [NAN] * 10])[..., None],
        {"unique_id": ("boiler-2", "boiler-3"), "site": ("south", "south")},
    )
    expected = forecasters["boiler"].predict(np.array([HOURS["y"]] * 2, dtype=float), covariates)
    middle = list(forecasters["boiler"].spec.quantiles).index(0.1)
    for row, forecast in enumerate((whole, less)):
        np.testing.assert_allclose(forecast["lo-80"], expected[row, :, middle], rtol=1e-6)
    assert whole["mean"] != less["mean"]


def test_everything_told_makes_a_difference(client: httpx.Client) -> None:
    series = {"unique_id": "boiler-1", **HOURS, **ALL_HOURS}
    other = [
        {**series, "unique_id": "load", "past": {**ALL_HOURS["past"], "load": [9] * 6}},
        {
            **series,
            "unique_id": "plan",
            "future": {"setpoint": [*ALL_HOURS["future"]["setpoint"][:6], 9, 9, 9, 9]},
        },
        {**series, "unique_id": "site", "static": {"site": "north"}},
        {**series, "unique_id": "time", "start": "2024-01-01T01:00:00Z"},
    ]
    same = [{**one, "static": {"unique_id": "boiler-1", **one["static"]}} for one in other]
    means = [forecast["mean"] for forecast in post(client, series, *same)]
    assert len({tuple(mean) for mean in means}) == 5


def test_a_series_that_cannot_be_answered_refuses_the_request_by_name(client: httpx.Client) -> None:
    good, bad = {"unique_id": "a", **HOURS}, {"unique_id": "b", **HOURS, "future": {"temp": [1] * 10}}
    answer = client.post("/v1/forecast", json={"model": "boiler", "series": [good, bad]})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["path"], error["unique_id"]) == ("series[1].future.temp", "b")


numbers = st.none() | st.floats(-1e30, 1e30) | st.integers(-5, 5)
names = st.text(max_size=5).filter(lambda text: not re.search(r"[\x00-\x1f\x7f]", text))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(numbers, min_size=6, max_size=6),
    st.lists(numbers, min_size=6, max_size=12),
    st.dictionaries(st.sampled_from(["unique_id", "site"]), names),
    st.sampled_from(["1800-01-01", "2199-12-31T23:00", "2024-03-31T01:00+01:00"]),
)
def test_whatever_fits_is_answered(
    client: httpx.Client, past: list[Any], future: list[Any], static: dict[str, str], start: str
) -> None:
    told = {"past": {"load": past}, "future": {"setpoint": future}, "static": static}
    (forecast,) = post(client, {"unique_id": "a", **HOURS, **told, "start": start})
    assert forecast["status"] == "degraded"
    finite = [value is not None for value in forecast["mean"]]
    assert all(finite) or (not any(finite) and "not finite" in forecast["reason"])


def test_a_model_says_what_it_takes(client: httpx.Client) -> None:
    boiler, pump, co2 = (client.get(f"/v1/models/{name}").json() for name in ("boiler", "pump", "co2"))
    assert boiler["covariates"] == {
        "past": ["ambient", "load"],
        "prices": [],
        "future": ["setpoint"],
        "static": {"unique_id": 2, "site": 2},
        "calendar": ["hour", "weekday", "holiday"],
        "country": "DE",
    }
    assert pump["covariates"] == {
        "past": [],
        "prices": [],
        "future": [],
        "static": {},
        "calendar": [],
        "country": None,
    }
    assert (boiler["head"], co2["head"]) == ("quantile", None)


def test_an_ensemble_of_segment_networks_is_served(publish: Publish, serve: Serve) -> None:
    member = SegmentSpec(
        kind="segment_gru", input_size=6, segment_size=3, hidden_size=4, cycle=24, head="student_t"
    )
    network = EnsembleSpec(n_members=2, member=member)
    covariates = CovariatesSpec(static=(StaticSpec(name="site", categories=("north",)),))
    publish(build_forecaster("boiler", "h", network, covariates=covariates))
    with serve() as client:
        model = client.get("/v1/models/boiler").json()
        assert (model["kind"], model["head"]) == ("ensemble", "student_t")
        (forecast,) = post(client, {"unique_id": "a", **HOURS, "static": {"site": "north"}})
    assert forecast["status"] == "ok"
