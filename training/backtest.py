"""The rolling-origin backtest: the forecasts a model would have issued, at cutoffs it has not been trained on.

It runs `Forecaster.predict` on the artefact as it was reloaded from disk: the code and the weights that will
serve. Every forecaster of a job, baselines and champion included, is asked at the same cutoffs.

B forecasts (a series and a cutoff each), L input_size, H horizon, Q quantiles, K cutoffs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import format_timestamp, timestamps_after
from forecasting.errors import TrainingError
from forecasting.forecaster import (
    Forecaster,
    format_level,
    interpolate_quantile,
    interval_bounds,
    mean_weights,
    summarise,
)
from forecasting.panel import Panel
from forecasting.spec import ForecasterSpec
from forecasting.transforms import apply_transform
from training import metrics
from training.baselines import baseline_specs
from training.calibrate import FEW_RESIDUALS
from training.job import JobConfig
from training.skewed_t import SkewedT
from training.windows import Split

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class _Scored(NamedTuple):
    """Targets and forecasts on the modelling scale."""

    actual_BH: FloatArray
    quantiles_BHQ: FloatArray
    point_BH: FloatArray
    last_B: FloatArray


VALIDATION_SHARE = 0.15
MOST_VALIDATION_CUTOFFS = 60


def plan_split(panel: Panel, job: JobConfig) -> Split:
    """Divide the grid into training, validation and test, in the order of time; an embargo may precede the test.

    Raises:
        TrainingError: the data is too short for the evaluation the job asks for, or the validation block for
            a forecast; the message has the numbers.
    """
    last_cutoff = panel.n_steps - 1 - job.horizon
    windows = job.evaluation.n_windows
    cutoffs = tuple(last_cutoff - job.step_size * k for k in reversed(range(windows)))
    test = cutoffs[0] + 1 - job.embargo
    default = max(job.horizon + 20, round(VALIDATION_SHARE * panel.n_steps))
    size = job.evaluation.validation_size or default
    fewest = job.horizon + FEW_RESIDUALS - 1
    if size < fewest:
        raise TrainingError(
            f"job {job.name!r} has a validation_size of {size} steps; it takes {fewest} to calibrate intervals: "
            f"{FEW_RESIDUALS} forecasts of {job.horizon} steps"
        )
    longest = max(network.input_size for network in baseline_specs(job).values())
    if test - size < longest + job.horizon:
        tested = panel.n_steps - 1 - cutoffs[0]
        embargo = f"embargo {job.embargo} + " if job.embargo else ""
        raise TrainingError(
            f"job {job.name!r} has {panel.n_steps} steps of data and needs at least "
            f"{longest + job.horizon + size + job.embargo + tested}: longest window {longest} (the largest "
            f"input_size, or the season of {job.season} and one) + horizon {job.horizon} + validation {size} + "
            f"{embargo}test {tested} ({windows} windows, step {job.step_size})"
        )
    return Split(validation=test - size, test=test, cutoffs=cutoffs)


def validation_cutoffs(split: Split, horizon: int) -> tuple[int, ...]:
    """Return cutoffs whose forecasts lie in the validation block, evenly spread."""
    first, last = split.validation - 1, split.test - 1 - horizon
    count = min(MOST_VALIDATION_CUTOFFS, max(1, last - first + 1))
    return tuple(int(c) for c in np.unique(np.linspace(first, max(first, last), count).round().astype(int)))


@dataclass(frozen=True, eq=False)
class Backtest:
    """What a forecaster said at each series and cutoff, and what happened; in observed units."""

    spec: ForecasterSpec
    panel: Panel
    series_B: IntArray
    cutoff_B: IntArray
    actual_BH: FloatArray
    quantiles_BHQ: FloatArray
    scales: tuple[FloatArray, FloatArray]
    """In-sample mean absolute and mean squared seasonal difference of each forecast's series."""
    first_B: SkewedT | None = None
    """The density of the first step's change since the cutoff, on the modelling scale, where one is told."""

    @cached_property
    def _scored(self) -> _Scored:
        def to_model(values: FloatArray) -> FloatArray:
            return apply_transform(values, self.spec.transform)

        last_B = self.panel.y_NT[self.series_B, self.cutoff_B]
        quantiles_BHQ = to_model(self.quantiles_BHQ)
        point_BH = quantiles_BHQ @ mean_weights(self.spec.quantiles)
        return _Scored(to_model(self.actual_BH), quantiles_BHQ, point_BH, to_model(last_B))

    @property
    def unanswered(self) -> tuple[str, ...]:
        """Return the series for which a forecast is none."""
        none_B = np.isnan(self.quantiles_BHQ).any(axis=(1, 2))
        return tuple(self.panel.unique_ids[n] for n in np.unique(self.series_B[none_B]))

    def scores(self) -> dict[str, float]:
        """Return every metric over all forecasts; names as they stand in MLflow after `test/`.

        All are NaN where a forecast is none: who answers the easy questions only has no score to compare.
        """
        actual_BH, quantiles_BHQ, point_BH, last_B = self._scored
        observed_point_BH = summarise(self.quantiles_BHQ, self.spec.quantiles, ())["mean"]
        scores = {
            "crps": metrics.crps(actual_BH, quantiles_BHQ, self.spec.quantiles),
            "mae": metrics.mae(actual_BH, point_BH),
            "rmse": metrics.rmse(actual_BH, point_BH),
            "smape": metrics.smape(self.actual_BH, observed_point_BH),
            "mase": metrics.mase(actual_BH, point_BH, self.scales[0]),
            "rmsse": metrics.rmsse(actual_BH, point_BH, self.scales[1]),
            "directional_accuracy": metrics.directional_accuracy(actual_BH, point_BH, last_B),
        }
        for level in self.spec.level:
            low_BH, high_BH = self._interval(quantiles_BHQ, level)
            name = f"coverage_{format_level(level)}"
            scores[name] = metrics.coverage(actual_BH, low_BH, high_BH)
            interval = metrics.coverage_interval(actual_BH, low_BH, high_BH, self.cutoff_B)
            scores[f"{name}_low"], scores[f"{name}_high"] = interval
            scores[f"width_{format_level(level)}"] = metrics.width(low_BH, high_BH)
        return dict.fromkeys(scores, float("nan")) if self.unanswered else scores

    def _interval(self, quantiles_BHQ: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
        low, high = interval_bounds(self.spec.quantiles, level)
        return (
            interpolate_quantile(quantiles_BHQ, self.spec.quantiles, low),
            interpolate_quantile(quantiles_BHQ, self.spec.quantiles, high),
        )

    def losses(self, metric: str) -> FloatArray:
        """Return the `(B, H)` loss of every forecast and step in a gate metric (squared for rmse and rmsse)."""
        actual_BH, quantiles_BHQ, point_BH, _ = self._scored
        if metric == "crps":
            return metrics.crps_each(actual_BH, quantiles_BHQ, self.spec.quantiles)
        if metric in ("rmse", "rmsse"):
            scale_B = self.scales[1] if metric == "rmsse" else np.ones(len(actual_BH))
            return metrics.rmsse_terms(actual_BH, point_BH, scale_B)
        scale_B = self.scales[0] if metric == "mase" else np.ones(len(actual_BH))
        absolute: FloatArray = np.abs(actual_BH - point_BH) / scale_B[:, None]
        return absolute

    def loss_by_series(self, metric: str) -> FloatArray:
        """Return the `(K, N)` mean loss at each cutoff, in time order, and series; NaN where there is none."""
        loss_B = _row_means(self.losses(metric))
        cutoffs, k_B = np.unique(self.cutoff_B, return_inverse=True)
        loss_KN = np.full((len(cutoffs), self.panel.n_series), np.nan)
        loss_KN[k_B, self.series_B] = loss_B
        return loss_KN

    def mae_by_step(self) -> FloatArray:
        """Return the mean absolute error at each step of the horizon."""
        actual_BH, _, point_BH, _ = self._scored
        return np.array([metrics.mae(actual_BH[:, [h]], point_BH[:, [h]]) for h in range(actual_BH.shape[1])])

    def per_series(self) -> pd.DataFrame:
        """Return one row a series with its own metrics."""
        rows = []
        for n in np.unique(self.series_B):
            part = self.select(self.series_B == n)
            count = len(part.series_B)
            rows.append({"unique_id": self.panel.unique_ids[n], "n_forecasts": count, **part.scores()})
        return pd.DataFrame(rows)

    def select(self, chosen_B: NDArray[np.bool_]) -> "Backtest":
        """Return the part of the forecasts that is chosen."""
        return replace(
            self,
            series_B=self.series_B[chosen_B],
            cutoff_B=self.cutoff_B[chosen_B],
            actual_BH=self.actual_BH[chosen_B],
            quantiles_BHQ=self.quantiles_BHQ[chosen_B],
            scales=(self.scales[0][chosen_B], self.scales[1][chosen_B]),
            first_B=None if self.first_B is None else SkewedT(*(part_B[chosen_B] for part_B in self.first_B)),
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row a forecast step: what REST would have answered at the cutoff, and what happened."""
        columns = summarise(self.quantiles_BHQ, self.spec.quantiles, self.spec.level)
        parts = []
        for b, (n, cutoff) in enumerate(zip(self.series_B, self.cutoff_B, strict=True)):
            at = self.panel.ds[cutoff]
            rows = {name: values_BH[b] for name, values_BH in columns.items()}
            parts.append(
                pd.DataFrame(
                    {
                        "unique_id": self.panel.unique_ids[n],
                        "cutoff": at,
                        "ds": timestamps_after(self.panel.calendar, at, self.spec.horizon),
                        "step": np.arange(1, self.spec.horizon + 1),
                        "y": self.actual_BH[b],
                        **rows,
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


def run_backtest(
    forecaster: Forecaster, panel: Panel, cutoffs: Sequence[int], *, history_needed: int, in_sample: int
) -> Backtest:
    """Ask a forecaster at every series and cutoff.

    Args:
        forecaster: reloaded from its artefact.
        panel: the data, test block included; nothing after a cutoff is shown to the forecaster.
        cutoffs: positions on the panel's grid.
        history_needed: steps a series must have before a cutoff to be asked there; the same for every
            forecaster of a comparison, so that all answer the same questions.
        in_sample: position before which the scales of MASE and RMSSE are measured.

    Raises:
        TrainingError: no series has a value, enough history and a target at any cutoff.
    """
    spec = forecaster.spec
    series_B, cutoff_B = find_questions(panel, cutoffs, spec.horizon, history_needed)
    history = np.arange(1 - spec.input_size, 1)
    covariates = None
    if spec.takes_covariates:
        covariates = panel.covariates_at(series_B, cutoff_B, spec.covariates, spec.input_size, spec.horizon)
    y_BL = panel.y_NT[series_B[:, None], cutoff_B[:, None] + history]
    quantiles_BHQ = forecaster.predict(y_BL, covariates)
    test = build_backtest(spec, panel, series_B, cutoff_B, quantiles_BHQ, in_sample=in_sample)
    if not forecaster.says_density:
        return test
    density = forecaster.predict_density(y_BL, covariates)
    return replace(test, first_B=SkewedT(*(part_BH[:, 0] for part_BH in density)))


def find_questions(
    panel: Panel, cutoffs: Sequence[int], horizon: int, history_needed: int
) -> tuple[IntArray, IntArray]:
    """Return series and cutoff of every forecast that would have been issued and can be scored.

    Raises:
        TrainingError: there is none.
    """
    first_N, _ = panel.spans()
    series, asked = [], []
    for cutoff in cutoffs:
        observed_N = np.isfinite(panel.y_NT[:, cutoff])
        scorable_N = np.isfinite(panel.y_NT[:, cutoff + 1 : cutoff + 1 + horizon]).any(axis=1)
        chosen = np.flatnonzero(observed_N & scorable_N & (cutoff - first_N + 1 >= history_needed))
        series.append(chosen)
        asked.append(np.full(len(chosen), cutoff))
    if not any(map(len, series)):
        first, last = (format_timestamp(panel.ds[c], panel.calendar) for c in (min(cutoffs), max(cutoffs)))
        raise TrainingError(
            f"no series can be asked at any cutoff from {first} to {last}: that takes a value at the cutoff, "
            f"{history_needed} steps of history before it and a target after it"
        )
    return np.concatenate(series).astype(np.int64), np.concatenate(asked).astype(np.int64)


def build_backtest(
    spec: ForecasterSpec,
    panel: Panel,
    series_B: IntArray,
    cutoff_B: IntArray,
    quantiles_BHQ: FloatArray,
    *,
    in_sample: int,
) -> Backtest:
    """Put answers, in observed units, beside what happened; `in_sample` as in `run_backtest`."""
    ahead = np.arange(1, spec.horizon + 1)
    actual_BH = panel.y_NT[series_B[:, None], cutoff_B[:, None] + ahead]
    absolute_N, squared_N = _scales(panel, spec, in_sample)
    return Backtest(
        spec, panel, series_B, cutoff_B, actual_BH, quantiles_BHQ, (absolute_N[series_B], squared_N[series_B])
    )


def _scales(panel: Panel, spec: ForecasterSpec, in_sample: int) -> tuple[FloatArray, FloatArray]:
    x_NT = apply_transform(panel.y_NT[:, :in_sample], spec.transform)
    pairs = [metrics.seasonal_scale(x_T, spec.season_length) for x_T in x_NT]
    return np.array([a for a, _ in pairs]), np.array([s for _, s in pairs])


def leaderboard(scores: Mapping[str, Mapping[str, float]], metric: str) -> pd.DataFrame:
    """Return one row a forecaster, best first, with its skill against the seasonal naive.

    Skill is one minus the ratio of the losses: 0 is no better than the seasonal naive, 1 is perfect.
    """
    frame = pd.DataFrame.from_dict({name: dict(row) for name, row in scores.items()}, orient="index")
    frame.index.name = "model"
    frame.insert(0, "skill", 1.0 - frame[metric] / scores["seasonal_naive"][metric])
    return frame.sort_values(metric, kind="stable")


def _row_means(values_BH: FloatArray) -> FloatArray:
    known_BH = np.isfinite(values_BH)
    total_B = np.where(known_BH, values_BH, 0.0).sum(axis=1)
    means: FloatArray = np.where(known_BH.any(axis=1), total_B / np.maximum(known_BH.sum(axis=1), 1), np.nan)
    return means
