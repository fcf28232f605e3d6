"""The pictures of forecasts of returns: fans, probabilities, values at risk, and who was ahead when.

Interactive ones for MLflow and files, and two stills for documents. They show one series, the first that was asked
last, but for the probabilities and the scores, which are of all series.

K cutoffs, N series, Q quantiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from scipy.stats import binom

from forecasting.forecaster import format_level, interpolate_quantile
from forecasting.panel import Panel
from training.backtest import Backtest
from training.return_scores import TAILS, NextStep, mean_by_cutoff, next_step

FloatArray = NDArray[np.float64]

INK, FILL, TRUTH, ALARM = "#1f5aa6", "31, 90, 166", "#333333", "#c0392b"
COLOURS = ("#c0392b", "#e08e0b", "#8e5ea2", "#3cba9f", "#7f8c8d", "#a0522d", "#5d6d7e", "#16a085")
BANDS = (90.0, 50.0)
"""Central intervals of a fan, in percent, the widest first."""

MOST_SHOWN = 250
"""Newest cutoffs of a fan over time: a year of sessions."""

MOST_LEADS = 5
"""Rivals in a still picture: beside one far behind the others cannot be told apart."""

MOST_BINS, FEWEST_IN_BIN = 20, 5


@dataclass(frozen=True)
class _Series:
    """One series of a backtest, next step by next step; `shown` counts back from its newest cutoff."""

    unique_id: str
    n: int
    ds: pd.DatetimeIndex
    """Of the steps that were forecast."""
    at_K: NDArray[np.intp]
    """Which of the cutoffs the series was asked at."""


def _newest_series(step: NextStep, panel: Panel, most: int | None = None) -> _Series:
    asked_KN = ~np.isnan(step.quantiles_KNQ.sum(axis=2))
    n = int(asked_KN[np.flatnonzero(asked_KN.any(axis=1))[-1]].argmax()) if asked_KN.any() else 0
    at_K = np.flatnonzero(asked_KN[:, n])[-(most or 0) :]
    return _Series(panel.unique_ids[n], n, panel.ds[step.cutoffs_K[at_K] + 1], at_K)


def draw_returns(name: str, test: Backtest, crps: Mapping[str, FloatArray], title: str) -> dict[str, go.Figure]:
    """Return the pictures of a forecaster's returns, by their names in MLflow.

    Args:
        name: of the forecaster.
        test: what it said, with transform log_return.
        crps: the `(K, N)` CRPS of it and of each rival.
        title: of the pictures.
    """
    step, panel = next_step(test), test.panel
    return {
        "return_fan": return_fan_figure(step, panel, title),
        "price_fan": price_fan_figure(test, title),
        "pit": pit_figure(step, title),
        "value_at_risk": var_figure(step, panel, title),
        "score_difference": score_difference_figure(name, crps, panel.ds[step.cutoffs_K], title),
    }


def return_fan_figure(step: NextStep, panel: Panel, title: str) -> go.Figure:
    """Draw the next return as it was forecast at each of the newest cutoffs, and as it came."""
    shown = _newest_series(step, panel, MOST_SHOWN)
    figure = go.Figure()
    quantiles_KQ = step.quantiles_KNQ[shown.at_K, shown.n]
    _draw_fan(figure, shown.ds, quantiles_KQ, step.probabilities)
    _draw_dots(figure, shown.ds, step.r_KN[shown.at_K, shown.n], "return", TRUTH)
    return _laid_out(figure, f"{title}: returns of {shown.unique_id}, forecast a step ahead", "percent")


def price_fan_figure(test: Backtest, title: str) -> go.Figure:
    """Draw the newest forecast of a price over its horizon; of one step, those of the newest cutoffs."""
    n, panel = int(test.series_B[-1]), test.panel
    rows = np.flatnonzero(test.series_B == n)[-(MOST_SHOWN if test.spec.horizon == 1 else 1) :]
    cutoffs = test.cutoff_B[rows]
    figure = go.Figure()
    if test.spec.horizon == 1:
        ds, fan, came = panel.ds[cutoffs + 1], test.quantiles_BHQ[rows, 0], test.actual_BH[rows, 0]
        told = "forecast a step ahead"
    else:
        newest = test.select(np.arange(len(test.cutoff_B)) == rows[-1])
        ds, fan = pd.DatetimeIndex(newest.to_frame()["ds"]), newest.quantiles_BHQ[0]
        came, told = newest.actual_BH[0], f"forecast from {panel.ds[cutoffs[-1]]:%Y-%m-%d}"
        before = slice(max(0, int(cutoffs[-1]) + 1 - max(60, 4 * test.spec.horizon)), int(cutoffs[-1]) + 1)
        figure.add_scatter(x=panel.ds[before], y=panel.y_NT[n, before], line={"color": TRUTH}, name="price")
    _draw_fan(figure, ds, fan, test.spec.quantiles)
    _draw_dots(figure, ds, came, "what came", TRUTH)
    return _laid_out(figure, f"{title}: price of {panel.unique_ids[n]}, {told}", "price")


def pit_figure(step: NextStep, title: str) -> go.Figure:
    """Draw how often returns lay at each probability of their forecasts; all bars are equal where they are right.

    The band holds 95 % of bars, each by itself, of forecasts that are right and of returns that do not depend on
    each other: those of many shares on one day do, and their bars may stray further.
    """
    known = step.pit[np.isfinite(step.pit)]
    bins = max(1, min(MOST_BINS, len(known) // FEWEST_IN_BIN))
    counts, edges = np.histogram(known, bins=bins, range=(0.0, 1.0))
    low, high = binom.ppf([0.025, 0.975], len(known), 1.0 / bins)
    scale = bins / max(1, len(known))
    figure = go.Figure(
        go.Bar(
            x=(edges[:-1] + edges[1:]) / 2,
            y=counts * scale,
            width=0.98 / bins,
            marker={"color": INK},
            name="share",
        )
    )
    figure.add_hrect(y0=low * scale, y1=high * scale, fillcolor=f"rgba({FILL}, 0.2)", line_width=0)
    figure.add_hline(y=1.0, line={"color": TRUTH, "dash": "dot"})
    figure.update_xaxes(title="probability at which a return lay in its forecast", range=[0, 1])
    return _laid_out(figure, f"{title}: {len(known):,} returns in their forecasts", "share, 1 is right")


def var_figure(step: NextStep, panel: Panel, title: str) -> go.Figure:
    """Draw the values at risk over time with the returns, and mark those that fell below."""
    shown = _newest_series(step, panel)
    r_K = step.r_KN[shown.at_K, shown.n]
    figure = go.Figure()
    _draw_dots(figure, shown.ds, r_K, "return", "rgba(51, 51, 51, 0.5)", size=3)
    for (percent, var_K, hit_K), colour in zip(_values_at_risk(step, shown), (ALARM, "#e08e0b"), strict=False):
        said = f"VaR {percent} %: {hit_K.sum()} of {len(hit_K)}, {len(hit_K) * percent / 100:.1f} expected"
        figure.add_scatter(x=shown.ds, y=var_K, line={"color": colour, "width": 1}, name=said)
        _draw_dots(
            figure, shown.ds[hit_K], r_K[hit_K], f"below VaR {percent} %", colour, size=5 + 3 * (percent == 1)
        )
    return _laid_out(figure, f"{title}: values at risk of {shown.unique_id}, a step ahead", "percent")


def _values_at_risk(step: NextStep, shown: _Series) -> list[tuple[int, FloatArray, NDArray[np.bool_]]]:
    """Return percent, value at risk and hits of each probability that the quantiles reach."""
    found = []
    for percent, p in TAILS.items():
        var_KN = step.value_at_risk(p)
        if var_KN is not None:
            var_K = var_KN[shown.at_K, shown.n]
            found.append((percent, var_K, step.r_KN[shown.at_K, shown.n] <= var_K))
    return found


def score_difference_figure(
    name: str, losses: Mapping[str, FloatArray], ds: pd.DatetimeIndex, title: str
) -> go.Figure:
    """Draw by how much a forecaster's CRPS has been below each rival's, added up over time: rising is ahead.

    Args:
        name: whose.
        losses: the `(K, N)` CRPS of it and of each rival at the same cutoffs.
        ds: of the K cutoffs.
        title: of the picture.
    """
    figure = go.Figure()
    for (rival, lead_K), colour in zip(_leads(name, losses).items(), COLOURS * 9, strict=False):
        figure.add_scatter(x=ds, y=lead_K, line={"color": colour}, name=f"{rival} ({lead_K[-1]:+.3g})")
    figure.add_hline(y=0.0, line={"color": TRUTH, "dash": "dot"})
    return _laid_out(figure, f"{title}: CRPS saved beside each rival, added up", "percent, rising is ahead")


def _leads(name: str, losses: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return {
        rival: np.cumsum(np.nan_to_num(mean_by_cutoff(loss_KN - losses[name])))
        for rival, loss_KN in losses.items()
        if rival != name
    }


def save_var_picture(step: NextStep, panel: Panel, title: str, path: Path) -> None:
    """Draw the values at risk over time as a still picture (PNG or SVG, by the name's ending)."""
    shown = _newest_series(step, panel)
    r_K = step.r_KN[shown.at_K, shown.n]
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot(shown.ds, r_K, ".", color=TRUTH, markersize=2, alpha=0.5, label="return")
    for (percent, var_K, hit_K), colour in zip(_values_at_risk(step, shown), (ALARM, "#e08e0b"), strict=False):
        said = f"VaR {percent} %: {hit_K.sum()} of {len(hit_K)} below, {len(hit_K) * percent / 100:.1f} expected"
        axes.plot(shown.ds, var_K, color=colour, linewidth=0.8, label=said)
        dots = axes.plot(shown.ds[hit_K], r_K[hit_K], "o", color=colour, markersize=5 if percent == 1 else 4)
        # What is below the farther one is below the nearer one too, and shows the farther one's colour.
        dots[0].set(markeredgecolor="white", markeredgewidth=0.5, zorder=4 if percent == 1 else 3)
    axes.margins(x=0.01)
    axes.set_ylabel("percent")
    axes.set_title(f"{title}: values at risk of {shown.unique_id}, a step ahead", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=3, markerscale=3)
    _save_still(figure, path)


def save_score_difference_picture(
    name: str, losses: Mapping[str, FloatArray], ds: pd.DatetimeIndex, title: str, path: Path
) -> None:
    """Draw by how much a forecaster has been ahead of those nearest to it as a still picture (PNG or SVG)."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    nearest = sorted(_leads(name, losses).items(), key=lambda lead: float(lead[1][-1]))[:MOST_LEADS]
    for (rival, lead_K), colour in zip(nearest, COLOURS, strict=False):
        axes.plot(ds, lead_K, color=colour, linewidth=1.0, label=f"{rival} ({lead_K[-1]:+.2g})")
    axes.axhline(0.0, color=TRUTH, linewidth=0.8, linestyle=":")
    axes.margins(x=0.01)
    axes.set_ylabel("percent, rising is ahead")
    axes.set_title(f"{title}: CRPS saved beside the nearest rivals, added up", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=MOST_LEADS)
    _save_still(figure, path)


def _save_still(figure: matplotlib.figure.Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_fan(
    figure: go.Figure, ds: pd.DatetimeIndex, quantiles_KQ: FloatArray, probabilities: tuple[float, ...]
) -> None:
    for level in BANDS:
        low, high = 0.5 - level / 200, 0.5 + level / 200
        if low < probabilities[0] - 1e-9 or high > probabilities[-1] + 1e-9:
            continue
        low_K, high_K = (interpolate_quantile(quantiles_KQ, probabilities, side) for side in (low, high))
        figure.add_scatter(
            x=ds.append(ds[::-1]),
            y=np.concatenate([high_K, low_K[::-1]]),
            fill="toself",
            fillcolor=f"rgba({FILL}, 0.25)",
            line={"width": 0},
            name=f"{format_level(level)} %",
        )
    middle_K = interpolate_quantile(quantiles_KQ, probabilities, 0.5)
    figure.add_scatter(x=ds, y=middle_K, line={"color": INK, "width": 1}, name="median")


def _draw_dots(
    figure: go.Figure, ds: pd.DatetimeIndex, y: FloatArray, name: str, colour: str, size: int = 4
) -> None:
    figure.add_scatter(x=ds, y=y, mode="markers", marker={"color": colour, "size": size}, name=name)


def _laid_out(figure: go.Figure, title: str, unit: str) -> go.Figure:
    figure.update_layout(title=title, template="plotly_white", hovermode="x unified", yaxis={"title": unit})
    return figure
