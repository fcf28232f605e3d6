"""Walk-forward through the pipeline: what is fitted in a fold, what is asked, published and gone on with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from forecasting.errors import TrainingError
from forecasting.registry import open_registry
from pipelines import comparison
from pipelines import search as search_module
from pipelines.asking import whole_backtest
from pipelines.fitting import Fitted, fit_all, fit_once
from pipelines.load import load_data
from pipelines.retrain import backtest, retrain
from pipelines.run import Run, new_run
from pipelines.settings import PipelineSettings
from pipelines.steps import run_now
from tests.pipelines.conftest import TINY
from tests.pipelines.test_retrain import Listener, runs_of
from training.job import SearchConfig

N_STEPS, EMBARGO = 400, 6
Change = Callable[[np.ndarray], None]


def walk(job_file: Path, more: str = "") -> Path:
    """Write a job of three folds: six cutoffs 4 apart, refitted every 8 steps."""
    source = "source: {kind: simulate, n_sensors: 2, n_steps: 500, freq: h, seed: 1}"
    text = TINY.replace(source, "source: {kind: csv, path: a.csv}").replace("max_epochs: 3", "max_epochs: 1")
    text = text.replace("validation_size: 120", f"validation_size: 60, refit_every: 8, embargo: {EMBARGO}{more}")
    job_file.write_text(text)
    return job_file


def write_data(folder: Path, change: Change | None = None) -> None:
    y_T = np.random.default_rng(0).normal(size=N_STEPS).cumsum()
    if change is not None:
        change(y_T)
    ds = pd.date_range("2024-01-01", periods=N_STEPS, freq="h")
    pd.DataFrame({"unique_id": "a", "ds": ds, "y": y_T}).to_csv(folder / "a.csv", index=False)


@pytest.fixture
def run(job_file: Path, settings: PipelineSettings) -> Run:
    write_data(job_file.parent)
    return new_run(walk(job_file), settings, Listener())


@pytest.fixture
def two(settings: PipelineSettings) -> PipelineSettings:
    """Two processes at a time."""
    return settings.model_copy(update={"fan_out": 2})


def lines_of(run: Run) -> list[str]:
    assert isinstance(run.reporter, Listener)
    return run.reporter.lines


def weights_of(run: Run) -> list[dict[str, bytes]]:
    """Return the weights of every forecaster, by fold."""
    return [
        {name: (part.artifact(name) / "weights.safetensors").read_bytes() for name in run.networks}
        for part in run.by_fold
    ]


def test_what_comes_after_a_fold_changes_no_bit_of_its_models_and_forecasts(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    load_data(run)
    fit_all(run, None)
    before, asked = weights_of(run), whole_backtest(run, "mlp")
    assert len(before) == 3

    for fold, split in enumerate(run.folds):
        last = split.cutoffs[-1]

        def poison(y_T: np.ndarray, last: int = last) -> None:
            y_T[last + 1 :] = 1e6

        write_data(job_file.parent, poison)
        other = new_run(job_file, settings, Listener())
        load_data(other)
        fit_all(other, None)
        assert weights_of(other)[: fold + 1] == before[: fold + 1]
        chosen_B = asked.cutoff_B <= last
        found_BHQ = whole_backtest(other, "mlp").quantiles_BHQ
        assert np.array_equal(found_BHQ[chosen_B], asked.quantiles_BHQ[chosen_B])
        if fold == 0:
            assert weights_of(other)[-1] != before[-1], "the last fold has learned it"


def test_nothing_from_the_embargo_on_is_learned_from_or_calibrated_on(
    run: Run, job_file: Path, settings: PipelineSettings
) -> None:
    load_data(run)
    fit_all(run, None)
    first = run.folds[0]
    assert first.cutoffs[0] - first.test + 1 == EMBARGO

    def weights_without(begin: int) -> dict[str, bytes]:
        def poison(y_T: np.ndarray) -> None:
            y_T[begin:] += 1e3

        write_data(job_file.parent, poison)
        other = new_run(job_file, settings, Listener())
        load_data(other)
        fit_all(other, None)
        return weights_of(other)[0]

    assert weights_without(first.test) == weights_of(run)[0]
    assert weights_without(first.test - 1) != weights_of(run)[0], "one step earlier it would be"


def test_the_last_folds_model_is_published_and_its_run_tells_of_every_fold(
    run: Run, settings: PipelineSettings
) -> None:
    outcome = retrain(run)
    best = outcome.report["best"]
    published = open_registry(settings.registry).resolve("tiny", "challenger")
    assert published.version == outcome.version
    children = [r for r in runs_of(settings) if r.data.tags.get("hindcast.candidate") == best]
    child = next(r for r in children if "mlflow.parentRunId" in r.data.tags)
    history = MlflowClient(settings.tracking).get_metric_history(child.info.run_id, "fold/crps")
    assert [m.step for m in sorted(history, key=lambda m: m.step)] == [1, 2, 3]
    assert len([r for r in runs_of(settings) if r.info.run_name == best]) == 1, "one run a candidate"
    test = whole_backtest(run, best)
    assert sorted(set(test.cutoff_B)) == list(run.cutoffs)
    assert test.scores() == outcome.report["scores"][best]
    assert any(line.startswith("mlp, fold 2 of 3: best epoch") for line in lines_of(run))
    assert "tiny: 3 folds, refitted every 8 steps" in lines_of(run)


def test_the_champion_is_met_on_the_last_fold_only(run: Run, job_file: Path, settings: PipelineSettings) -> None:
    first = retrain(run)
    assert first.decision is not None
    if not first.decision.promote:
        open_registry(settings.registry).set_alias("tiny", "champion", first.version or "")
    again = retrain(new_run(job_file, settings, Listener()))
    report = again.report
    assert report["champion"] == "champion v1"
    assert "champion v1" not in report["scores"]
    # Same seed, same data: the champion is the challenger.
    assert report["met"]["champion v1"] == report["met"][report["best"]]
    assert again.decision is not None
    numbers = again.decision.numbers
    assert numbers["cutoffs"] == 6
    assert numbers["met"]["cutoffs"] == 2
    assert numbers["difference"] == 0


def test_side_by_side_makes_the_same(run: Run, job_file: Path, two: PipelineSettings) -> None:
    beside = new_run(job_file, two, Listener())
    expected, found = backtest(run), backtest(beside)
    assert weights_of(beside) == weights_of(run)
    assert found.report == expected.report
    assert any("fit mlp, fold 1 of 3: done" in line for line in lines_of(beside))


def test_a_killed_run_goes_on_where_it_stopped(run: Run, two: PipelineSettings) -> None:
    load_data(run)
    first = run.in_fold(0)
    noted = fit_once(Listener(), first.elsewhere, None, "mlp")
    made = (first.artifact("mlp") / "weights.safetensors").stat().st_mtime_ns
    assert fit_once(Listener(), first.elsewhere, None, "mlp") == noted
    assert (first.artifact("mlp") / "weights.safetensors").stat().st_mtime_ns == made
    assert not run.artifact("mlp").exists(), "the last fold is another"


def test_every_fold_is_a_step_of_its_own(run: Run) -> None:
    load_data(run)
    names: list[str] = []

    def remember(name: str, function: Callable[..., object], *args: object) -> object:
        names.append(name)
        return run_now(name, function, *args)

    fit_all(run, None, remember)  # type: ignore[arg-type]
    assert len(names) == len(set(names)) == 3 * len(run.networks)
    assert names[0] == "fit naive, fold 1 of 3"


def test_who_fails_in_a_fold_is_out_of_the_comparison(job_file: Path, settings: PipelineSettings) -> None:
    """The first fold has too few steps before its validation block for a window of the candidate."""
    text = walk(job_file).read_text()
    job_file.write_text(text.replace("kind: lstm, input_size: 24", "kind: lstm, input_size: 280"))

    def remove(y_T: np.ndarray) -> None:
        y_T[::2][:140] = np.nan
        y_T[3:290:5] = np.nan

    write_data(job_file.parent, remove)
    run = new_run(job_file, settings, Listener())
    outcome = backtest(run)
    assert "lstm" not in outcome.report["scores"]
    assert any(line.startswith("lstm, fold 1 of 3 failed: no window to train with") for line in lines_of(run))
    assert not any("lstm, fold 2" in line for line in lines_of(run))


def test_data_too_short_are_refused_before_anything_is_fitted(job_file: Path, settings: PipelineSettings) -> None:
    write_data(job_file.parent)
    text = walk(job_file).read_text()
    job_file.write_text(text.replace("n_windows: 6", "n_windows: 90"))
    with pytest.raises(TrainingError, match=r"embargo 6 \+ test 360"):
        backtest(new_run(job_file, settings, Listener()))


def test_a_job_without_refits_has_its_artefacts_where_they_were(
    job_file: Path, settings: PipelineSettings
) -> None:
    run = new_run(job_file, settings, Listener())
    outcome = backtest(run)
    assert run.by_fold == (run,)
    assert not (run.folder / "folds").exists()
    assert run.title("mlp") == "mlp"
    assert outcome.report["met"] == {}
    assert outcome.report["judged"] == outcome.report["best"]
    assert outcome.report["verdict"] is None


def test_the_gate_takes_who_was_chosen_in_each_fold(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested in one fold is validated on in the next: taken for all, the last choice would look ahead."""
    load_data(run)
    fitted = fit_all(run, None)
    choices = ["lstm", "mlp", "mlp"]
    monkeypatch.setattr(comparison, "_choose", lambda *_: choices)
    report = comparison.backtest_all(run, fitted)
    assert (report["best"], report["judged"]) == ("mlp", comparison.CHOSEN)
    mlp, lstm = (whole_backtest(run, name).loss_by_series("crps") for name in ("mlp", "lstm"))
    case = comparison.case_of(run, report)
    assert case.challenger.name == "mlp"
    assert np.allclose(case.challenger.losses_KN, [*lstm[:2], *mlp[2:]])
    assert case.challenger.score == report["scores"][comparison.CHOSEN]["crps"] != report["scores"]["mlp"]["crps"]


def test_each_fold_chooses_by_its_own_validation_block(run: Run) -> None:
    load_data(run)
    shown = {
        name: comparison.Shown({}, tuple({"crps": score} for score in scores), np.empty((0, 0)))
        for name, scores in {"mlp": (1.0, 2.0, np.nan), "lstm": (2.0, 1.0, 5.0), "ridge": (0.0, 0.0, 0.0)}.items()
    }
    assert comparison._choose(run, shown) == ["mlp", "lstm", "lstm"], "a baseline is no candidate"


def test_a_search_sees_nothing_any_fold_is_tested_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[int] = []
    original = search_module.fit_forecaster

    def listen(asked: Run, parent: str | None, name: str) -> Fitted:
        handed.append(asked.panel.n_steps)
        return original(asked, parent, name)

    monkeypatch.setattr(search_module, "fit_forecaster", listen)
    search_module.search(run, SearchConfig(trials=1, candidate="mlp"))
    assert handed == [run.folds[0].test]
