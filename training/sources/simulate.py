"""A seeded network of sensors: what real ones do, well and badly, in known doses.

N sensors, T steps, K shared factors.
"""

from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator

from forecasting.calendar import parse_freq
from forecasting.errors import CalendarError, SourceError
from training.sources.base import SourceConfig, SourceContext

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MAX_VALUES = 50_000_000
"""Most values in one frame: about 2 GB with everything that makes them."""

_DAY_US = 86_400_000_000
_FADED = 1e-3


class SimulateSource(SourceConfig):
    """Sensors with cycles, weather they share, drift, noise, and stretches that are stuck or missing."""

    kind: Literal["simulate"] = Field("simulate", description="Simulated sensors; the value column is y.")
    n_sensors: int = Field(10, ge=1, le=100_000, description="Series: sensor-0, sensor-1, ...")
    n_steps: int = Field(2_000, ge=1, le=MAX_VALUES, description="Steps of each series.")
    freq: str = Field("h", description="Pandas alias or exchange calendar of the steps.")
    start: datetime = Field(
        datetime(2024, 1, 1),  # a date on the grid, or an instant in UTC: panels are naive
        description="First timestamp: a date where steps are whole days, else an instant in UTC.",
    )
    seed: int = Field(1, ge=0, le=2**32 - 1, description="The same seed gives the same frame.")
    level: float = Field(20.0, allow_inf_nan=False, description="Value the sensors hover around.")
    daily_amplitude: float = Field(
        3.0, ge=0, allow_inf_nan=False, description="Usual height of the daily cycle; unseen by steps of a day."
    )
    weekly_amplitude: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Usual height of the weekly cycle; unseen by steps of a week."
    )
    fluctuation: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Standard deviation of the weather, which sensors share."
    )
    n_factors: int = Field(
        3, ge=1, le=100, description="Kinds of weather each sensor mixes in its own way; 1 makes all move as one."
    )
    memory: float = Field(
        0.95, ge=0, le=0.9999, description="What is left of the weather one step later; 0 forgets at once."
    )
    drift: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Standard deviation of each sensor's wandering in 1,000 steps."
    )
    noise: float = Field(0.3, ge=0, allow_inf_nan=False, description="Standard deviation of the reading error.")
    stuck_rate: float = Field(0.01, ge=0, lt=1, description="Share of readings that repeat the one before.")
    stuck_length: int = Field(12, ge=2, le=100_000, description="Equal readings in one stuck stretch.")
    missing_rate: float = Field(0.02, ge=0, lt=1, description="Share of readings that are missing.")
    missing_length: int = Field(6, ge=1, le=100_000, description="Steps of one missing stretch.")

    @field_validator("freq")
    @classmethod
    def _freq_is_known(cls, freq: str) -> str:
        parse_freq(freq)
        return freq

    def load(self, context: SourceContext) -> pd.DataFrame:
        """Return `n_sensors` times `n_steps` rows, NaN where a reading is missing.

        Raises:
            SourceError: `start` is not on the grid of `freq`, or the rows would not fit into memory.
        """
        del context
        if self.n_sensors * self.n_steps > MAX_VALUES:
            raise SourceError(
                f"{self.n_sensors} sensors with {self.n_steps} steps each are too many: "
                f"at most {MAX_VALUES} values are simulated"
            )
        ds = self._timestamps()
        names = np.array([f"sensor-{n}" for n in range(self.n_sensors)], dtype=object)
        return pd.DataFrame(
            {
                "unique_id": names.repeat(self.n_steps),
                "ds": np.tile(ds.to_numpy(), self.n_sensors),
                "y": self._simulate(ds).ravel(),
            }
        )

    def _timestamps(self) -> pd.DatetimeIndex:
        start = pd.Timestamp(self.start)
        try:
            return parse_freq(self.freq).range(start.tz_convert(None) if start.tz else start, self.n_steps)
        except CalendarError as error:
            raise SourceError(f"the simulated sensors cannot start there: {error}") from error

    def _simulate(self, ds: pd.DatetimeIndex) -> FloatArray:
        rng = np.random.default_rng(self.seed)
        shape = (self.n_sensors, self.n_steps)
        y_NT = np.full(shape, self.level)
        y_NT += _cycles(rng, ds, _DAY_US, self.daily_amplitude, self.n_sensors)
        y_NT += _cycles(rng, ds, 7 * _DAY_US, self.weekly_amplitude, self.n_sensors)
        y_NT += self.fluctuation * self._weather(rng)
        y_NT += (self.drift / np.sqrt(1_000)) * rng.standard_normal(shape).cumsum(axis=1)
        y_NT += self.noise * rng.standard_normal(shape)
        # The first of the equal readings is a good one, so a stretch is one step shorter.
        y_NT = _stick(y_NT, _stretches(rng, shape, self.stuck_rate, self.stuck_length - 1))
        y_NT[_stretches(rng, shape, self.missing_rate, self.missing_length)] = np.nan
        return y_NT

    def _weather(self, rng: np.random.Generator) -> FloatArray:
        """Return autoregressive factors of unit variance, mixed with positive weights: sensors agree on them."""
        weight_NK = np.abs(rng.standard_normal((self.n_sensors, self.n_factors)))
        weight_NK /= np.linalg.norm(weight_NK, axis=1, keepdims=True)
        length = int(np.ceil(np.log(_FADED) / np.log(self.memory))) if self.memory > 0 else 1
        echo = np.power(self.memory, np.arange(max(1, length)), dtype=np.float64)
        shock_KT = rng.standard_normal((self.n_factors, self.n_steps + len(echo) - 1))
        mixed: FloatArray = weight_NK @ (_convolve(shock_KT, echo) / np.linalg.norm(echo))
        return mixed


