"""The `source:` of a job file: one union of all kinds, and the documentation of each."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

import training.sources
from training.sources import AnySource, Source

KINDS = {"sample", "simulate", "csv", "parquet", "yahoo", "sql", "ledger"}
CLASSES = [getattr(training.sources, name) for name in training.sources.__all__]
CONFIGS = [c for c in CLASSES if isinstance(c, type) and issubclass(c, BaseModel) and "kind" in c.model_fields]
DOCS = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", DOCS, flags=re.DOTALL)


def _parse(config: object) -> Source:
    return TypeAdapter(AnySource).validate_python(config)


def test_every_kind_has_one_class() -> None:
    assert {config.model_fields["kind"].default for config in CONFIGS} == KINDS
    assert len(CONFIGS) == len(KINDS)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_documented_example_is_a_source(example: str) -> None:
    assert callable(_parse(yaml.safe_load(example)["source"]).load)


def test_every_kind_is_documented_with_an_example() -> None:
    assert {yaml.safe_load(example)["source"]["kind"] for example in EXAMPLES} == KINDS
    assert set(re.findall(r"^### (\w+)$", DOCS, flags=re.MULTILINE)) == KINDS


def test_every_default_in_the_example_of_the_simulator_is_the_default() -> None:
    example = next(yaml.safe_load(text)["source"] for text in EXAMPLES if "simulate" in text)
    fields = training.sources.SimulateSource.model_fields
    assert set(example) <= set(fields)
    chosen = {"n_sensors", "n_steps", "freq", "seed", "start", "kind"}
    assert {name: fields[name].default for name in set(example) - chosen} == {
        name: value for name, value in example.items() if name not in chosen
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_is_described(config: type[BaseModel]) -> None:
    assert not [name for name, field in config.model_fields.items() if not field.description]


@pytest.mark.parametrize("config", [{"kind": "ftp"}, {"dataset": "co2"}, {}])
def test_an_unknown_kind_is_refused_with_those_there_are(config: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"kind|discriminator"):
        _parse(config)


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "sample", "dataset": "co2", "path": "x"},
        {"kind": "sample", "dataset": "etth1"},
        {"kind": "sample"},
        {"kind": "csv"},
        {"kind": "yahoo"},
    ],
)
def test_a_key_too_many_or_too_few_is_refused(config: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        _parse(config)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_source_survives_the_way_through_json(kind: str) -> None:
    required = {
        "sample": {"dataset": "co2"},
        "csv": {"path": "a"},
        "parquet": {"path": "a"},
        "sql": {"url_env": "PLANT_DB", "table": "readings"},
        "ledger": {"dataset": "plant"},
    }
    source = _parse({"kind": kind, **required.get(kind, {}), **({"tickers": ["AAPL"]} if kind == "yahoo" else {})})
    assert TypeAdapter(AnySource).validate_json(TypeAdapter(AnySource).dump_json(source)) == source
