"""The published `nixtla` SDK, its base URL pointed at a service that runs."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nixtla import NixtlaClient
from nixtla.nixtla_client import ApiError

from forecasting.registry import DirectoryRegistry
from forecasting.spec import CovariatesSpec, MLPSpec, RidgeSpec
from ledger.ledger import open_ledger
from service.app import create_app
from service.settings import ServiceSettings
from tests.service.conftest import COVARIATES, build_forecaster, publish_into, serve_app, wait_until

# The SDK asks pandas for a frequency in a way pandas 3.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:A future version of pandas will return a BaseOffset")

HORIZON = 4
COLUMNS = CovariatesSpec(past=("ambient",), future=("setpoint", "holiday"))


@pytest.fixture(scope="module")
def ledger_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ledger_url: str) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("timegpt")
    registry = DirectoryRegistry(folder / "registry")
    publish = publish_into(registry, folder)
    publish(build_forecaster("pump", "h", MLPSpec(input_size=12, hidden_size=8)))
    publish(build_forecaster("valve", "15min", MLPSpec(input_size=6, hidden_size=8), covariates=COLUMNS))
    publish(build_forecaster("boiler", "30min", MLPSpec(input_size=6, hidden_size=8), covariates=COVARIATES))
    publish(build_forecaster("shop", "D", RidgeSpec(input_size=8)))
    publish(build_forecaster("mall", "D", RidgeSpec(input_size=8)))
    publish(build_forecaster("sp500", "XNYS", MLPSpec(input_size=5, hidden_size=8)))
    chosen = {
        "registry_uri": str(registry.root),
        "ledger_url": ledger_url,
        "home": folder / "home",
        "max_series": 20,
    }
    app = create_app(ServiceSettings(**chosen), registry)
    with serve_app(app) as client:
        wait_until(lambda: app.state.runtime.ledger is not None)
        yield client


@pytest.fixture(scope="module")
def nixtla(service: httpx.Client) -> NixtlaClient:
    return NixtlaClient(api_key="none-needed", base_url=str(service.base_url), max_retries=1)


def wave(length: int, level: float = 10.0) -> np.ndarray:
    """Return values that single precision holds: the SDK sends no others."""
    return np.round(level + np.sin(np.arange(length) / 3), 3).astype(np.float32).astype(float)


def frame(freq: str = "h", length: int = 40, names: str = "ab") -> pd.DataFrame:
    ds = pd.date_range("2024-01-01", periods=length, freq=freq)
    series = [pd.DataFrame({"unique_id": n, "ds": ds, "y": wave(length, 10.0 + i)}) for i, n in enumerate(names)]
    return pd.concat(series, ignore_index=True)


def ask(service: httpx.Client, sent: pd.DataFrame, model: str, **more: Any) -> pd.DataFrame:
    """Ask our own API for the same, in the SDK's words."""
    told = more.pop("told", {})
    series = [
        {"unique_id": name, "ds": [str(ds) for ds in one["ds"]], "y": one["y"].tolist(), **told.get(name, {})}
        for name, one in sent.groupby("unique_id")
    ]
    body = {"model": model, "record": False, "series": series, **more}
    answer = service.post("/v1/forecast", json=body).json()
    rows = [
        pd.DataFrame(forecast).rename(columns=lambda c: "TimeGPT" if c == "mean" else f"TimeGPT-{c}")
        for forecast in answer["forecasts"]
    ]
    return pd.concat(rows, ignore_index=True)


def agree(answer: pd.DataFrame, expected: pd.DataFrame) -> None:
    names = [name for name in answer if name.startswith("TimeGPT")]
    assert names
    np.testing.assert_allclose(answer[names], expected[names], rtol=1e-6)


