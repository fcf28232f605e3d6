"""The adjustments in force: of the version that answers, and of a job that wants them."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from forecasting.calendar import parse_freq
from forecasting.conformal import Adjustment, unadjusted
from ledger.database import writing
from ledger.ledger import Ledger, open_ledger
from service.adjustments import AdjustmentBook
from service.model_slot import LoadedModel
from tests.conftest import make_forecaster


@pytest.fixture
def model() -> LoadedModel:
    """Version 1 of pumps."""
    forecaster = make_forecaster()
    now = datetime.now(UTC)
    return LoadedModel("pumps", "1", "champion", "d", now, forecaster, parse_freq("D"), "plant", "y")


@pytest.fixture
def ledger(tmp_path: Path, model: LoadedModel) -> Ledger:
    """A ledger that knows an adjustment of pump-7, learned of version 1."""
    from ledger.adjustments import write_states

    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    plain = unadjusted(model.spec.quantiles, model.spec.horizon)
    learned: Adjustment = replace(plain, stretch_HQ=np.full_like(plain.stretch_HQ, 0.3))
    with writing(ledger.engine) as connection:
        write_states(connection, {("pumps", "1", "pump-7"): learned}, 1)
    return ledger


def test_a_series_has_the_adjustment_of_the_version_that_answers(model: LoadedModel, ledger: Ledger) -> None:
    loaded = [model]
    book = AdjustmentBook(lambda: loaded)
    assert book.of(model, ["pump-7"]) is None
    book.refresh(ledger)
    known = book.of(model, ["pump-7", "pump-8"])
    assert known is not None
    assert (known[0] is not None, known[1]) == (True, None)

    loaded[0] = replace(model, version="2")
    book.refresh(ledger)
    assert book.of(loaded[0], ["pump-7"]) is None


def test_a_job_that_wants_none_is_issued_as_the_network_says(model: LoadedModel, ledger: Ledger) -> None:
    plain = replace(model, adjusts=False)
    book = AdjustmentBook(lambda: [plain])
    book.refresh(ledger)
    assert book.of(plain, ["pump-7"]) is None
