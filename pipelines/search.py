"""Searching for better settings of a candidate: one trial after the other, remembered in a file.

A trial is fitted and asked as a retraining would fit and ask its candidate, and compared by the job's gate
metric at the validation cutoffs: a score in the data's own units, which is comparable whatever the window and
the scaling are. No trial is shown the test block: it is cut off the data before the first one.
"""

import fcntl
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from forecasting.errors import HindcastError, JobError, TrainingError
from pipelines.asking import backtest_of
from pipelines.fitting import fit_forecaster
from pipelines.load import load_data
from pipelines.report import Reporter
from pipelines.run import Run
from training.backtest import validation_cutoffs
from training.job import Candidate, Choice, SearchConfig
from training.search import (
    PeerPruner,
    Space,
    build_space,
    candidate_line,
    job_text_with,
    sampler_for,
    search_figures,
    study_name,
    write_candidate,
)
from training.tracking import CandidateRun

TrialResult = Literal["complete", "pruned", "failed"]

STATES: Mapping[TrialResult, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    # Told as pruned, the sampler learns to keep away; as failed it would forget, and the trial would not count.
    "failed": TrialState.PRUNED,
}


@dataclass(frozen=True)
class Tried:
    """One finished trial."""

    number: int
    result: TrialResult
    score: float
    """The gate metric at the validation cutoffs; infinite where there is none."""
    settings: Mapping[str, Choice]
    candidate: Mapping[str, Any]
    """The whole candidate, as a job file has it."""
    why: str
    current: bool
    """Whether these are the settings the job has."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    candidate: str
    metric: str
    trials: tuple[Tried, ...]

    @property
    def ranked(self) -> list[Tried]:
        """Return the trials that have a score, best first; of equals the earlier."""
        complete = [tried for tried in self.trials if tried.result == "complete"]
        return sorted(complete, key=lambda tried: tried.score)

    @property
    def best(self) -> Tried:
        return self.ranked[0]

    @property
    def line(self) -> str:
        """Return the best candidate as the line to paste into the job."""
        return candidate_line(self.best.candidate)

    def frame(self) -> pd.DataFrame:
        """Return one row a trial."""
        rows = [
            {
                "trial": tried.number,
                "result": tried.result,
                self.metric: tried.score,
                "why": tried.why,
                # One column may hold words, numbers and nothing, which a table on disk takes as words only.
                **{name: str(value) for name, value in tried.settings.items()},
            }
            for tried in self.trials
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Outcome:
    """What one trial came to."""

    result: TrialResult
    scores: Mapping[str, float]
    why: str = ""


def search(run: Run, config: SearchConfig) -> Found:
    """Try settings of a candidate until enough trials are finished, and return every trial.

    Raises:
        JobError: the search does not fit the job.
        TrainingError: no trial came to a score.
        HindcastError: the job is being searched by another process.
    """
    # Known before the data are loaded, which can take long.
    build_space(run.job, config, 0)
    load_data(run)
    # Of a walk-forward the first fold: what a later one validates on is what an earlier one is tested on.
    run = run.in_fold(0)
    space = build_space(run.job, config, _longest_default(run))
    _require_history(run, space)
    digests = space.digests(run.panel.digest())
    name = study_name(space.candidate.name, digests)
    with (
        _open_study(run, space.candidate.name, name, digests) as study,
        run.tracker.search(space.candidate.name, name, run.panel) as tracked,
    ):
        found = _Search(run, config, space, study, tracked).go_on()
        if not found.ranked:
            causes = "; ".join(sorted({tried.why for tried in found.trials if tried.why}))
            raise TrainingError(f"job {run.job.name!r}: no trial of the search came to a score: {causes}")
        figures = search_figures(study, list(space.dimensions), found.metric)
        tracked.set_tags({"hindcast.best_trial": str(found.best.number)})
        tracked.log_search(found.line + "\n", found.frame(), figures)
    return found


def _longest_default(run: Run) -> int:
    """Return the largest input_size worth trying unasked.

    Half of what the shortest series has before the first validation cutoff: a longer one would leave that series
    out of the comparison, or nothing to learn from.
    """
    first_N, _ = run.panel.spans()
    return int(min(run.split.validation - first_N)) // 2


def _require_history(run: Run, space: Space) -> None:
    longest, there = space.longest_window, run.split.validation
    if longest + run.job.horizon > there:
        raise TrainingError(
            f"job {run.job.name!r}: the search may try an input_size of {longest}, which with the horizon of "
            f"{run.job.horizon} takes {longest + run.job.horizon} steps before the validation block; "
            f"there are {there}"
        )


@contextmanager
def _open_study(run: Run, candidate: str, name: str, digests: Mapping[str, str]) -> Iterator[optuna.Study]:
    """Open the study of this data, space and job, new where any of them has changed, for one process."""
    # Its messages go where all others go, and a trial's line is ours to write.
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = run.settings.home / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{run.job.name}.lock", run.job.name):
        storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / f'{run.job.name}.db').absolute()}")
        try:
            earlier = {s.study_name: s for s in optuna.get_all_study_summaries(storage)}
            study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, pruner=PeerPruner(), direction="minimize"
            )
            if name not in earlier:
                study.set_user_attr("candidate", candidate)
                study.set_user_attr("digests", dict(digests))
                _say_what_changed(run.reporter, earlier.values(), candidate, digests)
            yield study
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _say_what_changed(
    reporter: Reporter, earlier: Iterable[optuna.study.StudySummary], candidate: str, digests: Mapping[str, str]
) -> None:
    """Say why the last search of a candidate, if there was one, does not go on."""
    for last in [s.user_attrs["digests"] for s in earlier if s.user_attrs.get("candidate") == candidate][-1:]:
        changed = [what for what in digests if digests[what] != last.get(what)]
        # What is searched is no other setting, so another space always changes those too.
        named = [what for what in changed if what != "job's other settings" or "space" not in changed]
        reporter.say(f"the {' and the '.join(named)} changed since the last search of {candidate}: a new study")


@contextmanager
def _alone(lock: Path, job: str) -> Iterator[None]:
    """Hold a lock, which ends with the process however it ends: what else runs in the study is then left over."""
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HindcastError(f"job {job!r} is being searched by another process; let it end first") from error
        yield


class _Search:
    """A study under way."""

    def __init__(
        self, run: Run, config: SearchConfig, space: Space, study: optuna.Study, tracked: CandidateRun
    ) -> None:
        self.run, self.config, self.space, self.study, self.tracked = run, config, space, study, tracked
        self.metric = run.job.gate.metric

    @property
    def found(self) -> Found:
        """Return what is there so far, of this call and of earlier ones."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return Found(self.space.candidate.name, self.metric, tuple(_tried(trial) for trial in trials))

    def go_on(self) -> Found:
        """Make trials until there are enough, or the time is up."""
        self._clear_up()
        started, wanted = time.monotonic(), self.config.trials
        before = len(self.found.trials)
        if before:
            self.run.reporter.say(f"{before} of {wanted} trials are finished; going on from there")
        try:
            while len(self.found.trials) < wanted and self._in_time(started):
                self._one_trial()
        except KeyboardInterrupt:
            done = len(self.found.trials)
            self.run.reporter.say(f"stopped after {done} of {wanted} trials; the same command goes on from there")
            raise
        if len(self.found.trials) < wanted:
            self.run.reporter.say(
                f"max_seconds is over after {len(self.found.trials)} of {wanted} trials; "
                "the same command goes on from there"
            )
        return self.found

    def _in_time(self, started: float) -> bool:
        return self.config.max_seconds is None or time.monotonic() - started < self.config.max_seconds

    def _clear_up(self) -> None:
        """Mark what a killed process left running as failed, and see that the job's own settings are tried."""
        for left in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(left.number, state=TrialState.FAIL)
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting and not any(tried.current for tried in self.found.trials):
            settings = dict(self.space.current) if self.space.holds_current else {}
            self.study.enqueue_trial(settings, user_attrs={"current": True})

    def _one_trial(self) -> None:
        """Choose settings, try them, and remember what came of it."""
        self.study.sampler = sampler_for(self.config.seed, len(self.found.trials))
        trial = self.study.ask()
        try:
            settings = self.space.suggest(trial)
            outcome, candidate = self._try(trial, settings)
        except BaseException:
            # It does not count, and is made again.
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        score = outcome.scores.get(self.metric, math.nan)
        for key, value in {"settings": dict(settings), "candidate": candidate, "why": outcome.why}.items():
            trial.set_user_attr(key, value)
        trial.set_user_attr("result", outcome.result)
        complete = outcome.result == "complete"
        self.study.tell(trial, score if complete else None, state=STATES[outcome.result])
        self._say(trial.number)

    def _say(self, number: int) -> None:
        found = self.found
        tried = next(t for t in found.trials if t.number == number)
        result = f"{self.metric} {tried.score:.5g}" if tried.result == "complete" else tried.result
        best = f"best {found.best.score:.5g} in trial {found.best.number}" if found.ranked else "no best yet"
        notes = [note for note in ("the job's own" if tried.current else "", tried.why) if note]
        shown = " ".join(f"{name}={show_setting(value)}" for name, value in tried.settings.items())
        self.run.reporter.say(
            f"trial {number} ({len(found.trials)} of {self.config.trials}): {result}, {best}; {shown}"
            + (f" ({'; '.join(notes)})" if notes else "")
        )
        if found.ranked:
            self.tracked.log_epoch({f"best/{self.metric}": found.best.score}, number)

    def _try(self, trial: optuna.Trial, settings: Mapping[str, Choice]) -> tuple[_Outcome, dict[str, Any]]:
        """Return what became of a trial, and its candidate."""
        try:
            candidate = self.space.apply(settings)
        except JobError as error:
            return _Outcome("failed", {}, str(error)), {}
        trial.set_user_attr("unit", self.space.unit_of(candidate))
        training = self.run.job.training_of(candidate)
        trial.set_user_attr("max_epochs", training.max_epochs)
        params = {"network": candidate.network.model_dump(), "training": training.model_dump()}
        text = job_text_with(self.run.job_text, self.run.job, self.space.from_scratch(candidate))
        with self.run.tracker.candidate(self.tracked.run_id, f"trial {trial.number}", params, text) as tracked:
            reporter = _TrialReporter(trial, tracked, self.run.reporter)
            outcome = self._repeated(settings) or self._train(_run_of_trial(self.run, text, reporter), candidate)
            tracked.log_scores("val", outcome.scores)
            tags = {"hindcast.trial_state": outcome.result, "hindcast.trial_note": outcome.why}
            tracked.set_tags({key: value for key, value in tags.items() if value})
        return outcome, write_candidate(candidate)

    def _repeated(self, settings: Mapping[str, Choice]) -> _Outcome | None:
        """Return the outcome of the same settings, where they were tried: training them again shows nothing."""
        for tried in self.found.trials:
            if dict(tried.settings) == dict(settings):
                scores: dict[str, float] = {self.metric: tried.score} if tried.result == "complete" else {}
                return _Outcome(tried.result, scores, f"the same as trial {tried.number}")
        return None

    def _train(self, asked: Run, candidate: Candidate) -> _Outcome:
        try:
            fitted = fit_forecaster(asked, None, candidate.name)
        except optuna.TrialPruned as error:
            return _Outcome("pruned", {}, str(error))
        if fitted["error"] is not None:
            return _Outcome("failed", {}, fitted["error"])
        cutoffs = validation_cutoffs(asked.split, asked.job.horizon)
        # Every trial answers the same questions: those that leave the longest window of any trial filled.
        test = backtest_of(asked, asked.artifact(candidate.name), cutoffs, self.space.longest_window)
        scores = test.scores()
        if not math.isfinite(scores[self.metric]):
            return _Outcome("failed", scores, "it gives no finite forecast")
        return _Outcome("complete", scores)


