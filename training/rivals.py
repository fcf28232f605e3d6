"""Rivals asked where forecasters are asked, so that leaderboards and tests take them alike."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from forecasting.panel import Panel
from forecasting.spec import ForecasterSpec
from training.backtest import Backtest

FloatArray = NDArray[np.float64]


def rival_backtest(
    name: str,
    panel: Panel,
    spec: ForecasterSpec,
    cutoffs: Sequence[int],
    *,
    refit_every: int,
    history_needed: int,
    in_sample: int,
    variances_NT: FloatArray | None = None,
    note: Callable[[str], None] | None = None,
) -> Backtest:
    """Ask a rival at every series and cutoff a forecaster would be asked."""
    raise NotImplementedError