def refusal(call: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value.status_code, caught.value.body["detail"]


def test_the_key_is_good(nixtla: NixtlaClient) -> None:
    assert nixtla.validate_api_key()


def test_forecasts_with_levels_are_those_of_our_own_api(nixtla: NixtlaClient, service: httpx.Client) -> None:
    sent = frame()
    answer = nixtla.forecast(sent, h=3, level=[80, 90.5])
    assert set(answer) == {"unique_id", "ds", "TimeGPT"} | {
        f"TimeGPT-{s}-{lv}" for s in ("lo", "hi") for lv in ("80", "90.5")
    }
    assert answer["ds"].iloc[0] == pd.Timestamp("2024-01-02 16:00")
    agree(answer, ask(service, sent, "pump", h=3, level=[80, 90.5]))


def test_quantiles_are_the_bounds_of_their_levels(nixtla: NixtlaClient) -> None:
    quantiles = nixtla.forecast(frame(), h=2, quantiles=[0.1, 0.5, 0.9])
    bounds = nixtla.forecast(frame(), h=2, level=[80])
    for quantile, bound in (("q-10", "lo-80"), ("q-50", None), ("q-90", "hi-80")):
        column = "TimeGPT" if bound is None else f"TimeGPT-{bound}"
        pd.testing.assert_series_equal(quantiles[f"TimeGPT-{quantile}"], bounds[column], check_names=False)


def test_a_request_in_parts_is_answered_like_a_whole_one(nixtla: NixtlaClient) -> None:
    sent = frame(names="abcd")
    parts = nixtla.forecast(sent, h=2, level=[80], num_partitions=2)
    pd.testing.assert_frame_equal(parts, nixtla.forecast(sent, h=2, level=[80]))


def test_exogenous_columns_are_the_models_in_its_order(nixtla: NixtlaClient, service: httpx.Client) -> None:
    sent = frame("15min").assign(setpoint=np.arange(80.0), holiday=0.0, ambient=np.arange(80.0)[::-1])
    ahead = pd.concat(
        [
            pd.DataFrame(
                {
                    "unique_id": name,
                    "ds": pd.date_range(sent["ds"].max(), periods=4, freq="15min")[1:],
                    "setpoint": [50.0, 60.0, 70.0 + i],
                    "holiday": 1.0,
                }
            )
            for i, name in enumerate("ab")
        ]
    )
    answer = nixtla.forecast(sent, X_df=ahead, h=3, hist_exog_list=["ambient"])
    told = {
        name: {
            "past": {"ambient": sent[sent["unique_id"] == name]["ambient"].tolist()},
            "future": {
                column: [*sent[sent["unique_id"] == name][column], *ahead[ahead["unique_id"] == name][column]]
                for column in ("setpoint", "holiday")
            },
        }
        for name in "ab"
    }
    agree(answer, ask(service, sent, "valve", h=3, told=told, level=[]))
    assert refusal(
        lambda: nixtla.forecast(sent.drop(columns="holiday"), X_df=ahead.drop(columns="holiday"), h=3)
    ) == (
        422,
        "1 exogenous columns known ahead were sent, and model 'valve' takes 2, in this order: setpoint, holiday",
    )


def test_names_and_timestamps_are_told_as_model_parameters(nixtla: NixtlaClient, service: httpx.Client) -> None:
    sent = frame("30min").replace({"unique_id": {"a": "boiler-1", "b": "boiler-2"}})
    told = {name: {"static": {"site": "north"}} for name in ("boiler-1", "boiler-2")}
    parameters = {"cutoff": "2024-01-01T19:30", "unique_id": ["boiler-1", "boiler-2"], "site": "north"}
    answer = nixtla.forecast(sent, h=4, model_parameters=parameters)
    agree(answer, ask(service, sent, "boiler", told=told, level=[]))
    status, detail = refusal(lambda: nixtla.forecast(sent, h=4))
    assert status == 422
    assert detail.startswith("model 'boiler' looks at the time of each step, which the SDK does not send")
    short = parameters | {"unique_id": ["boiler-1"]}
    assert refusal(lambda: nixtla.forecast(sent, h=4, model_parameters=short))[1] == (
        "unique_id has 1 entries, and this request 2 series: they cannot be told part by part"
    )
    unknown = parameters | {"colour": "red"}
    assert (
        "static 'colour', which model 'boiler' does not take"
        in refusal(lambda: nixtla.forecast(sent, h=4, model_parameters=unknown))[1]
    )


def test_only_forecasts_with_names_and_timestamps_are_kept(nixtla: NixtlaClient, ledger_url: str) -> None:
    nixtla.forecast(frame(), h=2)
    nixtla.cross_validation(frame(), h=2)
    parameters = {"cutoff": "2024-01-02T15:00", "unique_id": ["kept-1", "kept-2"]}
    nixtla.forecast(frame(), h=2, model_parameters=parameters)
    with closing(open_ledger(ledger_url)) as ledger:
        wait_until(lambda: bool(ledger.forecasts.of_series("pump", "kept-2")))
        kept = [one for one in ledger.forecasts.select() if one.model == "pump"]
    assert [(one.unique_id, str(one.cutoff)[:16]) for one in kept] == [
        ("kept-1", "2024-01-02T15:00"),
        ("kept-2", "2024-01-02T15:00"),
    ]


def test_windows_of_the_past_are_forecasts_of_what_was_known(nixtla: NixtlaClient, service: httpx.Client) -> None:
    sent = frame()
    answer = nixtla.cross_validation(sent, h=2, n_windows=3, step_size=3, level=[80])
    cutoffs = list(pd.date_range("2024-01-02 07:00", periods=3, freq="3h"))
    assert answer.groupby("unique_id")["cutoff"].unique().map(list).tolist() == [cutoffs, cutoffs]
    for cutoff, window in answer.groupby("cutoff"):
        agree(window, ask(service, sent[sent["ds"] <= cutoff], "pump", h=2, level=[80]))
        observed = sent.merge(window, on=["unique_id", "ds"])
        assert (observed["y_x"] == observed["y_y"]).all()


def test_exogenous_columns_reach_the_windows_of_the_past(nixtla: NixtlaClient) -> None:
    sent = frame("15min").assign(setpoint=np.arange(80.0), holiday=0.0, ambient=1.0)
    changed = sent.assign(setpoint=sent["setpoint"].where(sent["ds"] < sent["ds"].max(), 1e4))
    windows = [
        nixtla.cross_validation(one, h=2, n_windows=2, hist_exog_list=["ambient"]) for one in (sent, changed)
    ]
    differs = windows[0]["TimeGPT"] != windows[1]["TimeGPT"]
    assert set(windows[0]["cutoff"][differs]) == {windows[0]["cutoff"].max()}


def test_the_history_comes_with_a_forecast(nixtla: NixtlaClient) -> None:
    answer = nixtla.forecast(frame(length=60), h=2, add_history=True, level=[80])
    assert answer.groupby("unique_id")["ds"].is_monotonic_increasing.all()
    assert answer["ds"].max() == pd.Timestamp("2024-01-03 13:00")
    assert len(answer) > 2 * (2 + HORIZON)
    assert not answer.isna().any(axis=None)


def test_a_value_far_outside_its_interval_is_an_anomaly(nixtla: NixtlaClient) -> None:
    sent = frame(length=42)
    sent.loc[35, "y"] = 99.0
    found = nixtla.detect_anomalies(sent, level=95)
    assert found.groupby("unique_id").size().tolist() == [30, 30]  # the first 12 are the model's input
    assert (found["anomaly"] == ~found["y"].between(found["TimeGPT-lo-95"], found["TimeGPT-hi-95"])).all()
    (spike,) = found[found["y"] > 90].to_dict("records")
    assert (spike["unique_id"], spike["ds"], spike["anomaly"]) == ("a", sent.loc[35, "ds"], True)


def test_what_the_model_was_not_trained_for_is_refused(nixtla: NixtlaClient) -> None:
    sent = frame()
    assert refusal(lambda: nixtla.detect_anomalies(sent)) == (
        422,
        "level 99 is outside what this model was trained for: above 0 and up to 95",
    )
    assert refusal(lambda: nixtla.forecast(sent, h=5)) == (422, "h is 5; model 'pump' forecasts at most 4 steps")
    assert (
        "these windows need 14, 12 of them (input_size) before the first"
        in refusal(lambda: nixtla.cross_validation(frame(length=13), h=2))[1]
    )
    assert (
        "at most 20: set num_partitions"
        in refusal(lambda: nixtla.forecast(frame(names="abcdefghijklmnopqrstu"), h=1))[1]
    )


def test_a_short_history_is_answered_by_the_seasonal_naive(nixtla: NixtlaClient) -> None:
    sent = frame(length=11)
    ahead = nixtla.forecast(sent, h=1)
    assert ahead["TimeGPT"].tolist() == pytest.approx(sent.groupby("unique_id").y.last().tolist(), rel=1e-6)


def test_what_is_not_supported_is_refused_and_never_ignored(nixtla: NixtlaClient) -> None:
    sent = frame()
    asked: list[dict[str, Any]] = [
        {"finetune_steps": 5},
        {"finetuned_model_id": "mine"},
        {"multivariate": True},
    ]
    for option in asked:
        status, detail = refusal(lambda option=option: nixtla.forecast(sent, h=2, **option))
        assert status == 422
        assert "is not supported" in detail


def test_a_model_is_found_by_its_steps_or_by_its_name(nixtla: NixtlaClient, service: httpx.Client) -> None:
    days = frame("D")
    status, detail = refusal(lambda: nixtla.forecast(days, h=2))
    assert status == 422
    assert detail.startswith("2 models are on the steps of freq 'D': name one of them as model=, or set HINDCAST_")
    assert "mall (D), pump (h), shop (D)" in detail
    agree(nixtla.forecast(days, h=2, model="shop"), ask(service, days, "shop", h=2, level=[]))
    assert refusal(lambda: nixtla.forecast(days, h=2, model="pump")) == (
        422,
        "freq is 'D'; model 'pump' forecasts steps of 'h'",
    )
    assert refusal(lambda: nixtla.forecast(days, h=2, model="nobody"))[0] == 404


def test_business_days_are_the_sessions_of_an_exchange(nixtla: NixtlaClient) -> None:
    pd.testing.assert_frame_equal(
        nixtla.forecast(frame("B"), h=2), nixtla.forecast(frame("B"), h=2, model="sp500")
    )


def test_spellings_of_a_frequency_are_one(service: httpx.Client) -> None:
    for freq in ("h", "H", "1h", "60min"):
        answer = service.get("/model_params", params={"freq": freq})
        assert answer.json() == {"detail": {"input_size": 12, "horizon": HORIZON}}, answer.text
    for freq in ("", "no", "7h", "bh"):
        assert service.get("/model_params", params={"freq": freq}).status_code == 422


def test_a_model_can_be_set_for_clients_that_name_none(tmp_path: Path) -> None:
    registry = DirectoryRegistry(tmp_path / "registry")
    for name in ("north", "south"):
        publish_into(registry, tmp_path)(build_forecaster(name, "h"))
    chosen = {"registry_uri": str(registry.root), "ledger_url": "off", "default_model": "south"}
    with serve_app(create_app(ServiceSettings(**chosen), registry)) as client:
        body = {"series": {"y": wave(12).tolist(), "sizes": [12]}, "freq": "h", "h": 1}
        assert client.post("/v2/forecast", json=body).json()["model"] == "south"


def test_a_large_request_arrives_compressed(nixtla: NixtlaClient) -> None:
    sent = frame("15min", length=4000, names="abcdefghijklmnopqrst").assign(setpoint=1.0, holiday=0.0)
    ahead = frame("15min", length=4004, names="abcdefghijklmnopqrst").assign(setpoint=2.0, holiday=1.0)
    # With columns besides the values the SDK sends the whole history.
    answer = nixtla.forecast(sent, X_df=ahead[ahead["ds"] > sent["ds"].max()].drop(columns="y"), h=4)
    assert len(answer) == 20 * 4


NUMBERS = st.one_of(st.integers(-(10**400), 10**400), st.floats(width=64), st.none(), st.text(max_size=3))
LISTS = st.lists(NUMBERS, max_size=40)
SIZES = st.lists(st.one_of(st.integers(-3, 30), st.just(10**30), NUMBERS), max_size=4)
COLUMN_LISTS = st.one_of(st.none(), st.lists(LISTS, max_size=3), NUMBERS)
COUNTS = st.one_of(st.integers(-2, 6), st.just(10**25), NUMBERS)
PARAMETERS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "cutoff": st.sampled_from(
                ["2024-01-01", "1800-01-01", "2199-12-31T23:59:59.999999Z", "x", ["2024-01-01"]]
            ),
            "unique_id": st.lists(st.text(max_size=3), max_size=3),
            "site": st.one_of(st.text(max_size=3), NUMBERS),
        },
    ),
)


