"""The samples: real data that installed packages carry."""

import sys
from pathlib import Path

import pytest

from forecasting.errors import SourceError
from forecasting.panel import build_panel
from training.sources import SampleSource, SourceContext

CONTEXT = SourceContext(Path(), Path())


def test_sp500_is_a_price_a_session() -> None:
    frame = SampleSource(dataset="sp500").load(CONTEXT)
    values = ["Open", "High", "Low", "Close", "Adj Close", "Volume"]
    assert list(frame.columns) == ["unique_id", "ds", *values]
    panel = build_panel(frame.rename(columns={"Close": "y"}), "XNYS")
    assert panel.unique_ids == ("^GSPC",)
    assert (panel.n_steps, panel.n_observed) == (5031, 5031)
    assert [str(panel.ds[step].date()) for step in (0, -1)] == ["1999-01-04", "2018-12-31"]


def test_co2_is_a_value_a_week_with_its_59_weeks_missing() -> None:
    frame = SampleSource(dataset="co2").load(CONTEXT)
    assert frame["y"].isna().sum() == 59
    panel = build_panel(frame, "W-SAT")
    assert panel.unique_ids == ("mauna-loa",)
    assert (panel.n_steps, panel.n_observed, panel.quality[0].n_missing) == (2284, 2225, 59)


@pytest.mark.parametrize(
    ("dataset", "module", "package"),
    [("sp500", "arch.data", "arch"), ("co2", "statsmodels.datasets", "statsmodels")],
)
def test_without_the_package_the_error_says_what_to_install(
    dataset: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SourceError, match=rf"{package}, which is not installed: pip install hindcast\[training\]"):
        SampleSource.model_validate({"dataset": dataset}).load(CONTEXT)
