"""Networks that misbehave when a history holds a marked value; as a module, the service with such networks.

`python -m tests.service.faults` is `python -m service`, whose networks answer to these marks.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forecasting.covariates import Covariates
from forecasting.forecaster import Forecaster

FloatArray = NDArray[np.float64]

EXITS, OUT_OF_MEMORY, HANGS, SLOW, WAITS = 66601.0, 66602.0, 66603.0, 66604.0, 66605.0
SLOW_SECONDS = 0.3

_predict = Forecaster.predict


def misbehave(self: Forecaster, y_BL: FloatArray, covariates: Covariates | None = None) -> FloatArray:
    """Forecast, unless a history is marked."""
    if (y_BL == EXITS).any():
        raise SystemExit(3)
    if (y_BL == OUT_OF_MEMORY).any():
        raise MemoryError
    if (y_BL == HANGS).any():
        time.sleep(3600)
    if (y_BL == SLOW).any():
        time.sleep(SLOW_SECONDS)
    while (y_BL == WAITS).any() and not Path(os.environ["HINDCAST_TEST_GATE"]).exists():
        time.sleep(0.05)
    return _predict(self, y_BL, covariates)


def body_of(mark: float, *, large: bool = False) -> dict[str, object]:
    """Build a request whose history is marked; a large one is forecast in the inference thread."""
    y = [mark, *(float(i % 7) for i in range((LARGE if large else SMALL) - 1))]
    series = [{"unique_id": "a", "start": "2024-01-01", "y": y}]
    return {"model": "large" if large else "pump", "series": series}


SMALL, LARGE = 12, 9000
"""Values of a history: as many as the models `pump` and `large` need."""


if __name__ == "__main__":
    from service.__main__ import main

    Forecaster.predict = misbehave  # type: ignore[method-assign]
    sys.exit(main())