@st.composite
def hostile(draw: st.DrawFn) -> dict[str, Any]:
    well_formed = draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)) if well_formed else draw(SIZES)
    y = (
        draw(st.lists(st.floats(-1e300, 1e300), min_size=sum(sizes), max_size=sum(sizes)))
        if well_formed
        else draw(LISTS)
    )
    return {
        "series": {"y": y, "sizes": sizes, "X": draw(COLUMN_LISTS), "X_future": draw(COLUMN_LISTS)},
        "model": draw(st.sampled_from(["pump", "valve", "boiler", "sp500", "timegpt-1", ""])),
        "freq": draw(st.sampled_from(["h", "15min", "30min", "B", "QE", "\x00", "0D"])),
        "level": draw(st.one_of(COUNTS, st.lists(COUNTS, max_size=4))),
        "h": draw(COUNTS),
        "n_windows": draw(COUNTS),
        "step_size": draw(COUNTS),
        "hist_exog": draw(st.one_of(st.none(), st.lists(COUNTS, max_size=3))),
        "model_parameters": draw(PARAMETERS),
    }


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(hostile(), st.sampled_from(["forecast", "cross_validation", "anomaly_detection"]))
def test_no_request_breaks_the_service(service: httpx.Client, body: dict[str, Any], what: str) -> None:
    answer = service.post(f"/v2/{what}", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404, 422), answer.text
