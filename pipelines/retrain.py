"""Retraining: load, fit, backtest, publish, decide, promote.

`retrain` is the whole story; the functions below it are its steps. Each step leaves its work in the run's
folder or in MLflow and returns plain data, so that a scheduler can remember what is done and a run that was
killed goes on where it stopped.

K test cutoffs.
"""

import hashlib
import json
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypedDict, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.artifact import load_artifact, save_artifact
from forecasting.errors import (
    ArtifactError,
    HindcastError,
    ModelNotFoundError,
    RegistryError,
    RegistryUnavailableError,
    SourceError,
    TrainingError,
)
from forecasting.forecaster import Forecaster
from forecasting.networks import QuantileNetwork
from forecasting.registry import (
    CHALLENGER,
    SHADOW,
    TAG_DATASET,
    TAG_ONLINE_INTERVALS,
    TAG_TARGET,
    ModelVersion,
    champion_or_none,
    load_version,
    promote,
    resolve_or_none,
    watch_previous,
)
from forecasting.spec import BASELINE_KINDS, ForecasterSpec
from ledger.decisions import GATE, DecisionStore, RecordedDecision
from pipelines.fanout import map_tasks, open_fan_out
from pipelines.load import dataset_of, load_data
from pipelines.promotion import VERDICTS, Account, Decision, Evidence, decide
from pipelines.report import Reporter
from pipelines.run import Run
from pipelines.trial import TAG_TRACKING_RUN, as_decision, tags_of
from training.backtest import Backtest, leaderboard, run_backtest, validation_cutoffs
from training.baselines import fit_baseline
from training.calibrate import calibrate
from training.fit import FittingFactory, Log, fit, log_nothing
from training.job import JobConfig, TrainingConfig
from training.partitioned import LocalResult, LocalRound, partitioned, train_round, write_partitions
from training.windows import Windows

TAG_RUN_KEY = "hindcast.run_key"
"""Marks a version with the retraining that published it, so that a repeated step finds it again."""

LOSSES = "losses.npz"

FloatArray = NDArray[np.float64]

TAG_TRAINING = "hindcast.training_digest"
"""Marks a version with its training settings: with the same spec and settings, a later one is its refresh."""

T = TypeVar("T")


class StepRunner(Protocol):
    """Runs one step by name; the scheduler's remembers the result, the plain one does not."""

    def __call__(self, name: str, function: Callable[..., T], *args: object) -> T:
        """Return what the function returns, now or from an earlier attempt."""


def run_now(name: str, function: Callable[..., T], *args: object) -> T:
    """Run a step here and now."""
    del name
    return function(*args)


class Fitted(TypedDict):
    """One forecaster after fitting: its MLflow run, or why there is no model."""

    name: str
    run_id: str | None
    error: str | None


class Shown(NamedTuple):
    """What one forecaster showed in the backtest."""

    scores: dict[str, float]
    validation: dict[str, float]
    losses: list[float]
    """The gate metric at each test cutoff."""
    tested: FloatArray
    """The same by cutoff and series."""


class Report(TypedDict):
    """What the backtest found; plain data, so that a scheduler can remember it."""

    best: str
    """The candidate with the best gate metric on the validation block."""
    champion: str | None
    """The champion's name in `scores`, where there was one to compare with."""
    champion_version: str | None
    """The champion there was, compared with or not."""
    refresh: bool
    """Whether the best is the champion's configuration trained anew."""
    not_compared: str | None
    """Why a champion there is was not compared with."""
    scores: dict[str, dict[str, float]]
    validation: dict[str, dict[str, float]]
    losses: dict[str, list[float]]
    """The gate metric at each test cutoff."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    job: str
    data: str
    report: Report
    version: str | None
    """The version that was published, if one was."""
    decision: Decision | None
    """What the gate decided, if it was asked."""

    def leaderboard(self, metric: str) -> pd.DataFrame:
        """Return everyone's test scores, best first."""
        return leaderboard(self.report["scores"], metric)


def retrain(run: Run, step: StepRunner = run_now) -> Outcome:
    """Train a job's candidates, publish the best, and make it the champion if the gate says so."""
    return retrain_loaded(run, step("load", load_data, run), step)


