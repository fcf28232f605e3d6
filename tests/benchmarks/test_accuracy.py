"""The accuracy protocols on files of their shape: parity rows worked out by hand, and whole quick runs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import accuracy, ett, m4
from forecasting.forecaster import Forecaster
from forecasting.spec import NaiveSpec
from training.baselines import fit_baseline


@pytest.fixture
def sensors(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    steps = np.arange(400)
    cycle = np.sin(2 * np.pi * steps / 24)
    frame = pd.DataFrame(
        {
            "date": pd.date_range("2024-01-01", periods=400, freq="h"),
            "a": 5 + 2 * cycle + 0.1 * rng.normal(size=400),
            "b": 100 - 30 * cycle + rng.normal(size=400),
        }
    )
    frame.to_csv(tmp_path / "sensors.csv", index=False)
    return tmp_path / "sensors.csv"


def test_every_test_window_of_every_channel_is_scored(sensors: Path) -> None:
    data = ett.load(sensors, (240, 320, 400))
    task = ett.make_task(data, 48, 12, 24)
    spec = task.spec(NaiveSpec(input_size=2))
    forecaster = Forecaster(spec, fit_baseline(spec, task.train, task.validation))
    mse, mae = ett.score(task, lambda y_BL, _: forecaster.predict(y_BL))
    frame = pd.read_csv(sensors).iloc[:, 1:]
    standard = ((frame - frame[:240].mean()) / frame[:240].std(ddof=0)).to_numpy()
    errors = np.stack([standard[t : t + 12] - standard[t - 1] for t in range(320, 400 - 12 + 1)])
    assert mse == pytest.approx(np.square(errors).mean(), rel=1e-5)
    assert mae == pytest.approx(np.abs(errors).mean(), rel=1e-5)


def test_nothing_of_the_test_rows_is_learnt_from(sensors: Path) -> None:
    frame = pd.read_csv(sensors)
    frame.loc[320:, ["a", "b"]] = 1e6
    frame.to_csv(sensors.with_name("poisoned.csv"), index=False)
    one, other = (
        ett.make_task(ett.load(path, (240, 320, 400)), 48, 12, 24)
        for path in (sensors, sensors.with_name("poisoned.csv"))
    )
    assert (one.train.data.x_NT == other.train.data.x_NT).all()
    assert (one.train.data.unit_N1 == other.train.data.unit_N1).all()


def test_the_quick_run_writes_baselines_and_network(sensors: Path, tmp_path: Path) -> None:
    out = tmp_path / "ett.json"
    sizes = ["--borders", "240,320,400", "--input-size", "48", "--horizons", "12"]
    accuracy.main(["ett", "--csv", str(sensors), *sizes, "--quick", "--threads", "1", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    found = {row["system"]: row["value"] for row in rows if row["metric"] == "mse" and row["case"] == "L=48, H=12"}
    assert set(found) == {"repeat the last value", "seasonal naive, 24", "ridge", "hindcast segment_lstm"}
    assert found["hindcast segment_lstm"] < found["repeat the last value"]


def series_files(folder: Path, season: int = 1) -> tuple[Path, Path]:
    rng = np.random.default_rng(1)
    train, test = folder / "train.csv", folder / "test.csv"
    with train.open("w") as history, test.open("w") as future:
        history.write("id," + ",".join(f"V{i}" for i in range(60)) + "\n")
        future.write("id," + ",".join(f"V{i}" for i in range(4)) + "\n")
        for n, length in enumerate((60, 45, 30, 60)):
            y = (
                100
                + rng.normal(size=length + 4).cumsum()
                + 10 * np.sin(2 * np.pi * np.arange(length + 4) / season)
            )
            history.write(f"W{n}," + ",".join(map(str, y[:length])) + "," * (60 - length) + "\n")
            future.write(f"W{n}," + ",".join(map(str, y[length:])) + "\n")
    return train, test


def test_m4_series_are_aligned_at_their_ends_and_the_naive_has_an_owa_of_one(tmp_path: Path) -> None:
    data = m4.load(*series_files(tmp_path), 1)
    assert np.isfinite(data.y_NT[:, -1]).all()
    assert np.isfinite(data.y_NT).sum(axis=1).tolist() == [60, 45, 30, 60]
    assert m4.score(data, m4.repeat_last(data))["OWA"] == pytest.approx(1.0)


def test_naive2_takes_a_season_off_where_there_is_one(tmp_path: Path) -> None:
    data = m4.load(*series_files(tmp_path, season=4), 4)
    last, adjusted = (m4._errors(data, forecast)[0] for forecast in (m4.repeat_last(data), m4.naive2(data)))
    assert adjusted < 0.5 * last


def test_the_quick_run_on_m4_beats_nobody_but_runs(tmp_path: Path) -> None:
    train, test = series_files(tmp_path)
    out = tmp_path / "m4.json"
    accuracy.main(
        ["m4", "--train", str(train), "--test", str(test), "--quick", "--threads", "1", "--out", str(out)]
    )
    systems = {row["system"] for row in json.loads(out.read_text())["rows"]}
    assert systems == {"naive", "Naive2", "hindcast segment_gru"}


def test_files_that_do_not_fit_are_refused(tmp_path: Path, sensors: Path) -> None:
    with pytest.raises(SystemExit, match="400 rows, and the last border is 500"):
        ett.load(sensors, (240, 320, 500))
    train, test = series_files(tmp_path)
    test.write_text(test.read_text().replace("W3", "W9"))
    with pytest.raises(SystemExit, match="do not have the same series"):
        m4.load(train, test, 1)
