"""The pictures of a backtest: interactive ones for MLflow, and a still one for documents.

Each shows the newest forecast of one series, or the newest few, beside what happened. Matplotlib takes half a
second to import, and only the still ones need it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from forecasting.forecaster import format_level
from forecasting.spec import EnsembleSpec, ForecasterSpec, SegmentSpec
from training.backtest import Backtest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_SEASONS = 3
INK, FILL, TRUTH = "#1f5aa6", "31, 90, 166", "#333333"


def forecast_figure(test: Backtest, title: str) -> go.Figure:
    """Draw the newest forecast of a series with its intervals, its history, and what happened."""
    shown = _newest(test)
    figure = go.Figure()
    for level in sorted(test.spec.level, reverse=True):
        name = format_level(level)
        figure.add_scatter(
            x=pd.concat([shown.forecast["ds"], shown.forecast["ds"][::-1]]),
            y=pd.concat([shown.forecast[f"hi-{name}"], shown.forecast[f"lo-{name}"][::-1]]),
            fill="toself",
            fillcolor=f"rgba({FILL}, {0.15 if level > 85 else 0.3})",
            line={"width": 0},
            name=f"{name} %",
        )
    figure.add_scatter(x=shown.forecast["ds"], y=shown.forecast["mean"], line={"color": INK}, name="forecast")
    figure.add_scatter(x=shown.history["ds"], y=shown.history["y"], line={"color": TRUTH}, name="observed")
    figure.add_scatter(
        x=shown.forecast["ds"],
        y=shown.forecast["y"],
        mode="markers",
        marker={"color": TRUTH},
        name="happened",
    )
    figure.update_layout(title=f"{title}: {shown.unique_id}", template="plotly_white", hovermode="x unified")
    return figure


def error_by_step_figure(test: Backtest, title: str) -> go.Figure:
    """Draw the mean absolute error of each step of the horizon."""
    errors_H = test.mae_by_step()
    figure = go.Figure(go.Bar(x=np.arange(1, len(errors_H) + 1), y=errors_H, marker={"color": INK}))
    figure.update_layout(
        title=f"{title}: mean absolute error by step",
        xaxis={"title": "steps ahead", "dtick": 1 if len(errors_H) <= 30 else None},
        yaxis={"title": "MAE"},
        template="plotly_white",
    )
    return figure


def save_html(figure: go.Figure, path: Path) -> None:
    """Write a figure as one page that needs no network: Plotly's script is inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True)


def save_forecast_picture(test: Backtest, title: str, path: Path) -> None:
    """Draw the newest forecast as a still picture (PNG or SVG, by the name's ending)."""
    shown = _newest(test)
    figure, axes = _still()
    _mark_segments(axes, test.spec, shown)
    ds = shown.forecast["ds"].to_numpy()
    for level in sorted(test.spec.level, reverse=True):
        low, high = shown.forecast[f"lo-{format_level(level)}"], shown.forecast[f"hi-{format_level(level)}"]
        axes.fill_between(
            ds,
            low,
            high,
            color=INK,
            alpha=0.15 if level > 85 else 0.3,
            linewidth=0,
            label=f"{format_level(level)} %",
        )
    axes.plot(shown.history["ds"].to_numpy(), shown.history["y"], color=TRUTH, linewidth=1.2, label="observed")
    axes.plot(ds, shown.forecast["mean"], color=INK, linewidth=1.6, label="forecast")
    axes.plot(ds, shown.forecast["y"], "o", color=TRUTH, markersize=3, label="what happened")
    axes.set_title(f"{title}: {shown.unique_id}, forecast from {shown.cutoff:%Y-%m-%d}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=6)
    _save_still(figure, path)


def save_forecasts_picture(test: Backtest, title: str, path: Path, n_cutoffs: int) -> None:
    """Draw the forecasts of the newest cutoffs of one series as lines from their cutoffs, over what happened."""
    n, panel = int(test.series_B[-1]), test.panel
    cutoffs = np.unique(test.cutoff_B[test.series_B == n])[-n_cutoffs:]
    issued = test.select((test.series_B == n) & (test.cutoff_B >= cutoffs[0])).to_frame()
    history = max(SHOWN_SEASONS * test.spec.season_length, test.spec.horizon)
    shown = slice(max(0, int(cutoffs[0]) + 1 - history), int(cutoffs[-1]) + 1 + test.spec.horizon)
    figure, axes = _still()
    for cutoff, (_, forecast) in zip(cutoffs, issued.groupby("cutoff"), strict=True):
        ds = [panel.ds[cutoff], *forecast["ds"]]
        axes.plot(ds, [panel.y_NT[n, cutoff], *forecast["mean"]], color=INK, linewidth=0.7, alpha=0.5)
    axes.plot([], [], color=INK, linewidth=0.7, label=f"{len(cutoffs)} forecasts, each from its cutoff")
    axes.plot(panel.ds[shown], panel.y_NT[n, shown], color=TRUTH, linewidth=1.2, label="what happened")
    span = f"from {panel.ds[cutoffs[0]]:%Y-%m-%d} to {panel.ds[cutoffs[-1]]:%Y-%m-%d}"
    axes.set_title(f"{title}: {panel.unique_ids[n]}, forecasts {span}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    _save_still(figure, path)


def _still() -> "tuple[Figure, Axes]":
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    locator = AutoDateLocator(maxticks=10)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    return figure, axes


def _save_still(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


@dataclass(frozen=True)
class _Shown:
    """One forecast, the history before it, and what happened."""

    unique_id: str
    cutoff: pd.Timestamp
    history: pd.DataFrame
    forecast: pd.DataFrame


def _newest(test: Backtest) -> _Shown:
    newest = test.select(np.arange(len(test.cutoff_B)) == len(test.cutoff_B) - 1)
    n, cutoff = int(newest.series_B[0]), int(newest.cutoff_B[0])
    past = slice(max(0, cutoff + 1 - _history_shown(test.spec)), cutoff + 1)
    history = pd.DataFrame({"ds": test.panel.ds[past], "y": test.panel.y_NT[n, past]})
    return _Shown(test.panel.unique_ids[n], test.panel.ds[cutoff], history, newest.to_frame())


def _history_shown(spec: ForecasterSpec) -> int:
    """Return the steps of history in a picture."""
    return max(SHOWN_SEASONS * spec.season_length, 8 * spec.horizon)


def _mark_segments(axes: "Axes", spec: ForecasterSpec, shown: _Shown) -> None:
    """Draw a line where each segment begins, of the window and of the horizon, if the network cuts them."""
    network = spec.network.member if isinstance(spec.network, EnsembleSpec) else spec.network
    if not isinstance(network, SegmentSpec):
        return
    size, past, ahead = network.segment_size, shown.history["ds"], shown.forecast["ds"]
    n_read = min(network.input_size, len(past)) // size
    begins = [*(past.iloc[-i * size] for i in range(1, n_read + 1)), *ahead.iloc[::size]]
    for i, begin in enumerate(begins):
        label = f"segments of {size}" if i == 0 else None
        axes.axvline(begin, color=TRUTH, linewidth=0.6, alpha=0.6, linestyle=":", label=label)
