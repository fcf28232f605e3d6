"""Tracking in MLflow: the experiment is the job, a parent run is one training, a child run one candidate.

A search is a parent run too, and each of its trials a child.

The training loop knows none of this; it is handed a callable. Every run has the same metric and artefact
names, so that any two of them compare.
"""

import json
import math
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

# This import comes before MLflow's own: it sets what MLflow reads when it is imported.
from forecasting.mlflow_registry import ensure_experiment, open_client, translated  # isort: skip
import mlflow.data
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from forecasting.errors import RegistryError
from forecasting.panel import Panel
from training.backtest import Backtest
from training.figures import error_by_step_figure, forecast_figure, save_html
from training.job import JobConfig

STORE = "a run of this training"
TAG_ERROR = "hindcast.error"
SKILLS = ("mase", "crps", "rmsse")
MOST_ROWS_LOGGED = 100_000
_PARAM_LENGTH = 6000
_TAG_LENGTH = 500
_BATCH = 900


class Tracker:
    """Writes runs of one job to one MLflow store."""

    def __init__(self, uri: str, job: JobConfig, job_text: str) -> None:
        self.uri, self.job, self.job_text = uri, job, job_text
        self._client = open_client(uri)
        self._experiment_id = ensure_experiment(self._client, uri, job.name)

    @translated(STORE)
    def start_training(self, panel: Panel, tags: Mapping[str, str]) -> str:
        """Open the parent run of a training: the job file, the data set, and where the code stood.

        A run with the same tags that an earlier, interrupted attempt left open is closed first.
        """
        if tags:
            self._close_leftovers(tags)
        run = self._client.create_run(
            self._experiment_id,
            run_name=f"train {pd.Timestamp.now('UTC'):%Y-%m-%d %H:%M:%S}",
            tags={**tags, **_data_tags(panel), **_code_tags()},
        )
        run_id = str(run.info.run_id)
        with self._closing_on_error(run_id):
            self._client.log_text(run_id, self.job_text, "job.yaml")
            self._log_params(run_id, {"job": self.job.model_dump(mode="json", exclude={"candidates"})})
            self._log_data(run_id, panel)
        return run_id

    @contextmanager
    def search(self, name: str, study: str, panel: Panel) -> Iterator["CandidateRun"]:
        """Open the parent run of a search, and close it as finished, failed or killed.

        A search that goes on has the run it had; what its interrupted attempt left open below it is closed.
        """
        run_id = self._open_search(f"search {name}", {"hindcast.search": name, "hindcast.study": study}, panel)
        with self._closing_on_error(run_id):
            yield CandidateRun(self._client, run_id)
        self.end_run(run_id)

    @translated(STORE)
    def _open_search(self, title: str, tags: Mapping[str, str], panel: Panel) -> str:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        known = self._client.search_runs([self._experiment_id], query, max_results=1)
        if not known:
            tags = {**tags, **_data_tags(panel), **_code_tags()}
            run_id = str(self._client.create_run(self._experiment_id, run_name=title, tags=tags).info.run_id)
            with self._closing_on_error(run_id):
                self._log_data(run_id, panel)
        else:
            run_id = str(known[0].info.run_id)
            self._close_leftovers({"mlflow.parentRunId": run_id})
            self._client.update_run(run_id, status="RUNNING")
            if TAG_ERROR in known[0].data.tags:
                self._client.delete_tag(run_id, TAG_ERROR)
        self._client.log_text(run_id, self.job_text, "job.yaml")
        return run_id

    @contextmanager
    def candidate(
        self, parent: str, name: str, params: Mapping[str, Any], job_text: str | None = None
    ) -> Iterator["CandidateRun"]:
        """Open a child run, and close it as finished, failed or killed.

        A run of the same name that an earlier, interrupted attempt left open is closed first. `job_text` is the
        job it ran, where that is not the job as it is: a trial of a search.
        """
        run_id = self._open_candidate(name, {"mlflow.parentRunId": parent, "hindcast.candidate": name})
        with self._closing_on_error(run_id):
            self._describe_candidate(run_id, params, job_text or self.job_text)
            yield CandidateRun(self._client, run_id)
        self.end_run(run_id)

    @translated(STORE)
    def _open_candidate(self, name: str, tags: Mapping[str, str]) -> str:
        # One that finished, and whose training was killed before anyone took note, is not the one that counts.
        self._close_leftovers(tags, ("RUNNING", "FINISHED"))
        run = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)

    @translated(STORE)
    def _describe_candidate(self, run_id: str, params: Mapping[str, Any], job_text: str) -> None:
        self._log_params(run_id, params)
        self._client.log_text(run_id, job_text, "job.yaml")

    @translated(STORE)
    def finish_training(self, run_id: str, scores: pd.DataFrame, best: str) -> None:
        """Write the leaderboard and the best candidate's scores to the parent run."""
        self._client.set_tag(run_id, "hindcast.best_candidate", best)
        CandidateRun(self._client, run_id).log_scores("test", _row(scores, best))
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "leaderboard.parquet"
            scores.reset_index().to_parquet(path)
            self._client.log_artifact(run_id, str(path), "tables")
        self._client.log_text(run_id, scores.to_string(float_format="{:.6g}".format), "leaderboard.txt")

    @translated(STORE)
    def log_backtest(
        self, run_id: str, validation: Backtest, test: Backtest, title: str, *, figures: bool
    ) -> None:
        """Write what a candidate's run showed on the validation and the test block."""
        run = CandidateRun(self._client, run_id)
        run.log_scores("val", validation.scores())
        run.log_test(test, title, figures=figures)

    @translated(STORE)
    def log_folds(self, run_id: str, scores: Sequence[Mapping[str, float]]) -> None:
        """Write what a candidate showed in each fold as `fold/crps` and so on, with the fold as the step."""
        run = CandidateRun(self._client, run_id)
        for fold, one in enumerate(scores, start=1):
            run.log_scores("fold", one, fold)

    @translated(STORE)
    def log_returns(
        self,
        run_id: str,
        scores: Mapping[str, float],
        p_values: Mapping[str, float],
        figures: Mapping[str, Any],
    ) -> None:
        """Write what a candidate's forecasts of returns are worth, beside each rival, and their figures."""
        run = CandidateRun(self._client, run_id)
        run.log_scores("test", scores)
        run.log_scores("dm_p", p_values)
        run.log_figures(figures)

    @translated(STORE)
    def log_skill(self, run_id: str, scores: Mapping[str, float], seasonal_naive: Mapping[str, float]) -> None:
        """Write a candidate's skill against the seasonal naive: 0 is no better, 1 is perfect."""
        skill = {name: 1.0 - scores[name] / seasonal_naive[name] for name in SKILLS if seasonal_naive[name]}
        CandidateRun(self._client, run_id).log_scores("skill", skill)

    @translated(STORE)
    def decide(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Write a decision, its reason and its numbers to the parent run."""
        for name, value in tags.items():
            self._client.set_tag(run_id, name, value)

    @translated(STORE)
    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status)

    @translated(STORE)
    def end_candidates(self, parent: str) -> None:
        """Close the child runs that processes which were ended left open."""
        self._close_leftovers({"mlflow.parentRunId": parent})

    def _close_leftovers(self, tags: Mapping[str, str], states: Sequence[str] = ("RUNNING",)) -> None:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        for run in self._client.search_runs([self._experiment_id], query):
            if run.info.status in states:
                self._close_leftovers({"mlflow.parentRunId": str(run.info.run_id)})
                self._client.set_terminated(run.info.run_id, "KILLED")

    @contextmanager
    def _closing_on_error(self, run_id: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt | SystemExit)
            # What went wrong is the error to tell, also when MLflow cannot be told.
            with suppress(RegistryError), translated(STORE):
                self._client.set_tag(run_id, TAG_ERROR, str(error)[:_TAG_LENGTH] or type(error).__name__)
                self._client.set_terminated(run_id, "KILLED" if killed else "FAILED")
            raise

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        flat = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in _flatten(params).items()]
        self._client.log_batch(run_id, params=flat[:100])

    def _log_data(self, run_id: str, panel: Panel) -> None:
        frame = panel.to_frame() if panel.y_NT.size <= MOST_ROWS_LOGGED else panel.before(1).to_frame()
        with warnings.catch_warnings():
            # MLflow warns that integer columns cannot hold missing values; there are none here.
            warnings.simplefilter("ignore")
            data = mlflow.data.from_pandas(frame, name=self.job.name, digest=panel.digest()[:36])
        self._client.log_inputs(
            run_id, [DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", "training")])]
        )


class CandidateRun:
    """One child run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log_epoch(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Write an epoch's metrics; the training loop is handed this as its `log`."""
        self._log(metrics, epoch)

    def log_scores(self, block: str, scores: Mapping[str, float], step: int = 0) -> None:
        """Write scores as `test/crps`, `val/crps` and so on."""
        self._log({f"{block}/{name}": value for name, value in scores.items()}, step)

    @translated(STORE)
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, value[:_TAG_LENGTH]) for key, value in tags.items()])

    @translated(STORE)
    def log_search(self, best: str, trials: pd.DataFrame, figures: Mapping[str, Any]) -> None:
        """Write what a search came to: the best candidate as a job has it, every trial, and the figures."""
        self._client.log_text(self.run_id, best, "best_candidate.yaml")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "tables").mkdir()
            trials.to_parquet(folder / "tables" / "trials.parquet")
            for name, figure in figures.items():
                save_html(figure, folder / "figures" / f"{name}.html")
            self._client.log_artifacts(self.run_id, scratch)

    @translated(STORE)
    def log_figures(self, figures: Mapping[str, Any]) -> None:
        """Write figures as pages."""
        with tempfile.TemporaryDirectory() as scratch:
            for name, figure in figures.items():
                save_html(figure, Path(scratch) / "figures" / f"{name}.html")
            self._client.log_artifacts(self.run_id, scratch)

    @translated(STORE)
    def log_test(self, test: Backtest, title: str, *, figures: bool) -> None:
        """Write a backtest: its scores, the error of each step, the table of series and the figures."""
        self.log_scores("test", test.scores())
        for step, value in enumerate(test.mae_by_step(), start=1):
            self._log({"test/mae_by_step": float(value)}, step)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "tables").mkdir()
            test.per_series().to_parquet(folder / "tables" / "per_series.parquet")
            if figures:
                save_html(forecast_figure(test, title), folder / "figures" / "forecast.html")
                save_html(error_by_step_figure(test, title), folder / "figures" / "error_by_step.html")
            self._client.log_artifacts(self.run_id, scratch)

    @translated(STORE)
    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        known = [Metric(key, float(v), now, step) for key, v in metrics.items() if math.isfinite(v)]
        for start in range(0, len(known), _BATCH):
            self._client.log_batch(self.run_id, metrics=known[start : start + _BATCH])


def _row(scores: pd.DataFrame, name: str) -> dict[str, float]:
    return {str(column): float(scores[column].to_dict()[name]) for column in scores.columns}


def _data_tags(panel: Panel) -> dict[str, str]:
    return {
        "hindcast.data_digest": panel.digest(),
        "hindcast.data_start": str(panel.ds[0]),
        "hindcast.data_end": str(panel.ds[-1]),
        "hindcast.n_series": str(panel.n_series),
    }


def _code_tags() -> dict[str, str]:
    """Return the git commit this code stands at, where it runs from a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(  # noqa: S603
            ["git", "-C", str(here), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit}


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = json.dumps(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    return flat
