"""Covariates: what a forecaster is told besides the values of a series, as it comes and as a network takes it.

B batch, L input_size, H horizon, T = L + H, P past columns, F future columns, K calendar columns, S statics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import Calendar, timestamps_after
from forecasting.calendar_features import calendar_features, n_columns
from forecasting.errors import InputError
from forecasting.spec import CovariatesSpec, StaticSpec

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

UNKNOWN = 0
"""The code of a name that was not there in training; category i of the spec has the code i + 1."""


@dataclass(frozen=True)
class Covariates:
    """What is known besides the values, a row a history; NaN where missing.

    A column the spec names and that is not given is missing throughout: the network was trained to do without.
    """

    cutoff_B: pd.DatetimeIndex
    """The timestamp of each history's last step."""
    past_BLP: FloatArray | None = None
    """Columns known up to the cutoff, in the order of the spec."""
    future_BTF: FloatArray | None = None
    """Columns known over the horizon too, in the order of the spec."""
    static: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By name, one value a history."""

    def rows(self, chosen: slice | IntArray) -> "Covariates":
        """Return some of the histories' covariates."""
        places = range(len(self.cutoff_B))[chosen] if isinstance(chosen, slice) else chosen
        return Covariates(
            self.cutoff_B[chosen],
            None if self.past_BLP is None else self.past_BLP[chosen],
            None if self.future_BTF is None else self.future_BTF[chosen],
            {name: [values[place] for place in places] for name, values in self.static.items()},
        )

    @classmethod
    def join(cls, parts: Sequence["Covariates"]) -> "Covariates":
        """Put histories together that are told the same columns."""
        first = parts[0]
        return cls(
            pd.DatetimeIndex(np.concatenate([part.cutoff_B.to_numpy() for part in parts])),
            _concatenate([part.past_BLP for part in parts]),
            _concatenate([part.future_BTF for part in parts]),
            {name: [label for part in parts for label in part.static[name]] for name in first.static},
        )


def _concatenate(parts: Sequence[FloatArray | None]) -> FloatArray | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if known else None


def encode_static(names: Sequence[str], static: StaticSpec) -> IntArray:
    """Return the code of each name, UNKNOWN for one that was not there in training."""
    return np.array([static.codes.get(str(name), UNKNOWN) for name in names], dtype=np.int64)


def static_codes(covariates: Covariates, spec: CovariatesSpec) -> IntArray:
    """Return the `(B, S)` codes of every static, UNKNOWN where a name is new or not given."""
    n = len(covariates.cutoff_B)
    columns = [encode_static(covariates.static.get(static.name, ("",) * n), static) for static in spec.static]
    return np.stack(columns, axis=1) if columns else np.empty((n, 0), dtype=np.int64)


def past_columns(covariates: Covariates, spec: CovariatesSpec, input_size: int) -> FloatArray:
    """Return the last `input_size` steps of the past columns `(B, L, P)`, NaN where missing.

    Raises:
        InputError: the columns given are not those of the spec, or too short.
    """
    shape = (len(covariates.cutoff_B), input_size, len(spec.past))
    if covariates.past_BLP is None:
        return np.full(shape, np.nan)
    past_BLP = covariates.past_BLP[:, -input_size:]
    if past_BLP.shape != shape:
        raise InputError(f"past covariates of shape {covariates.past_BLP.shape}; this model needs {shape}")
    if "overnight" in spec.ranges:
        # The close before a window is not in it: whoever asks, with however long a history, is told the same.
        past_BLP = past_BLP.copy()
        past_BLP[:, 0, spec.past.index("overnight")] = np.nan
    return past_BLP


def future_columns(
    covariates: Covariates, spec: CovariatesSpec, input_size: int, horizon: int, calendar: Calendar
) -> FloatArray:
    """Return future and calendar columns `(B, T, F + K)` from the window's first step to the horizon's last.

    Raises:
        InputError: the columns given are not those of the spec, or too short.
    """
    shape = (len(covariates.cutoff_B), input_size + horizon, len(spec.future))
    future_BTF = covariates.future_BTF
    future_BTF = np.full(shape, np.nan) if future_BTF is None else future_BTF[:, -shape[1] :]
    if future_BTF.shape != shape:
        raise InputError(f"future covariates of shape {future_BTF.shape}; this model needs {shape}")
    if not spec.calendar:
        return future_BTF
    return np.concatenate([future_BTF, _calendar_columns(covariates, spec, shape, input_size, calendar)], axis=2)


def _calendar_columns(
    covariates: Covariates, spec: CovariatesSpec, shape: tuple[int, int, int], input_size: int, calendar: Calendar
) -> FloatArray:
    """Make the columns of each distinct cutoff once: the series of one request mostly share theirs."""
    n_series, n_steps, _ = shape
    stamps, stamp_B = np.unique(covariates.cutoff_B.to_numpy(), return_inverse=True)
    made_STK = np.empty((len(stamps), n_steps, n_columns(spec.calendar)))
    for i, cutoff in enumerate(pd.DatetimeIndex(stamps)):
        ahead = timestamps_after(calendar, cutoff, n_steps - input_size)
        ds = pd.DatetimeIndex(calendar.ending(cutoff, input_size).append(ahead))
        made_STK[i] = calendar_features(calendar, ds, spec.calendar, spec.country)
    return made_STK[stamp_B.reshape(n_series)]
