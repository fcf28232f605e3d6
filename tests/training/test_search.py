"""The space of a search: refused where it does not fit, and every trial a candidate a job may have."""

from typing import Any

import optuna
import pytest
import yaml

from forecasting.errors import JobError
from training.job import JobConfig, SearchConfig, parse_job
from training.search import (
    PeerPruner,
    Space,
    build_space,
    candidate_line,
    job_text_with,
    sampler_for,
    study_name,
    write_candidate,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)

JOB: dict[str, Any] = {
    "name": "sensors",
    "source": {"kind": "simulate"},
    "freq": "h",
    "horizon": 4,
    "candidates": [
        {"kind": "ridge", "input_size": 24},
        {"kind": "mlp", "input_size": 24},
        {"kind": "lstm", "input_size": 48, "training": {"learning_rate": 0.01}},
        {"kind": "segment_lstm", "input_size": 96},
    ],
}
LSTM_SPACE = {
    "hidden_size": [32, 64],
    "learning_rate": {"low": 0.0003, "high": 0.03, "log": True},
    "layers": {"low": 1, "high": 3},
    "scale_span": [None, 12],
    "random_offsets": [True, False],
}


def text_of(search: dict[str, Any] | None = None, **changes: Any) -> str:
    return yaml.safe_dump({**JOB, **changes, **({"search": search} if search else {})})


def space_of(search: dict[str, Any], **changes: Any) -> Space:
    job = parse_job(text_of(search, **changes))
    assert job.search is not None
    return build_space(job, job.search, longest=200)