def retrain_loaded(run: Run, data: str, step: StepRunner = run_now) -> Outcome:
    """Do all of a retraining that comes after the loading; `data` describes what was loaded."""
    parent = step("track", open_tracking, run)
    with _closing(run, parent, step):
        fitted = fit_all(run, parent, step)
        report = step("backtest", backtest_all, run, fitted)
        with _carrying_through(run):
            version = step("publish", publish_best, run, parent, report)
            decision = Decision(**step("decide", decide_promotion, run, parent, report, version))
            if decision.promote:
                step("promote", promote_version, run, version)
            elif decision.action == "shadow":
                step("shadow", start_trial, run, version)
    return Outcome(run.job.name, data, report, version, decision)


def train(run: Run) -> Outcome:
    """Train a job's candidates and publish the best as the challenger; promote nothing."""
    data = load_data(run)
    parent = open_tracking(run)
    with _closing(run, parent):
        fitted = fit_all(run, parent)
        report = backtest_all(run, fitted)
        with _carrying_through(run):
            version = publish_best(run, parent, report)
    return Outcome(run.job.name, data, report, version, None)


def backtest(run: Run) -> Outcome:
    """Train and backtest a job's candidates; track, publish and promote nothing."""
    data = load_data(run)
    report = backtest_all(run, fit_all(run, None))
    return Outcome(run.job.name, data, report, None, None)


@contextmanager
def _closing(run: Run, parent: str, step: StepRunner = run_now) -> Iterator[None]:
    """Close the parent run as what it came to: finished, failed or interrupted."""
    try:
        yield
    except Exception:
        with suppress(HindcastError):
            step("close", close_tracking, run, parent, "FAILED")
        raise
    except BaseException:
        with suppress(RegistryError):
            close_tracking(run, parent, "KILLED")
        raise
    step("close", close_tracking, run, parent, "FINISHED")


@contextmanager
def _carrying_through(run: Run) -> Iterator[None]:
    """Let the first Ctrl-C wait: a version without its decision, or a decision not carried out, is half done.

    The second one stops at once. A worker trains in a thread, where no Ctrl-C arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        signal.signal(signal.SIGINT, before)
        run.reporter.say("the model is being registered, which takes a moment; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def open_tracking(run: Run) -> str:
    """Open the parent run in MLflow and return its id."""
    # Notes of an attempt that was given up speak of runs below another parent.
    shutil.rmtree(run.folder / "fitted", ignore_errors=True)
    return run.tracker.start_training(run.panel, {TAG_RUN_KEY: run.key})


def close_tracking(run: Run, parent: str, status: str) -> None:
    """Close the parent run in MLflow, and what is left open below it."""
    if status != "FINISHED":
        run.tracker.end_candidates(parent)
    run.tracker.end_run(parent, status)


def fit_all(run: Run, parent: str | None, step: StepRunner = run_now) -> list[Fitted]:
    """Fit every forecaster of the comparison: in turn, a step each; or several at a time, in one step."""
    if run.settings.in_turn:
        return [step(f"fit {name}", fit_forecaster, run, parent, name) for name in run.networks]
    return step("fit", fit_side_by_side, run, parent)


def fit_side_by_side(run: Run, parent: str | None) -> list[Fitted]:
    """Fit every forecaster, several at a time; those that an interrupted attempt finished are not fitted again."""
    # Those in partitions come after the others: each is shared out by itself.
    apart = [name for name in run.networks if run.training(name).get("partitions", 1) > 1]
    tasks = {f"fit {name}": (run.elsewhere, parent, name) for name in run.networks if name not in apart}
    done = map_tasks(fit_once, tasks, run.settings, run.reporter)
    fitted = {f["name"]: f for f in done.values()} | {n: fit_once(run.reporter, run, parent, n) for n in apart}
    return [fitted[name] for name in run.networks]


def fit_once(reporter: Reporter, run: Run, parent: str | None, name: str) -> Fitted:
    """Fit one forecaster, and leave a note of it in the run's folder; return what a note there says."""
    note = run.folder / "fitted" / f"{name}.json"
    if note.is_file():
        known: Fitted = json.loads(note.read_text())
        return known
    if not (run.folder / "panel.npz").is_file():
        raise SourceError(
            f"{run.folder} holds no data: HINDCAST_HOME must lie on a file system that all machines share"
        )
    fitted = fit_forecaster(run.told_to(reporter), parent, name)
    note.parent.mkdir(exist_ok=True)
    draft = note.with_suffix(".draft")
    draft.write_text(json.dumps(fitted))
    draft.replace(note)
    return fitted


