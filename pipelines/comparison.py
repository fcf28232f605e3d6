"""Comparison: every forecaster that was fitted, and the champion, asked the same questions of the test block.

K test cutoffs, N series.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from forecasting.artifact import load_artifact
from forecasting.errors import ArtifactError, RegistryError, RegistryUnavailableError, TrainingError
from forecasting.forecaster import Forecaster
from forecasting.registry import ModelVersion, champion_or_none, load_version
from pipelines.fanout import map_tasks
from pipelines.fitting import Fitted, unlike
from pipelines.promotion import Evidence
from pipelines.report import Reporter
from pipelines.run import Run
from training.backtest import Backtest, run_backtest, validation_cutoffs

TAG_TRAINING = "hindcast.training_digest"
"""Marks a version with its training settings: with the same spec and settings, a later one is its refresh."""

LOSSES = "losses.npz"

FloatArray = NDArray[np.float64]


class Shown(NamedTuple):
    """What one forecaster showed in the backtest."""

    scores: dict[str, float]
    validation: dict[str, float]
    tested_KN: FloatArray
    """The gate metric by test cutoff and series."""


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
    tested = {name: one.tested_KN for name, one in shown.items()}
    for f in fitted:
        if f["run_id"] is not None:
            run.tracker.log_skill(f["run_id"], scores[f["name"]], scores["seasonal_naive"])
    trained = [c.name for c in run.job.candidates if c.name in validation]
    best = min(trained, key=lambda name: _or_worst(validation[name][metric]))
    if champion.forecaster is not None:
        test = _ask(run, champion.forecaster, run.split.cutoffs, needed)
        scores[champion.name], tested[champion.name] = test.scores(), test.loss_by_series(metric)
    _save_losses(run, {name: tested[name] for name in (best, "seasonal_naive", champion.name) if name})
    return {
        "best": best,
        "champion": champion.name if champion.forecaster is not None else None,
        "champion_version": champion.version,
        "refresh": champion.forecaster is not None and _is_refresh(run, best, champion),
        "not_compared": champion.why_not,
        "scores": scores,
        "validation": validation,
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
    return Shown(test.scores(), before.scores(), test.loss_by_series(metric))


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
    if champion.forecaster is None or champion.training != training_digest(run, name):
        return False
    return not unlike(champion.forecaster.spec, run.spec_of(name))


def training_digest(run: Run, name: str) -> str:
    """Return the digest of the settings that shape a candidate's weights; where they came about is no matter."""
    aside = ("device", "start", "max_seconds")
    settings = {key: value for key, value in run.training(name).items() if key not in aside}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def evidence(run: Run, report: Report, name: str) -> Evidence:
    """Return what a forecaster showed, as the gate takes it."""
    with np.load(run.folder / LOSSES, allow_pickle=False) as tested:
        return Evidence(name, report["scores"][name][run.job.gate.metric], tested[name])
