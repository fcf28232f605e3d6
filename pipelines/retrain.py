"""Retraining: load, fit, backtest, publish, decide, promote.

`retrain` is the whole story; the functions below it are its steps. Each step leaves its work in the run's
folder or in MLflow and returns plain data, so that a scheduler can remember what is done and a run that was
killed goes on where it stopped.
"""

import math
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

import pandas as pd

from forecasting.errors import HindcastError, ModelNotFoundError, RegistryError
from forecasting.registry import (
    CHALLENGER,
    SHADOW,
    TAG_DATASET,
    TAG_ONLINE_INTERVALS,
    TAG_TARGET,
    ModelVersion,
    champion_or_none,
    promote,
    resolve_or_none,
    watch_previous,
)
from ledger.decisions import GATE, DecisionStore, RecordedDecision
from pipelines.champion import TAG_TRAINING, training_digest
from pipelines.comparison import Report, backtest_all, case_of
from pipelines.fitting import fit_all
from pipelines.load import dataset_of, load_data
from pipelines.promotion import VERDICTS, Account, Decision, decide
from pipelines.rivals import RIVALS_ASKED
from pipelines.run import FOLDS, Run
from pipelines.steps import StepRunner, run_now
from pipelines.trial import TAG_TRACKING_RUN, as_decision, tags_of
from training.backtest import leaderboard
from training.job import JobConfig

TAG_RUN_KEY = "hindcast.run_key"
"""Marks a version with the retraining that published it, so that a repeated step finds it again."""

TAG_VERDICT = "hindcast.verdict"
"""Says of a stock job's version and training whether there is skill, in what, and against whom."""


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
    for made in ("fitted", FOLDS, RIVALS_ASKED):
        shutil.rmtree(run.folder / made, ignore_errors=True)
    return run.tracker.start_training(run.panel, {TAG_RUN_KEY: run.key})


def close_tracking(run: Run, parent: str, status: str) -> None:
    """Close the parent run in MLflow, and what is left open below it."""
    if status != "FINISHED":
        run.tracker.end_candidates(parent)
    run.tracker.end_run(parent, status)


def publish_best(run: Run, parent: str, report: Report) -> str:
    """Register the best candidate as a new version with the alias challenger; once, however often asked."""
    name, best = run.job.name, report["best"]
    version = _published(run)
    if version is None:
        run.tracker.finish_training(parent, leaderboard(report["scores"], run.job.gate.metric), best)
        verdict = {} if report["verdict"] is None else {TAG_VERDICT: report["verdict"]}
        run.tracker.decide(parent, verdict)
        tags = {
            TAG_RUN_KEY: run.key,
            **verdict,
            "hindcast.candidate": best,
            TAG_TRAINING: training_digest(run, best),
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
    case = case_of(run, report)
    decision = decide(
        case.challenger,
        case.champion,
        case.seasonal_naive,
        run.job.gate,
        lags=math.ceil(run.job.horizon / run.job.step_size) - 1,
        refresh=report["refresh"],
        account=account_of(run.ledger.decisions, run.job, "refresh" if report["refresh"] else "new", key),
        meeting=case.meeting,
    )
    action, reason = decision.action, decision.reason
    if report["not_compared"]:
        reason += f" ({report['not_compared']})"
    numbers = decision.numbers if report["verdict"] is None else decision.numbers | {"verdict": report["verdict"]}
    taken = resolve_or_none(run.registry, run.job.name, SHADOW)
    if action == "shadow" and taken is not None and taken.version != version:
        action, reason = "keep", f"{reason}; version {taken.version} is in the shadow"
    return Decision(action, reason, numbers)


def account_of(decisions: DecisionStore, job: JobConfig, kind: str, key: str) -> Account:
    """Return what the decisions on record before this one have spent of alpha on looks of its kind."""
    looks = [look for look in decisions.looks(job.name, kind) if look.key != key]
    opened = len(looks) // job.gate.looks * job.gate.looks
    promoted = decisions.promoted(job.name)
    return Account(len(looks) - opened, sum(look.version in promoted for look in looks[opened:]))


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