def trials_of(space: Space, n: int, seed: int = 1) -> list[dict[str, Any]]:
    study = optuna.create_study()
    found = []
    for i in range(n):
        study.sampler = sampler_for(seed, i)
        trial = study.ask()
        found.append(dict(space.suggest(trial)))
        study.tell(trial, float(i % 3))
    return found


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"candidate": "gru"},
            r"search: candidate 'gru' is none that is trained; there is mlp, lstm, segment_lstm",
        ),
        ({"candidate": "ridge"}, r"search: candidate 'ridge' is none that is trained"),
        ({"trials": 0}, r"search\.trials"),
        ({"spaces": {}}, r"search\.spaces: Extra"),
        ({"space": {}}, r"search\.space"),
        (
            {"space": {"hiden_size": [1]}},
            r"space\.hiden_size: mlp has no such setting to search; it has .*hidden_size",
        ),
        ({"space": {"truncate": [1]}}, r"it has .*learning_rate.*truncation"),
        ({"space": {"hidden_size": [8, 0]}}, r"search: space\.hidden_size: 0: .*greater than or equal to 1"),
        ({"space": {"hidden_size": [8, 8]}}, r"space\.hidden_size: a value is there twice"),
        ({"space": {"hidden_size": []}}, r"search\.space\.hidden_size"),
        ({"space": {"hidden_size": 8}}, r"search\.space\.hidden_size"),
        ({"space": {"hidden_size": {"low": 1.5, "high": 3}}}, r"space\.hidden_size: 1\.5: .*integer"),
        ({"space": {"hidden_size": {"low": 8, "high": 8}}}, r"low 8 is not below high 8"),
        ({"space": {"weight_decay": {"low": 0, "high": 0.1, "log": True}}}, r"log takes a low above 0, not 0"),
        (
            {"space": {"learning_rate": {"low": 0.1, "high": 2}}},
            r"space\.learning_rate: 2\.0: .*less than or equal",
        ),
        ({"space": {"learning_rate": {"low": 0.1, "top": 2}}}, r"learning_rate.*top: Extra"),
        ({"space": {"learning_rate": [float("nan")]}}, r"space\.learning_rate.*finite number"),
        ({"space": {"optimizer": ["adam", "sgd"]}}, r"space\.optimizer: 'sgd': .*'rmsprop'"),
        ({"space": {"random_offsets": {"low": 0, "high": 1}}}, r"random_offsets: is not a number; give a list"),
        ({"space": {"input_size": [1, 24]}}, r"space\.input_size: 1: a window of one value has no scale"),
        ({"space": {"seed": [1, 2]}}, r"space\.seed: mlp has no such setting to search"),
        ({"space": {"start": ["scratch", "warm"]}}, r"space\.start: mlp has no such setting to search"),
        ({"space": {"device": ["cpu", "cuda"]}}, r"space\.device: mlp has no such setting to search"),
        ({"candidate": "mlp", "space": {"scale_span": [8]}}, r"space\.scale_span: mlp has no such setting"),
    ],
)
def test_a_search_that_does_not_fit_is_refused_with_its_field(search: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_job(text_of(search))


def test_a_job_of_baselines_has_nothing_to_search() -> None:
    job = JobConfig.model_validate({**JOB, "candidates": [{"kind": "ridge", "input_size": 24}]})
    with pytest.raises(
        JobError, match=r"job 'sensors': search.candidate '' is none that is trained; there is none"
    ):
        build_space(job, SearchConfig(), longest=200)


def test_every_trial_is_a_candidate_the_job_may_have_and_reads_back_as_it_was() -> None:
    space = space_of({"candidate": "lstm", "space": LSTM_SPACE})
    text = text_of({"candidate": "lstm", "space": LSTM_SPACE})
    seen = trials_of(space, 12)
    for settings in seen:
        candidate = space.apply(settings)
        again = parse_job(job_text_with(text, space.job, candidate))
        assert again.candidates[2].network == candidate.network
        assert again.training_of(again.candidates[2]) == space.job.training_of(candidate)
        assert again.candidates[1] == space.job.candidates[1], "the others stay as they are"
        pasted = parse_job(text_of(candidates=yaml.safe_load(candidate_line(write_candidate(candidate)))))
        assert pasted.candidates[0] == again.candidates[2]
        assert candidate.network.input_size == 48
        assert 0.0003 <= float(candidate.training["learning_rate"]) <= 0.03
        assert len(f"{candidate.training['learning_rate']:g}".strip("0.")) <= 3, "a number a person can read"
    assert {s["layers"] for s in seen} == {1, 2, 3}
    assert {s["scale_span"] for s in seen} == {None, 12}
    assert {s["random_offsets"] for s in seen} == {True, False}


def test_the_scaling_of_returns_reads_back_as_it_was() -> None:
    """A job of log returns has another default, which must not take the place of what was searched."""
    changes = {"target": {"transform": "log_return"}}
    search = {"candidate": "mlp", "space": {"scaling": ["last", "difference"]}}
    space = space_of(search, **changes)
    assert space.current == {"scaling": "difference"}
    for scaling in ("last", "difference"):
        candidate = space.apply({"scaling": scaling})
        again = parse_job(job_text_with(text_of(search, **changes), space.job, candidate))
        assert again.candidates[1].network.scaling == scaling


def test_settings_that_do_not_go_together_are_said() -> None:
    space = space_of({"candidate": "segment_lstm", "space": {"input_size": [24, 96], "segment_size": [24, 48]}})
    with pytest.raises(JobError, match="input_size 24 is shorter than segment_size 48"):
        space.apply({"input_size": 24, "segment_size": 48})


@pytest.mark.parametrize("name", ["mlp", "lstm", "segment_lstm"])
@pytest.mark.parametrize("training", [{}, {"weight_decay": 0.0, "learning_rate": 0.5}])
def test_the_default_space_holds_what_the_job_has(name: str, training: dict[str, float]) -> None:
    space = space_of({"candidate": name}, training=training)
    assert {"hidden_size", "learning_rate", "weight_decay", "dropout", "input_size"} <= space.dimensions.keys()
    assert space.holds_current
    assert space.apply(space.current).network == space.candidate.network
    assert len({str(s) for s in trials_of(space, 8)}) > 4
    for settings in trials_of(space, 8):
        parse_job(job_text_with(text_of(), space.job, space.apply(settings)))


def test_the_default_space_looks_no_further_back_than_the_data_allow() -> None:
    job = parse_job(text_of())
    for longest, sizes in ((200, (24, 48, 96)), (50, (24, 48)), (0, (24,))):
        space = build_space(job, SearchConfig(candidate="mlp"), longest)
        assert space.dimensions["input_size"] == sizes
        assert space.longest_window == sizes[-1]


def test_settings_outside_the_space_are_tried_as_they_are_and_nothing_else_outside_is() -> None:
    space = space_of({"candidate": "lstm", "space": {"hidden_size": [8, 16], "layers": {"low": 2, "high": 3}}})
    assert not space.holds_current
    study = optuna.create_study()
    study.enqueue_trial({}, user_attrs={"current": True})
    assert space.suggest(study.ask()) == {"hidden_size": 64, "layers": 1}
    assert all(s["hidden_size"] in (8, 16) and s["layers"] > 1 for s in trials_of(space, 6))


def test_every_trial_starts_from_scratch_and_what_is_pasted_says_nothing_of_it() -> None:
    space = space_of({"candidate": "mlp", "space": {"hidden_size": [8, 16]}}, training={"start": "warm"})
    candidate = space.apply({"hidden_size": 8})
    assert space.job.training_of(space.from_scratch(candidate)).start == "scratch"
    assert write_candidate(candidate) == {"name": "mlp", "kind": "mlp", "input_size": 24, "hidden_size": 8}
    cold = space_of({"candidate": "mlp"})
    assert cold.from_scratch(cold.candidate) == cold.candidate


def test_the_same_seed_makes_the_same_trials() -> None:
    space = space_of({"candidate": "lstm", "space": LSTM_SPACE})
    assert trials_of(space, 14) == trials_of(space, 14)
    assert trials_of(space, 14) != trials_of(space, 14, seed=2)


def test_a_study_is_another_where_its_scores_would_not_compare() -> None:
    def name(data: str = "d", search: dict[str, Any] | None = None, **changes: Any) -> str:
        space = space_of({"candidate": "lstm", "space": LSTM_SPACE, **(search or {})}, **changes)
        return study_name("lstm", space.digests(data))

    first = name()
    assert name(data="e") != first
    assert name(search={"space": {"hidden_size": [32, 64]}}) != first
    assert name(horizon=5) != first
    assert name(training={"max_epochs": 7}) != first
    assert name(evaluation={"validation_size": 50}) != first
    assert name(gate={"metric": "mae"}) != first
    # What is searched, and what has no part in a score, may change under way.
    assert name(search={"trials": 99, "max_seconds": 5, "seed": 3}) == first
    assert name(gate={"alpha": 0.1}, schedule={"cron": "0 6 * * 1"}) == first
    improved = [*JOB["candidates"][1:2], {**JOB["candidates"][2], "hidden_size": 32}]
    assert name(candidates=improved) == first


def test_a_trial_is_stopped_by_its_peers_and_not_by_losses_of_another_unit() -> None:
    study = optuna.create_study(pruner=PeerPruner())

    def trial_of(unit: str, losses: list[float], *, finish: bool = True) -> optuna.Trial:
        trial = study.ask()
        trial.set_user_attr("unit", unit)
        trial.set_user_attr("max_epochs", 10)
        for epoch, loss in enumerate(losses, start=1):
            trial.report(loss, epoch)
        if finish:
            study.tell(trial, losses[-1])
        return trial

    for _ in range(4):
        trial_of("window of 24", [0.1, 0.1, 0.1])
        trial_of("window of 48", [0.9, 0.9, 0.9])
    assert not trial_of("window of 48", [0.8, 0.8], finish=False).should_prune()
    assert trial_of("window of 24", [0.8, 0.8], finish=False).should_prune()
    assert not trial_of("window of 24", [0.8], finish=False).should_prune(), "the first fifth is a warm-up"
    assert not trial_of("window of 96", [9.0, 9.0], finish=False).should_prune(), "it has no peers"


def test_what_changes_the_unit_of_the_validation_loss_is_known() -> None:
    space = space_of({"candidate": "lstm"})
    unit = space.unit_of(space.candidate)
    same = {"hidden_size": 8, "layers": 3, "dropout": 0.1, "learning_rate": 0.5, "kind": "gru", "batch_size": 3}
    other = {"input_size": 96, "scaling": "mean", "scale_span": 7, "head": "student_t", "loss": "absolute"}
    assert all(space.unit_of(space.apply({name: value})) == unit for name, value in same.items())
    assert all(space.unit_of(space.apply({name: value})) != unit for name, value in other.items())
