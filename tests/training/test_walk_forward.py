"""Walk-forward folds: what each may learn from ends before what it is tested on."""

import numpy as np
import pytest
from pydantic import ValidationError

from forecasting.errors import TrainingError
from tests.conftest import make_forecaster, make_panel
from tests.training.test_job import MINIMAL
from training.backtest import Backtest, plan_split, run_backtest
from training.job import JobConfig
from training.walk_forward import join_backtests, plan_folds

HORIZON = 4
"""Of the minimal job."""


def job(**evaluation: object) -> JobConfig:
    return JobConfig.model_validate({**MINIMAL, "evaluation": evaluation})


def test_without_refits_there_is_one_fold_and_no_embargo() -> None:
    panel, asked = make_panel(1, 200, "h"), job(n_windows=5, step_size=2, validation_size=40)
    assert plan_folds(panel, asked) == (plan_split(panel, asked),)
    assert asked.embargo == 0


def test_folds_share_the_test_cutoffs_and_each_is_fitted_before_its_own() -> None:
    panel = make_panel(1, 300, "h")
    asked = job(n_windows=10, step_size=3, validation_size=40, refit_every=9)
    folds = plan_folds(panel, asked)
    # Horizon 4: cutoffs 268, 271, ..., 295, and a refit is due every three of them.
    assert [fold.cutoffs for fold in folds] == [(268, 271, 274), (277, 280, 283), (286, 289, 292), (295,)]
    for fold in folds:
        assert fold.test == fold.cutoffs[0] + 1 - HORIZON, "the embargo is the horizon"
        assert fold.test - fold.validation == 40


def test_a_refit_waits_for_a_cutoff_and_is_counted_from_the_first() -> None:
    folds = plan_folds(make_panel(1, 300, "h"), job(n_windows=6, step_size=4, validation_size=40, refit_every=6))
    # Cutoffs 275, 279, ...: refits are due 0, 6, 12 and 18 steps after the first.
    assert [fold.cutoffs for fold in folds] == [(275, 279), (283,), (287, 291), (295,)]


def test_no_target_that_is_learned_from_reaches_a_cutoff() -> None:
    panel = make_panel(1, 300, "h")
    for embargo in (HORIZON, 11):
        for fold in plan_folds(panel, job(n_windows=8, refit_every=12, embargo=embargo, validation_size=40)):
            assert fold.cutoffs[0] - (fold.test - 1) == embargo


def test_an_embargo_can_be_had_without_refits() -> None:
    panel = make_panel(1, 300, "h")
    plain, held_back = (plan_split(panel, job(n_windows=5, embargo=e)) for e in (None, 7))
    assert held_back.cutoffs == plain.cutoffs
    assert held_back.test == plain.test - 7


def test_an_embargo_shorter_than_the_horizon_is_refused_where_refits_follow() -> None:
    with pytest.raises(ValidationError, match="embargo is 3; with refit_every it takes the horizon of 4"):
        job(refit_every=10, embargo=3)


def test_a_warm_start_is_refused_where_folds_come_before_the_champion() -> None:
    with pytest.raises(ValidationError, match="starts warm, and the champion has learned"):
        JobConfig.model_validate({**MINIMAL, "training": {"start": "warm"}, "evaluation": {"refit_every": 10}})


def test_rivals_are_refused_where_nothing_is_a_return() -> None:
    with pytest.raises(ValidationError, match=r"they take target\.transform log_return"):
        job(rivals=["garch"])


def test_data_too_short_for_the_first_fold_is_refused_with_the_sum() -> None:
    with pytest.raises(TrainingError, match=r"needs at least 137: .* \+ validation 24 \+ embargo 4 \+ test 80"):
        plan_folds(make_panel(1, 100, "h"), job(n_windows=20, refit_every=40))


def test_the_folds_of_a_forecaster_are_one_backtest() -> None:
    panel, forecaster = make_panel(2, 200, missing=10), make_forecaster()

    def ask(*cutoffs: int) -> Backtest:
        return run_backtest(forecaster, panel, cutoffs, history_needed=30, in_sample=140)

    whole, joined = ask(150, 160, 170), join_backtests([ask(150, 160), ask(170)])
    # A forward pass of fewer rows rounds otherwise.
    assert joined.scores() == pytest.approx(whole.scores(), rel=1e-6)
    assert np.allclose(joined.loss_by_series("crps"), whole.loss_by_series("crps"), rtol=1e-5, equal_nan=True)
    columns = ["unique_id", "cutoff", "ds", "step", "y"]
    assert joined.to_frame()[columns].equals(whole.to_frame()[columns])
    assert join_backtests([whole]) is whole
