"""Walk-forward evaluation: refitted as time goes on, each fit tested on nothing but what came after it.

A fold is a training block, a validation block, an embargo nobody uses, and the test cutoffs until the next refit.
Everything that is fitted, calibrated or chosen in a fold comes from before its embargo (purging and embargo: López
de Prado, 2018, Advances in Financial Machine Learning, chapter 7).

B forecasts (a series and a cutoff each).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from forecasting.panel import Panel
from training.backtest import Backtest, plan_split
from training.job import JobConfig
from training.skewed_t import SkewedT
from training.windows import Split


def plan_folds(panel: Panel, job: JobConfig) -> tuple[Split, ...]:
    """Divide the test cutoffs into folds, in the order of time; a job without `refit_every` has one.

    The first fold is fitted before the first cutoff, and the next before the first cutoff that lies `refit_every`
    steps or more after that, and so on. Training blocks grow, validation blocks keep their size and move along.

    Raises:
        TrainingError: the data is too short for the first fold; the message has the numbers.
    """
    whole = plan_split(panel, job)
    every = job.evaluation.refit_every
    if every is None:
        return (whole,)
    first = whole.cutoffs[0]
    return tuple(
        _moved(whole, tuple(cutoffs))
        for _, cutoffs in groupby(whole.cutoffs, key=lambda cutoff: (cutoff - first) // every)
    )


def _moved(whole: Split, cutoffs: tuple[int, ...]) -> Split:
    steps = cutoffs[0] - whole.cutoffs[0]
    return Split(validation=whole.validation + steps, test=whole.test + steps, cutoffs=cutoffs)


def join_backtests(parts: Sequence[Backtest]) -> Backtest:
    """Return the backtests of the folds of one forecaster as one, in the order of time."""
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[-1],
        series_B=np.concatenate([part.series_B for part in parts]),
        cutoff_B=np.concatenate([part.cutoff_B for part in parts]),
        actual_BH=np.concatenate([part.actual_BH for part in parts]),
        quantiles_BHQ=np.concatenate([part.quantiles_BHQ for part in parts]),
        scales=(
            np.concatenate([part.scales[0] for part in parts]),
            np.concatenate([part.scales[1] for part in parts]),
        ),
        first_B=_join_densities([part.first_B for part in parts]),
    )


def _join_densities(parts: Sequence[SkewedT | None]) -> SkewedT | None:
    """Return the densities of all folds; none where the forecaster of any fold tells none."""
    told = [density for density in parts if density is not None]
    if len(told) < len(parts):
        return None
    return SkewedT(*map(np.concatenate, zip(*told, strict=True)))