def fit_forecaster(run: Run, parent: str | None, name: str) -> Fitted:
    """Fit and calibrate one candidate or baseline, and save its artefact.

    A training that gives no usable model fails alone: the others go on, and its run says why.
    """
    try:
        return {"name": name, "run_id": _fit_tracked(run, parent, name), "error": None}
    except TrainingError as error:
        run.reporter.done(name)
        run.reporter.say(f"{name} failed: {error}")
        return {"name": name, "run_id": None, "error": str(error)}


def _fit_tracked(run: Run, parent: str | None, name: str) -> str | None:
    if parent is None:
        _fit(run, name, log_nothing)
        return None
    params = {"network": run.networks[name].model_dump(), "training": run.training(name)}
    with run.tracker.candidate(parent, name, params) as tracked:
        _fit(run, name, tracked.log_epoch)
    return tracked.run_id


def _fit(run: Run, name: str, log: Log) -> None:
    job, spec = run.job, run.spec_of(name)
    train = Windows(run.tensors, spec.input_size, job.horizon, 0, run.split.validation)
    validation = Windows(run.tensors, spec.input_size, job.horizon, run.split.validation, run.split.test)
    candidate = run.candidate(name)
    if candidate is None or candidate.network.kind in BASELINE_KINDS:
        network = fit_baseline(spec, train, validation)
    else:
        config = job.training_of(candidate)

        def log_and_report(metrics: Mapping[str, float], epoch: int) -> None:
            log(metrics, epoch)
            run.reporter.epoch(name, epoch, config.max_epochs * config.members, metrics)

        warm = _warm_start(run, name, spec) if config.start == "warm" else None
        with _fitting_of(run, config) as fitting:
            result = fit(spec, config, train, validation, log_and_report, warm=warm, fitting=fitting)
        run.reporter.done(name)
        run.reporter.say(
            f"{name}: best epoch {result.best_epoch} of {result.epochs} ({result.stopped_by}), "
            f"{result.seconds:.1f} s, {result.forecasts_seen / result.seconds:,.0f} forecasts/s"
        )
        network = result.network
    calibrate(network, validation, spec.quantiles)
    shutil.rmtree(run.artifact(name), ignore_errors=True)
    save_artifact(Forecaster(spec, network), run.artifact(name))


@contextmanager
def _fitting_of(run: Run, config: TrainingConfig) -> Iterator[FittingFactory | None]:
    """Give what trains over partitions of the series, side by side; None where there is but one."""
    if config.partitions == 1:
        yield None
        return
    home = run.folder / f"partitions-{config.partitions}"
    paths = write_partitions(run.panel.before(run.split.test), home, config.partitions)
    with open_fan_out(run.settings, run.reporter, len(paths)) as fan_out:

        def run_rounds(orders: Sequence[LocalRound]) -> Sequence[LocalResult]:
            tasks = {f"partition {order.partition + 1}": (order,) for order in orders}
            return list(fan_out.map(train_partition, tasks, aloud=False).values())

        yield partitioned(paths, run_rounds)


def train_partition(reporter: Reporter, order: LocalRound) -> LocalResult:
    """Train one partition for a round, wherever it is."""
    del reporter
    return train_round(order)


def _warm_start(run: Run, name: str, spec: ForecasterSpec) -> QuantileNetwork | None:
    """Return the champion's network where it is the same one, and say so where it is not."""
    version = champion_or_none(run.registry, run.job.name)
    if version is None:
        run.reporter.say(f"{name} starts from scratch: there is no champion to start from")
        return None
    try:
        champion = load_version(run.registry, version)
    except (ArtifactError, RegistryError) as error:
        run.reporter.say(f"{name} starts from scratch: champion v{version.version} cannot be loaded: {error}")
        return None
    unlike = _unlike(champion.spec, spec)
    if unlike:
        run.reporter.say(f"{name} starts from scratch: champion v{version.version} has another {unlike}")
        return None
    run.reporter.say(f"{name} starts from the weights of champion v{version.version}")
    return champion.network.to(run.tensors.device)


