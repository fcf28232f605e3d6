"""A seeded network of sensors: what real ones do, well and badly, in known doses.

N sensors, T steps, K shared factors, S sites.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator

from forecasting.calendar import parse_freq
from forecasting.errors import CalendarError, SourceError
from training.sources.base import SourceConfig, SourceContext

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

MAX_VALUES = 50_000_000
"""Most values in one frame: about 2 GB with everything that makes them."""

_DAY_US = 86_400_000_000
_FADED = 1e-3


class _Kind(NamedTuple):
    """How a kind of sensor answers to its surroundings."""

    gain: float
    """What a step of the set point moves it by in the end."""
    lag: float
    """Steps in which it has followed by two thirds."""
    warmth: float
    """What one unit of the weather outside moves it by."""
    cycle: float
    """Height of its daily cycle, in units of `daily_amplitude`."""


KINDS = {"boiler": _Kind(1.5, 6, -1.0, 0.5), "chiller": _Kind(-1.0, 3, 1.5, 1.5), "fan": _Kind(0.5, 1, 0.5, 1.0)}
SITES = {"north": 0.0, "east": -0.2, "south": 0.3}
"""By how much of a day the cycle of a site is late."""
AMBIENT_LEAD = 6
"""Steps after which the sensors feel the weather that `ambient` reads."""
PLAN_LENGTH = 24
"""Steps a set point is usually held."""


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
    covariates: bool = Field(
        default=False,
        description="Move the sensors by what a network can be told, in the columns ambient (past: the weather "
        "outside, felt 6 steps later), setpoint (future: a planned level, followed with a lag), site and kind "
        "(static: when and how strongly).",
    )

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
        around = self._surround(ds) if self.covariates else None
        return pd.DataFrame(
            {
                "unique_id": names.repeat(self.n_steps),
                "ds": np.tile(ds.to_numpy(), self.n_sensors),
                "y": self._simulate(ds, around).ravel(),
                **({} if around is None else around.columns()),
            }
        )

    def _timestamps(self) -> pd.DatetimeIndex:
        start = pd.Timestamp(self.start)
        try:
            return parse_freq(self.freq).range(start.tz_convert(None) if start.tz else start, self.n_steps)
        except CalendarError as error:
            raise SourceError(f"the simulated sensors cannot start there: {error}") from error

    def _simulate(self, ds: pd.DatetimeIndex, around: "_Surroundings | None") -> FloatArray:
        rng = np.random.default_rng(self.seed)
        shape = (self.n_sensors, self.n_steps)
        y_NT = np.full(shape, self.level)
        y_NT += _cycles(rng, ds, _DAY_US, self.daily_amplitude, self.n_sensors)
        y_NT += _cycles(rng, ds, 7 * _DAY_US, self.weekly_amplitude, self.n_sensors)
        y_NT += self.fluctuation * self._weather(rng)
        y_NT += (self.drift / np.sqrt(1_000)) * rng.standard_normal(shape).cumsum(axis=1)
        y_NT += self.noise * rng.standard_normal(shape)
        if around is not None:
            y_NT += around.effect_NT
        # The first of the equal readings is a good one, so a stretch is one step shorter.
        y_NT = _stick(y_NT, _stretches(rng, shape, self.stuck_rate, self.stuck_length - 1))
        y_NT[_stretches(rng, shape, self.missing_rate, self.missing_length)] = np.nan
        return y_NT

    def _weather(self, rng: np.random.Generator) -> FloatArray:
        """Return autoregressive factors of unit variance, mixed with positive weights: sensors agree on them."""
        weight_NK = np.abs(rng.standard_normal((self.n_sensors, self.n_factors)))
        weight_NK /= np.linalg.norm(weight_NK, axis=1, keepdims=True)
        mixed: FloatArray = weight_NK @ self._factors(rng, self.n_factors, self.n_steps)
        return mixed

    def _factors(self, rng: np.random.Generator, n_factors: int, n_steps: int) -> FloatArray:
        length = int(np.ceil(np.log(_FADED) / np.log(self.memory))) if self.memory > 0 else 1
        echo = np.power(self.memory, np.arange(max(1, length)), dtype=np.float64)
        shock_KT = rng.standard_normal((n_factors, n_steps + len(echo) - 1))
        return _convolve(shock_KT, echo) / np.linalg.norm(echo)

    def _surround(self, ds: pd.DatetimeIndex) -> "_Surroundings":
        """Return the surroundings, drawn apart from the sensors: those stay the same without them."""
        rng = np.random.default_rng([self.seed, 1])
        number_N = np.arange(self.n_sensors)
        site_N, kind_N = number_N % len(SITES), number_N // len(SITES) % len(KINDS)
        plan_ST = 2 * _plan(rng, len(SITES), self.n_steps)
        outside_T = self._factors(rng, 1, self.n_steps + AMBIENT_LEAD)[0]
        passed_T = ds.asi8 % _DAY_US / _DAY_US
        effect_NT = np.empty((self.n_sensors, self.n_steps))
        for effect_T, site, kind in zip(effect_NT, site_N, kind_N, strict=True):
            late, how = list(SITES.values())[site], list(KINDS.values())[kind]
            effect_T[:] = how.gain * _follow(plan_ST[site], how.lag)
            effect_T += self.fluctuation * how.warmth * outside_T[: self.n_steps]
            if passed_T.min() != passed_T.max():
                effect_T += self.daily_amplitude * how.cycle * np.sin(2 * np.pi * (passed_T - late))
        reading_NT = outside_T[AMBIENT_LEAD:] + 0.2 * rng.standard_normal(effect_NT.shape)
        return _Surroundings(reading_NT, self.level + plan_ST[site_N], site_N, kind_N, effect_NT)


@dataclass(frozen=True)
class _Surroundings:
    """What the sensors are told to do and what they feel, and what that makes of their readings."""

    ambient_NT: FloatArray
    setpoint_NT: FloatArray
    site_N: IntArray
    kind_N: IntArray
    effect_NT: FloatArray

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the columns of the frame."""
        n_steps = self.effect_NT.shape[1]
        return {
            "ambient": self.ambient_NT.ravel(),
            "setpoint": self.setpoint_NT.ravel(),
            "site": np.array([*SITES], dtype=object)[self.site_N].repeat(n_steps),
            "kind": np.array([*KINDS], dtype=object)[self.kind_N].repeat(n_steps),
        }


def _plan(rng: np.random.Generator, n_plans: int, n_steps: int) -> FloatArray:
    """Return levels of unit variance, each held for a while."""
    level_ST = rng.standard_normal((n_plans, n_steps))
    begins_ST = rng.random((n_plans, n_steps)) < 1 / PLAN_LENGTH
    begun_ST = np.maximum.accumulate(np.where(begins_ST, np.arange(n_steps), 0), axis=1)
    plan_ST: FloatArray = np.take_along_axis(level_ST, begun_ST, axis=1)
    return plan_ST


def _follow(plan_T: FloatArray, lag: float) -> FloatArray:
    """Return what nears the plan step by step, by the same share of what is left."""
    kept = np.exp(-np.arange(int(np.ceil(-np.log(_FADED) * lag))) / lag)
    followed: FloatArray = plan_T[0] + np.convolve(plan_T - plan_T[0], kept / kept.sum())[: len(plan_T)]
    return followed


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
