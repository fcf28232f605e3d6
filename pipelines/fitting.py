"""Fitting: every forecaster of a comparison from the run's panel to its artefact, in turn or side by side."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypedDict

from forecasting.artifact import save_artifact
from forecasting.errors import ArtifactError, RegistryError, SourceError, TrainingError
from forecasting.forecaster import Forecaster
from forecasting.networks import QuantileNetwork
from forecasting.registry import champion_or_none, load_version
from forecasting.spec import BASELINE_KINDS, ForecasterSpec
from pipelines.fanout import map_tasks, open_fan_out
from pipelines.report import Reporter
from pipelines.run import Run
from pipelines.steps import StepRunner, run_now
from training.baselines import fit_baseline
from training.calibrate import calibrate
from training.fit import FittingFactory, Log, fit, log_nothing
from training.job import TrainingConfig
from training.partitioned import LocalResult, LocalRound, partitioned, train_round, write_partitions
from training.windows import Windows


class Fitted(TypedDict):
    """One forecaster after fitting: its MLflow run, or why there is no model."""

    name: str
    run_id: str | None
    error: str | None


def fit_all(run: Run, parent: str | None, step: StepRunner = run_now) -> list[Fitted]:
    """Fit every forecaster in every fold: in turn, a step each; or several at a time, in one step.

    Who gives no usable model in a fold is fitted in none after it: the folds of a comparison are compared whole.
    """
    if not run.settings.in_turn:
        return step("fit", fit_side_by_side, run, parent)
    fitted: dict[str, Fitted] = {}
    for fold in range(len(run.folds)):
        part = run.in_fold(fold)  # one at a time: its data are on the device
        for name in run.networks:
            if name not in fitted or fitted[name]["error"] is None:
                fitted[name] = step(f"fit {part.title(name)}", fit_forecaster, part, parent, name)
    return [fitted[name] for name in run.networks]


def fit_side_by_side(run: Run, parent: str | None) -> list[Fitted]:
    """Fit every forecaster, several at a time; those that an interrupted attempt finished are not fitted again."""
    failed = {f["name"]: f for f in _fit_beside(run, run.by_fold[:-1], parent, list(run.networks)) if f["error"]}
    going_on = [name for name in run.networks if name not in failed]
    fitted = failed | {f["name"]: f for f in _fit_beside(run, [run], parent, going_on)}
    return [fitted[name] for name in run.networks]


def _fit_beside(run: Run, parts: Sequence[Run], parent: str | None, names: Sequence[str]) -> list[Fitted]:
    # Those in partitions come after the others: each is shared out by itself.
    apart = [name for name in names if run.training(name).get("partitions", 1) > 1]
    tasks = {
        f"fit {part.title(name)}": (part.elsewhere, parent, name)
        for part in parts
        for name in names
        if name not in apart
    }
    done = map_tasks(fit_once, tasks, run.settings, run.reporter)
    return [*done.values(), *(fit_once(run.reporter, part, parent, name) for part in parts for name in apart)]


def fit_once(reporter: Reporter, run: Run, parent: str | None, name: str) -> Fitted:
    """Fit one forecaster, and leave a note of it in its fold's folder; return what a note there says."""
    note = run.workshop / "fitted" / f"{name}.json"
    if note.is_file():
        known: Fitted = json.loads(note.read_text())
        return known
    if not (run.folder / "panel.npz").is_file():
        raise SourceError(
            f"{run.folder} holds no data: HINDCAST_HOME must lie on a file system that all machines share"
        )
    fitted = fit_forecaster(run.told_to(reporter), parent, name)
    note.parent.mkdir(parents=True, exist_ok=True)
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
        title = run.title(name)
        run.reporter.done(title)
        run.reporter.say(f"{title} failed: {error}")
        return {"name": name, "run_id": None, "error": str(error) if title == name else f"{title}: {error}"}


def _fit_tracked(run: Run, parent: str | None, name: str) -> str | None:
    # A candidate has one run in MLflow, and that is of the model which may be published.
    if parent is None or run.fold is not None:
        _fit(run, name, log_nothing)
        return None
    params = {"network": run.networks[name].model_dump(), "training": run.training(name)}
    with run.tracker.candidate(parent, name, params) as tracked:
        _fit(run, name, tracked.log_epoch)
    return tracked.run_id


def _fit(run: Run, name: str, log: Log) -> None:
    job, spec, title = run.job, run.spec_of(name), run.title(name)
    train = Windows(run.tensors, spec.input_size, job.horizon, 0, run.split.validation)
    validation = Windows(run.tensors, spec.input_size, job.horizon, run.split.validation, run.split.test)
    candidate = run.candidate(name)
    if candidate is None or candidate.network.kind in BASELINE_KINDS:
        network = fit_baseline(spec, train, validation)
    else:
        config = job.training_of(candidate)

        def log_and_report(metrics: Mapping[str, float], epoch: int) -> None:
            log(metrics, epoch)
            run.reporter.epoch(title, epoch, config.max_epochs * config.members, metrics)

        warm = _warm_start(run, name, spec) if config.start == "warm" else None
        with _fitting_of(run, config) as fitting:
            result = fit(spec, config, train, validation, log_and_report, warm=warm, fitting=fitting)
        run.reporter.done(title)
        run.reporter.say(
            f"{title}: best epoch {result.best_epoch} of {result.epochs} ({result.stopped_by}), "
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
    home = run.workshop / f"partitions-{config.partitions}"
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
    differs = unlike(champion.spec, spec)
    if differs:
        run.reporter.say(f"{name} starts from scratch: champion v{version.version} has another {differs}")
        return None
    run.reporter.say(f"{name} starts from the weights of champion v{version.version}")
    return champion.network.to(run.tensors.device)


def unlike(one: ForecasterSpec, other: ForecasterSpec) -> str:
    """Name the fields in which two specs differ, those aside that change no weight."""
    ones, others = (spec.model_dump(exclude={"format_version", "level"}) for spec in (one, other))
    return ", ".join(key for key in ones if ones[key] != others[key])