def _unlike(one: ForecasterSpec, other: ForecasterSpec) -> str:
    """Name the fields in which two specs differ, those aside that change no weight."""
    ones, others = (spec.model_dump(exclude={"format_version", "level"}) for spec in (one, other))
    return ", ".join(key for key in ones if ones[key] != others[key])


def backtest_of(run: Run, artifact: Path, cutoffs: Sequence[int], history_needed: int | None = None) -> Backtest:
    """Reload an artefact and ask it at the given cutoffs of the run's panel."""
    return _ask(run, load_artifact(artifact), cutoffs, history_needed or run.history_needed)


def _ask(run: Run, forecaster: Forecaster, cutoffs: Sequence[int], history_needed: int) -> Backtest:
    return run_backtest(forecaster, run.panel, cutoffs, history_needed=history_needed, in_sample=run.split.test)


def backtest_all(run: Run, fitted: Sequence[Fitted]) -> Report:
    """Backtest every artefact that was fitted, and the champion, at the same cutoffs; choose by validation."""
    metric = run.job.gate.metric
    champion = _load_champion(run)
    # Everyone answers the same questions: those that leave the longest window, the champion's included, filled.
    needed = max(run.history_needed, champion.input_size)
    asked = run if run.settings.in_turn else run.elsewhere
    tasks = {f["name"]: (asked, f, needed) for f in _usable(run, fitted)}
    shown = map_tasks(show_forecaster, tasks, run.settings, run.reporter, aloud=False)
    scores = {name: one.scores for name, one in shown.items()}
    validation = {name: one.validation for name, one in shown.items()}
    losses = {name: one.losses for name, one in shown.items()}
    tested = {name: one.tested for name, one in shown.items()}
    for f in fitted:
        if f["run_id"] is not None:
            run.tracker.log_skill(f["run_id"], scores[f["name"]], scores["seasonal_naive"])
    trained = [c.name for c in run.job.candidates if c.name in validation]
    best = min(trained, key=lambda name: _or_worst(validation[name][metric]))
    if champion.forecaster is not None:
        test = _ask(run, champion.forecaster, run.split.cutoffs, needed)
        scores[champion.name], losses[champion.name] = test.scores(), test.loss_by_cutoff(metric).tolist()
        tested[champion.name] = test.loss_by_series(metric)
    _save_losses(run, {name: tested[name] for name in (best, "seasonal_naive", champion.name) if name})
    return {
        "best": best,
        "champion": champion.name if champion.forecaster is not None else None,
        "champion_version": champion.version,
        "refresh": champion.forecaster is not None and _is_refresh(run, best, champion),
        "not_compared": champion.why_not,
        "scores": scores,
        "validation": validation,
        "losses": losses,
    }


def show_forecaster(reporter: Reporter, run: Run, fitted: Fitted, needed: int) -> Shown:
    """Backtest one artefact on the test and the validation block, and log what it showed."""
    name, run_id, metric = fitted["name"], fitted["run_id"], run.job.gate.metric
    test = backtest_of(run, run.artifact(name), run.split.cutoffs, needed)
    before = backtest_of(run, run.artifact(name), validation_cutoffs(run.split, run.job.horizon))
    if test.unanswered:
        reporter.say(f"{name} has no score: it gives no finite forecast for {_listed(test.unanswered)}")
    if run_id is not None:
        run.tracker.log_backtest(run_id, before, test, name, figures=run.candidate(name) is not None)
    return Shown(test.scores(), before.scores(), test.loss_by_cutoff(metric).tolist(), test.loss_by_series(metric))


def _save_losses(run: Run, tested: Mapping[str, FloatArray]) -> None:
    """Keep the losses by cutoff and series in the folder: of many series they are too much for a report."""
    with (run.folder / LOSSES).open("wb") as file:
        np.savez(file, allow_pickle=False, **tested)


def _listed(unique_ids: Sequence[str]) -> str:
    shown = ", ".join(repr(unique_id) for unique_id in unique_ids[:5])
    return shown + (f" and {len(unique_ids) - 5} more series" if len(unique_ids) > 5 else "")


