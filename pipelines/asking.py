"""Asking: the artefacts in a run's folder, reloaded, each at the cutoffs of its fold."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from forecasting.artifact import load_artifact
from forecasting.errors import TrainingError
from forecasting.forecaster import Forecaster
from pipelines.run import Run
from training.backtest import Backtest, run_backtest
from training.walk_forward import join_backtests


def backtest_of(run: Run, artifact: Path, cutoffs: Sequence[int], history_needed: int | None = None) -> Backtest:
    """Reload an artefact and ask it at the given cutoffs of the run's panel."""
    return ask(run, load_artifact(artifact), cutoffs, history_needed or run.history_needed)


def ask(run: Run, forecaster: Forecaster, cutoffs: Sequence[int], history_needed: int) -> Backtest:
    """Ask a forecaster at the given cutoffs of the run's panel."""
    return run_backtest(forecaster, run.panel, cutoffs, history_needed=history_needed, in_sample=run.split.test)


def whole_backtest(run: Run, name: str, history_needed: int | None = None) -> Backtest:
    """Ask the artefacts of a forecaster, each at the test cutoffs of its fold.

    Raises:
        TrainingError: no series can be asked at any of them.
    """
    return chosen_backtest(run, [name] * len(run.folds), history_needed)


def chosen_backtest(run: Run, names: Sequence[str], history_needed: int | None = None) -> Backtest:
    """Ask the artefact of a forecaster in each fold, not always the same one."""
    parts = []
    for part, name in zip(run.by_fold, names, strict=True):
        # In a fold of a few cutoffs there may be nothing to ask.
        with suppress(TrainingError):
            parts.append(backtest_of(part, part.artifact(name), part.split.cutoffs, history_needed))
    # If it is so in all of them, this says why.
    return (
        join_backtests(parts) if parts else backtest_of(run, run.artifact(names[-1]), run.cutoffs, history_needed)
    )
