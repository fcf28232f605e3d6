"""The pictures of forecasts of returns show what the figures say."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.test_return_scores import CUTOFFS, backtest_of, prices
from training.density_figures import (
    MOST_SHOWN,
    draw_returns,
    pit_figure,
    price_fan_figure,
    return_fan_figure,
    save_score_difference_picture,
    save_var_picture,
    score_difference_figure,
    var_figure,
)
from training.return_scores import next_step


def test_every_picture_is_drawn_under_its_name() -> None:
    test = backtest_of(prices())
    figures = draw_returns("mlp", test, {"mlp": test.loss_by_series("crps")}, "job, mlp")
    assert list(figures) == ["return_fan", "price_fan", "pit", "value_at_risk", "score_difference"]


def test_the_fan_of_returns_is_of_the_newest_cutoffs() -> None:
    panel = prices()
    step = next_step(backtest_of(panel))
    outer, inner, median, came = return_fan_figure(step, panel, "job").data
    assert [trace.name for trace in (outer, inner)] == ["90 %", "50 %"]
    assert len(came.x) == len(median.x) == MOST_SHOWN
    assert came.x[-1] == panel.ds[CUTOFFS[-1] + 1]
    assert came.y[-1] == pytest.approx(step.r_KN[-1, 0])
    assert max(outer.y) > max(inner.y)


def test_the_fan_of_prices_is_over_the_horizon_or_over_time() -> None:
    panel = prices()
    over_time = price_fan_figure(backtest_of(panel), "job")
    assert len(over_time.data[-1].x) == MOST_SHOWN
    history, *_, came = price_fan_figure(backtest_of(panel, horizon=5), "job").data
    assert history.x[-1] == panel.ds[CUTOFFS[-1]]
    assert list(came.x) == list(panel.ds[CUTOFFS[-1] + 1 : CUTOFFS[-1] + 6])


def test_bars_of_probabilities_are_even_where_forecasts_are_right_and_not_where_they_are_narrow() -> None:
    panel = prices()
    right, narrow = (pit_figure(next_step(backtest_of(panel, scale)), "job") for scale in (2.0, 1.0))
    band = right.layout.shapes[0]
    heights = np.array(right.data[0].y)
    assert heights.mean() == pytest.approx(1.0)
    assert ((heights >= band.y0) & (heights <= band.y1)).mean() >= 0.85
    assert narrow.data[0].y[0] > 2 * band.y1


def test_every_return_below_its_value_at_risk_is_marked() -> None:
    panel = prices()
    step = next_step(backtest_of(panel))
    figure = var_figure(step, panel, "job")
    marked = {trace.name: trace for trace in figure.data}
    var_KN = step.value_at_risk(0.01)
    assert var_KN is not None
    hits_K = step.r_KN[:, 0] <= var_KN[:, 0]
    assert hits_K.any()
    assert list(marked["below VaR 1 %"].x) == list(panel.ds[CUTOFFS[hits_K] + 1])
    assert f"VaR 1 %: {hits_K.sum()} of 600, 6.0 expected" in marked


def test_the_score_difference_rises_where_a_rival_is_worse() -> None:
    panel = prices()
    crps = {name: backtest_of(panel, s).loss_by_series("crps") for name, s in (("mlp", 2.0), ("garch", 5.0))}
    (trace,) = score_difference_figure("mlp", crps, panel.ds[CUTOFFS], "job").data
    assert trace.name.startswith("garch (+")
    expected = (crps["garch"] - crps["mlp"]).mean(axis=1).sum()
    assert trace.y[-1] == pytest.approx(expected)


def test_stills_are_written(tmp_path: Path) -> None:
    panel = prices()
    test = backtest_of(panel)
    crps = {"mlp": test.loss_by_series("crps"), "ewma": 1.1 * test.loss_by_series("crps")}
    save_var_picture(next_step(test), panel, "job", tmp_path / "var.png")
    save_score_difference_picture("mlp", crps, panel.ds[CUTOFFS], "job", tmp_path / "new" / "lead.png")
    for path in (tmp_path / "var.png", tmp_path / "new" / "lead.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