def _usable(run: Run, fitted: Sequence[Fitted]) -> list[Fitted]:
    """Return what can be compared.

    Raises:
        TrainingError: no candidate is left, or the baseline everyone is measured by is not.
    """
    usable = [f for f in fitted if f["error"] is None]
    names = {f["name"] for f in usable}
    if "seasonal_naive" not in names or not any(c.name in names for c in run.job.candidates):
        causes = "; ".join(f"{f['name']}: {f['error']}" for f in fitted if f["error"])
        raise TrainingError(f"job {run.job.name!r} has nothing to compare: {causes}")
    return usable


def _or_worst(value: float) -> float:
    return value if math.isfinite(value) else math.inf


@dataclass(frozen=True)
class Champion:
    """The model in use, as far as it can be compared with."""

    name: str = ""
    forecaster: Forecaster | None = None
    input_size: int = 0
    version: str | None = None
    training: str | None = None
    """The digest of its training settings."""
    why_not: str | None = None
    """Why there is a champion and no comparison."""


def _load_champion(run: Run) -> Champion:
    """Fetch the champion, if there is one that answers the same question on this data."""
    version = champion_or_none(run.registry, run.job.name)
    if version is None:
        return Champion()
    try:
        forecaster = load_version(run.registry, version)
    except RegistryUnavailableError:
        raise
    except (ArtifactError, RegistryError) as error:
        return _not_compared(run, version, f"cannot be loaded: {error}")
    spec = forecaster.spec
    asked = run.job.spec_of(spec.network)
    aside = {"format_version", "network", "covariates", "level"}
    if spec.model_dump(exclude=aside) != asked.model_dump(exclude=aside):
        return _not_compared(run, version, "answers another question than this job")
    if spec.input_size > run.split.cutoffs[0] + 1:
        return _not_compared(run, version, f"needs {spec.input_size} steps before the first test cutoff")
    name = f"champion v{version.version}"
    return Champion(name, forecaster, spec.input_size, version.version, version.tags.get(TAG_TRAINING))


def _not_compared(run: Run, version: ModelVersion, why: str) -> Champion:
    reason = f"champion v{version.version} {why}"
    run.reporter.say(f"not compared with: {reason}")
    return Champion(version=version.version, why_not=reason)


def _is_refresh(run: Run, name: str, champion: Champion) -> bool:
    """Return whether a candidate is the champion's configuration, to be compared as it trained anew."""
    if champion.forecaster is None or champion.training != _training_digest(run, name):
        return False
    return not _unlike(champion.forecaster.spec, run.spec_of(name))


def _training_digest(run: Run, name: str) -> str:
    """Return the digest of the settings that shape a candidate's weights; where they came about is no matter."""
    aside = ("device", "start", "max_seconds")
    settings = {key: value for key, value in run.training(name).items() if key not in aside}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def publish_best(run: Run, parent: str, report: Report) -> str:
    """Register the best candidate as a new version with the alias challenger; once, however often asked."""
    name, best = run.job.name, report["best"]
    version = _published(run)
    if version is None:
        run.tracker.finish_training(parent, leaderboard(report["scores"], run.job.gate.metric), best)
        tags = {
            TAG_RUN_KEY: run.key,
            "hindcast.candidate": best,
            TAG_TRAINING: _training_digest(run, best),
            **ledger_tags(run.job),
            "hindcast.data_digest": run.panel.digest(),
            "hindcast.data_end": str(run.panel.ds[-1]),
            TAG_TRACKING_RUN: parent,
            **{f"hindcast.test_{key}": f"{value:.6g}" for key, value in report["scores"][best].items()},
        }
        version = run.registry.publish(name, run.artifact(best), tags, parent)
    run.registry.set_alias(name, CHALLENGER, version.version)
    run.reporter.say(f"{name}: {best} is version {version.version}")
    return version.version


def ledger_tags(job: JobConfig) -> dict[str, str]:
    """Return what a version has to tell of the ledger: where its series are, and how its forecasts are issued."""
    online = "true" if job.online_intervals else "false"
    return {TAG_DATASET: dataset_of(job), TAG_TARGET: job.target.column, TAG_ONLINE_INTERVALS: online}


