"""The documents are held to the code: fields, commands, exit codes, examples and links."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from forecasting.spec import (
    DriftSpec,
    MLPSpec,
    NaiveSpec,
    PriceColumns,
    RecurrentSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
    SegmentSpec,
    VolatilitySpec,
)
from pipelines.cli import EXIT_CODES, app
from tests.training.test_job import WHOLE_SECTIONS
from training.job import (
    CovariatesConfig,
    EvaluationConfig,
    GateConfig,
    JobConfig,
    ScheduleConfig,
    SearchConfig,
    SearchRange,
    TargetConfig,
    TrainingConfig,
    TriggersConfig,
    UniverseConfig,
    parse_job,
)

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("", JobConfig),
    ("target", TargetConfig),
    ("covariates", CovariatesConfig),
    ("prices", PriceColumns),
    ("universe", UniverseConfig),
    ("candidates[] kind: mlp", MLPSpec),
    ("candidates[] kind: rnn, gru, lstm", RecurrentSpec),
    ("candidates[] kind: segment_rnn, segment_gru, segment_lstm", SegmentSpec),
    ("candidates[] kind: volatility_rnn, volatility_gru, volatility_lstm", VolatilitySpec),
    ("candidates[] kind: ridge", RidgeSpec),
    ("candidates[] kind: naive", NaiveSpec),
    ("candidates[] kind: seasonal_naive", SeasonalNaiveSpec),
    ("candidates[] kind: drift", DriftSpec),
    ("training", TrainingConfig),
    ("evaluation", EvaluationConfig),
    ("gate", GateConfig),
    ("schedule", ScheduleConfig),
    ("triggers", TriggersConfig),
    ("search", SearchConfig),
    ("search.space", SearchRange),
)


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default: Any = field.default
    if default is None:
        return ""
    return f"`{list(default)}`" if isinstance(default, tuple) else f"`{default}`"


def field_tables() -> str:
    """Return the tables of every job field as the code has them."""
    parts = []
    for section, model in SECTIONS:
        told_elsewhere = WHOLE_SECTIONS if model is JobConfig else {"kind"}
        fields = {n: f for n, f in model.model_fields.items() if n not in told_elsewhere}
        rows = [f"| `{name}` | {default_of(field)} | {field.description} |" for name, field in fields.items()]
        title = f"`{section}`" if section else "The job itself"
        parts.append("\n".join([f"{title}", "", "| field | default | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


def test_the_job_page_lists_every_field_as_the_code_has_it() -> None:
    page = (ROOT / "docs/jobs.md").read_text()
    found = page.split("<!-- fields -->")[1].split("<!-- /fields -->")[0].strip()
    assert found == field_tables(), "expected:\n" + field_tables()


def test_the_command_page_lists_every_command_and_exit_code() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    listed = set(re.findall(r"\| `hindcast (\w+)", page))
    assert listed == {command.name for command in app.registered_commands}
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert codes == {0, 1, 130, *(code for _, code in EXIT_CODES)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_job_files_in_the_documents_are_valid(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        content = yaml.safe_load(block)
        if isinstance(content, dict) and "candidates" in content:
            parse_job(block, where=page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_the_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
