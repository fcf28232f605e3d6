"""Job files: every field documented, every mistake named."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from forecasting.errors import JobError
from forecasting.forecaster import interval_bounds
from training import job as job_module
from training.job import JobConfig, load_job, parse_job

ROOT = Path(__file__).parent.parent.parent
JOBS = ROOT / "jobs"
COMPARISONS = ROOT / "benchmarks" / "jobs"

WHOLE_SECTIONS = {
    "source",
    "target",
    "covariates",
    "candidates",
    "training",
    "evaluation",
    "gate",
    "schedule",
    "triggers",
    "search",
    "network",
    "kind",
}
"""Fields that are sections; what they are is said of their own fields."""

MINIMAL: dict[str, Any] = {
    "name": "sensors",
    "source": {"kind": "simulate"},
    "freq": "h",
    "horizon": 4,
    "candidates": [{"kind": "mlp", "input_size": 5}],
}

DESIGN_EXAMPLE = """
name: sp500
source: {kind: sample, dataset: sp500}
target: {column: Close, transform: log_return}
freq: XNYS
horizon: 5
level: [80, 95]
candidates:
  - {kind: mlp, input_size: 5, hidden_size: 64}
  - {kind: lstm, input_size: 120, hidden_size: 64, layers: 2}
training: {loss: quantile, optimizer: rmsprop, learning_rate: 0.001, clip_norm: 1.0, seed: 1}
evaluation: {n_windows: 20, step_size: 5}
gate: {metric: crps, alpha: 0.05}
schedule: {cron: "30 17 * * 1-5", timezone: America/New_York}
"""


def with_field(path: str, value: Any) -> str:
    """Return the minimal job as YAML with one field set, by its dotted path."""
    content = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, last = path.split(".")
    at = content
    for name in parents:
        at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
    at[last] = value
    return yaml.safe_dump(content)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.name)
def test_the_jobs_that_ship_are_valid(path: Path) -> None:
    assert load_job(path).name == path.stem


@pytest.mark.parametrize("path", sorted(COMPARISONS.glob("*.yaml")), ids=lambda p: p.name)
def test_the_comparisons_of_the_guide_are_valid_and_need_no_network(path: Path) -> None:
    assert load_job(path).source.kind in ("sample", "simulate")


def test_a_whole_job_reads_as_it_is_written() -> None:
    job = parse_job(DESIGN_EXAMPLE)
    assert [c.name for c in job.candidates] == ["mlp", "lstm"]
    assert job.candidates[1].network.layers == 2
    assert job.candidates[0].network.scaling == "difference", "returns are the natural input of a log_return job"
    assert job.session_calendar == "XNYS"
    assert job.spec_of(job.candidates[0].network).quantiles[:2] == (0.01, 0.025), "the tail of returns, and 95 %"


def test_a_candidate_may_override_the_training() -> None:
    job = parse_job(with_field("candidates.0.training", {"learning_rate": 0.5}))
    assert job.training_of(job.candidates[0]).learning_rate == 0.5
    assert job.training.learning_rate != 0.5


def test_candidates_of_one_kind_are_numbered() -> None:
    job = parse_job(with_field("candidates", [{"kind": "lstm", "input_size": n} for n in (5, 6, 7)]))
    assert [c.name for c in job.candidates] == ["lstm", "lstm-2", "lstm-3"]


def test_a_candidate_of_a_baselines_kind_stands_beside_the_baseline() -> None:
    """A seasonal naive of another season must not become the one that skill and the gate measure by."""
    candidate = {"kind": "seasonal_naive", "input_size": 6, "season_length": 3}
    job = parse_job(with_field("candidates", [candidate]))
    assert [c.name for c in job.candidates] == ["seasonal_naive-2"]
    with pytest.raises(JobError, match="cannot take the name of a baseline: 'seasonal_naive'"):
        parse_job(with_field("candidates", [{**candidate, "name": "seasonal_naive"}]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("surprise", 1, r"surprise: Extra inputs"),
        ("training.lerning_rate", 1, r"training\.lerning_rate: Extra"),
        ("candidates.0.hiden_size", 1, r"candidates\[0\].*hiden_size: Extra"),
        ("candidates.0.hidden_size", 0, r"candidates\[0\].*hidden_size"),
        ("candidates.0.kind", "transformer", r"candidates\[0\].*transformer"),
        ("candidates.0.training", {"nope": 1}, r"candidates\[0\]\.training: nope: Extra"),
        ("candidates.0.training", {"learning_rate": 7}, r"candidates\[0\]\.training: learning_rate: "),
        ("candidates", [], r"candidates"),
        ("candidates.0.input_size", 1, r"candidates\[0\]\.input_size is 1; a window of one value has no scale"),
        ("candidates", [{"kind": "mlp", "input_size": 5, "name": "a"}] * 2, r"two candidates have the name 'a'"),
        ("candidates.0.name", "ridge", r"name of a baseline: 'ridge'"),
        ("freq", "fortnight", r"freq: .*unknown frequency 'fortnight'"),
        ("horizon", 0, r"horizon"),
        ("level", [120], r"level\[0\]"),
        ("level", [99.99999999], r"level\[0\]"),
        ("name", "My Job", r"name: "),
        ("schedule", {"cron": "61 * * * *"}, r"schedule\.cron: .*not a cron"),
        ("schedule", {"cron": "* * *"}, r"schedule\.cron: .*not a cron"),
        ("schedule", {"cron": "0 6 * * 1", "timezone": "Mars/Olympus"}, r"unknown time zone 'Mars/Olympus'"),
        ("schedule", {"cron": "0 6 * * 1", "sessions": "NOPE"}, r"schedule\.sessions: .*'NOPE'"),
        ("schedule", {"cron": "0 6 * * 1", "sessions": "D"}, r"schedule\.sessions: 'D' is not an exchange"),
        ("source", {"kind": "csv", "path": "a.csv", "timezone": "Mars/Olympus"}, r"source\..*zone 'Mars/Olympus'"),
        ("source", {"kind": "sql", "url_env": "A", "table": "t", "timezone": ""}, r"source\..*time zone ''"),
        ("source", {"kind": "oracle"}, r"source: .*oracle"),
        ("training.learning_rate", float("nan"), r"training\.learning_rate"),
    ],
)
def test_a_mistake_is_named_by_its_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_job(with_field(path, value))


@pytest.mark.parametrize("text", ["", "[]", "just words", "a: [", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(JobError):
        parse_job(text)


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(JobError, match="'horizon' is there twice"):
        parse_job(yaml.safe_dump(MINIMAL) + "horizon: 9\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot read the job file .*nowhere.yaml"):
        load_job(tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match=r"job.yaml: it is not text in UTF-8"):
        load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize("level", [0.001, 50, 99.9, 99.12345, 200 / 3, 99.9999])
def test_every_level_a_job_may_ask_for_can_be_answered(level: float) -> None:
    job = parse_job(with_field("level", [level]))
    spec = job.spec_of(job.candidates[0].network)
    low, high = interval_bounds(spec.quantiles, level)
    assert low in spec.quantiles
    assert high in spec.quantiles


def test_every_field_of_the_job_file_says_what_it_is() -> None:
    sections = [m for m in vars(job_module).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    silent = [
        f"{section.__name__}.{name}"
        for section in sections
        if section.__module__ == job_module.__name__
        for name, field in section.model_fields.items()
        if not field.description and name not in WHOLE_SECTIONS
    ]
    assert silent == []


def test_defaults_are_the_documented_ones() -> None:
    job = JobConfig.model_validate(MINIMAL)
    assert (job.season, job.step_size, job.level, job.gate.metric) == (24, 4, (80.0, 95.0), "crps")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"candidates": [{"kind": "mlp", "input_size": 5, "training": {"loss": "squared"}}]},
            r"candidate 'mlp': head quantile is fitted with quantile, not with loss squared",
        ),
        (
            {"candidates": [{"kind": "segment_lstm", "input_size": 48, "scale": "series"}]},
            r"candidate 'segment_lstm': scale: series takes unique_id among the static covariates",
        ),
        ({"covariates": {"calendar": ["hour", "holiday"]}}, "holiday takes a country"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_loaded(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        parse_job(yaml.safe_dump({**MINIMAL, **changes}))