def _published(run: Run) -> ModelVersion | None:
    """Return the version an earlier, interrupted attempt of this run published."""
    try:
        versions = run.registry.versions(run.job.name)
    except ModelNotFoundError:
        return None
    return next((v for v in versions if v.tags.get(TAG_RUN_KEY) == run.key), None)


def decide_promotion(run: Run, parent: str, report: Report, version: str) -> dict[str, Any]:
    """Ask the gate, once, however often this is called; write its decision to tags, the ledger and MLflow.

    Tags come first, then the ledger, and only the next step moves an alias: where one of them does not answer,
    nothing is promoted, and the repeated step writes the same decision again.
    """
    name, key = run.job.name, f"{run.key}:{GATE}"
    recorded = run.ledger.decisions.find(key)
    decision = _ask_gate(run, report, version, key) if recorded is None else as_decision(recorded)
    run.registry.annotate(name, version, tags_of(decision))
    run.ledger.decisions.record(
        RecordedDecision(
            key=key,
            model=name,
            version=version,
            against=report["champion_version"],
            action=decision.action,
            by=GATE,
            kind=decision.numbers.get("kind", "none"),
            reason=decision.reason,
            numbers=decision.numbers,
        )
    )
    run.tracker.decide(parent, tags_of(decision))
    run.reporter.say(f"{name} version {version} {VERDICTS[decision.action]}: {decision.reason}")
    return asdict(decision)


def _ask_gate(run: Run, report: Report, version: str, key: str) -> Decision:
    gate, champion = run.job.gate, report["champion"]
    decision = decide(
        evidence(run, report, report["best"]),
        None if champion is None else evidence(run, report, champion),
        evidence(run, report, "seasonal_naive"),
        gate,
        lags=math.ceil(run.job.horizon / run.job.step_size) - 1,
        refresh=report["refresh"],
        account=account_of(run.ledger.decisions, run.job, "refresh" if report["refresh"] else "new", key),
    )
    action, reason = decision.action, decision.reason
    if report["not_compared"]:
        reason += f" ({report['not_compared']})"
    taken = resolve_or_none(run.registry, run.job.name, SHADOW)
    if action == "shadow" and taken is not None and taken.version != version:
        action, reason = "keep", f"{reason}; version {taken.version} is in the shadow"
    return Decision(action, reason, decision.numbers)


def account_of(decisions: DecisionStore, job: JobConfig, kind: str, key: str) -> Account:
    """Return what the decisions on record before this one have spent of alpha on looks of its kind."""
    looks = [look for look in decisions.looks(job.name, kind) if look.key != key]
    opened = len(looks) // job.gate.looks * job.gate.looks
    promoted = decisions.promoted(job.name)
    return Account(len(looks) - opened, sum(look.version in promoted for look in looks[opened:]))


def evidence(run: Run, report: Report, name: str) -> Evidence:
    """Return what a forecaster showed, as the gate takes it."""
    with np.load(run.folder / LOSSES, allow_pickle=False) as tested:
        return Evidence(name, report["scores"][name][run.job.gate.metric], tested[name])


def promote_version(run: Run, version: str) -> str:
    """Make a version the champion, and let the one before it forecast on in the shadow; return the champion.

    Unless the champion it was compared with made way in the meantime: a person, or a trial, was faster, and nobody
    knows which of the two is better.
    """
    name = run.job.name
    decided, champion = run.ledger.decisions.find(f"{run.key}:{GATE}"), champion_or_none(run.registry, name)
    if decided and champion and champion.version not in (decided.against, version):
        reason = f"version {champion.version} became the champion before it, and they were not compared"
        void = replace(decided, key=f"{run.key}:{GATE}:void", action="keep", kind="void", reason=reason)
        run.registry.annotate(name, version, tags_of(as_decision(void)))
        run.ledger.decisions.record(void)
        run.reporter.say(f"{name} version {version} {VERDICTS['keep']}: {reason}")
        return champion.version
    promoted = promote(run.registry, name, version).version
    watch_previous(run.registry, name)
    return promoted


def start_trial(run: Run, version: str) -> str:
    """Let a version forecast beside the champion."""
    run.registry.set_alias(run.job.name, SHADOW, version)
    return version