class _TrialReporter:
    """Listens to the training of a trial: tracks its epochs, passes them on, and stops it where it lags."""

    def __init__(self, trial: optuna.Trial, tracked: CandidateRun, listener: Reporter) -> None:
        self.trial, self.tracked, self.listener = trial, tracked, listener
        self.name = f"trial {trial.number}"

    def say(self, line: str) -> None:
        """Keep quiet: a trial has one line, when it is over."""

    def epoch(self, candidate: str, epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        del candidate
        self.tracked.log_epoch(metrics, epoch)
        self.listener.epoch(self.name, epoch, of, metrics)
        loss = metrics["val/loss"]
        # A loss that is no number ends the training by itself, and says why.
        if not math.isfinite(loss):
            return
        self.trial.report(loss, epoch)
        if self.trial.should_prune():
            self.done(self.name)
            raise optuna.TrialPruned(f"behind the median after {epoch} epochs")

    def done(self, candidate: str) -> None:
        del candidate
        self.listener.done(self.name)


def _run_of_trial(run: Run, job_text: str, reporter: Reporter) -> Run:
    """Return the run of a job with one candidate changed, which knows nothing of the test block."""
    asked = replace(run, job_text=job_text, reporter=reporter)
    # What the run would load and place on the device is there already, and the same for every trial.
    vars(asked).update(
        panel=run.panel.before(run.split.test), folds=run.folds, split=run.split, tensors=run.tensors
    )
    return asked


def _tried(trial: FrozenTrial) -> Tried:
    noted = trial.user_attrs
    complete = noted["result"] == "complete" and trial.value is not None
    return Tried(
        number=trial.number,
        result=noted["result"],
        score=float(trial.value) if complete and trial.value is not None else math.inf,
        settings=noted["settings"],
        candidate=noted["candidate"],
        why=noted["why"],
        current=bool(noted.get("current")),
    )


def show_setting(value: Choice) -> str:
    """Write a setting short enough for a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