def _convolve(shock_KT: FloatArray, echo: FloatArray) -> FloatArray:
    """Return every shock followed by its echo, where the whole echo lies within the data."""
    n = shock_KT.shape[1]
    summed = np.fft.irfft(np.fft.rfft(shock_KT, n) * np.fft.rfft(echo, n), n)
    return summed[:, len(echo) - 1 :]  # what comes before has wrapped around


def _cycles(
    rng: np.random.Generator, ds: pd.DatetimeIndex, period_us: int, amplitude: float, n_sensors: int
) -> FloatArray:
    """Return one sine a sensor, with a height and a delay of its own; zero if steps are whole periods."""
    height_N1 = amplitude * rng.uniform(0.5, 1.5, (n_sensors, 1))
    delay_N1 = rng.normal(0, 0.1, (n_sensors, 1))
    phase_T = ds.asi8 % period_us / period_us
    visible = phase_T.min() != phase_T.max()
    return height_N1 * np.sin(2 * np.pi * (phase_T - delay_N1)) if visible else np.zeros((n_sensors, 1))


def _stretches(rng: np.random.Generator, shape: tuple[int, int], rate: float, length: int) -> BoolArray:
    """Mark stretches of `length` steps, which may touch and overlap, so that `rate` of all steps are marked."""
    begins_NT = rng.random(shape) < 1 - (1 - rate) ** (1 / length)
    step_T = np.arange(shape[1], dtype=np.int32)
    begun_NT = np.maximum.accumulate(np.where(begins_NT, step_T, np.int32(-length)), axis=1)
    return step_T - begun_NT < length


def _stick(y_NT: FloatArray, stuck_NT: BoolArray) -> FloatArray:
    """Repeat the last good reading through every stuck stretch."""
    stuck_NT[:, 0] = False
    good_NT = np.where(stuck_NT, 0, np.arange(y_NT.shape[1]))
    return np.take_along_axis(y_NT, np.maximum.accumulate(good_NT, axis=1), axis=1)
