"""The pictures of a backtest: interactive ones for MLflow, and a still one for documents.

Each shows the newest forecast of one series, beside what happened.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from forecasting.forecaster import format_level
from training.backtest import Backtest

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
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    axes = figure.subplots()
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=5)
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
    length = max(SHOWN_SEASONS * test.spec.season_length, 8 * test.spec.horizon)
    past = slice(max(0, cutoff + 1 - length), cutoff + 1)
    history = pd.DataFrame({"ds": test.panel.ds[past], "y": test.panel.y_NT[n, past]})
    return _Shown(test.panel.unique_ids[n], test.panel.ds[cutoff], history, newest.to_frame())
