"""docs/api.md is held to what the service does."""

import json
import re
from contextlib import closing
from pathlib import Path

import httpx
import pandas as pd
import pytest

from forecasting.forecaster import Forecaster
from forecasting.spec import CovariatesSpec, MLPSpec, RidgeSpec, StaticSpec
from ledger.ledger import open_ledger
from service.problems import KINDS, Problem
from service.schemas import ForecastAnswer, SeriesForecast
from service.settings import ServiceSettings
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
COMMANDS = [
    command.replace("\\\n", " ")
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for command in re.findall(r"^curl .*?(?=^curl |\Z)", block, re.DOTALL | re.MULTILINE)
]


COVARIATES = CovariatesSpec(
    past=("ambient",),
    future=("setpoint",),
    static=(
        StaticSpec(name="unique_id", categories=("boiler-1",)),
        StaticSpec(name="site", categories=("north", "south")),
    ),
    calendar=("weekday",),
)


def models() -> list[Forecaster]:
    """Return models that need as much history as the examples give."""
    return [
        build_forecaster("sp500", "XNYS", MLPSpec(input_size=5, hidden_size=8)),
        build_forecaster("co2", "W-SAT", RidgeSpec(input_size=8)),
        build_forecaster("boiler", "D", MLPSpec(input_size=4, hidden_size=8), covariates=COVARIATES),
    ]


def run(client: httpx.Client, command: str) -> httpx.Response:
    path = re.search(r"http://127\.0\.0\.1:8000(\S+)", command)
    body = re.search(r"-d '(.*)'", command, re.DOTALL)
    assert path is not None
    address = path.group(1).rstrip("'")
    if body is None:
        key = dict(re.findall(r"-H '(Idempotency-Key): ([^']*)'", command))
        return client.request("POST" if "-X POST" in command else "GET", address, headers=key)
    return client.post(address, content=body.group(1), headers={"content-type": "application/json"})


def test_every_command_works_as_it_is_printed(publish: Publish, serve: Serve, tmp_path: Path) -> None:
    for forecaster in models():
        publish(forecaster)
    assert len(COMMANDS) == 19
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        ds = pd.date_range(end=pd.Timestamp.now().normalize(), periods=8, freq="W-SAT").as_unit("us")
        ledger.observations.append("co2", pd.DataFrame({"unique_id": "mauna-loa", "ds": ds, "y": 370.0}))
        ledger.runs.set_job("co2", "c0ffee", "every Monday at 06:00", None)
    with serve(ledger_url=f"sqlite:///{tmp_path}/ledger.db") as client:
        wait_until(lambda: all(run(client, command).status_code != 503 for command in COMMANDS))
        for command in COMMANDS:
            answer = run(client, command)
            assert answer.status_code == (202 if "-X POST" in command else 200), (command, answer.text)
            assert "degraded" not in answer.text, "examples show how it is done well"


def test_the_reasons_are_worded_as_they_are_listed(publish: Publish, serve: Serve) -> None:
    """Names and counts apart, every reason the service can give for a shortfall is in the table."""

    def wording(reason: str) -> str:
        return (
            re.sub(r"[0-9]+", "N", re.sub(r"'[^']*'", "NAME", reason))
            .removeprefix("site ")
            .removeprefix("series ")
        )

    listed = {
        wording(reason)
        for reason in re.findall(r"^\| `((?:past|future|static|site|series) '[^`]*)` \|", TEXT, re.M)
    }
    publish(models()[-1])
    days = {"start": "2024-01-08", "y": [1.0] * 4}
    series = [
        {"unique_id": "nothing", **days},
        {"unique_id": "window", **days, "future": {"setpoint": [None] * 4 + [1] * 4}, "static": {"site": "west"}},
        {"unique_id": "ahead", **days, "future": {"setpoint": [1] * 5}},
    ]
    with serve() as client:
        answer = client.post("/v1/forecast", json={"model": "boiler", "series": series}).json()
    given = {wording(part) for one in answer["forecasts"] for part in one["reason"].split("; ")}
    assert given == listed


def test_the_printed_answers_have_the_shape_of_real_ones() -> None:
    answer, stood_in, problem = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert ForecastAnswer.model_validate_json(answer, strict=True).model_dump() == json.loads(answer)
    assert SeriesForecast.model_validate_json(stood_in, strict=True).model_dump() == json.loads(stood_in)
    assert Problem.model_validate_json(problem, strict=True).model_dump() == json.loads(problem)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.slug)
def test_every_kind_of_problem_is_listed_with_its_status(kind: object) -> None:
    assert f"| `{kind.type}` | {kind.status} |" in TEXT


def test_no_other_problem_is_listed() -> None:
    assert len(re.findall(r"^\| `urn:", TEXT, re.MULTILINE)) == len(KINDS)


def test_the_table_of_settings_is_that_of_the_code() -> None:
    listed = dict(re.findall(r"^\| `HINDCAST_(\w+)` \|[^|]*\| (.*) \|$", TEXT, re.MULTILINE))
    expected = {name.upper(): field.description for name, field in ServiceSettings.model_fields.items()}
    assert listed == expected


@pytest.mark.parametrize("name", ServiceSettings.model_fields)
def test_every_default_in_the_table_is_that_of_the_code(name: str) -> None:
    field = ServiceSettings.model_fields[name]
    (shown,) = re.findall(rf"^\| `HINDCAST_{name.upper()}` \| ?(.*?) ?\|", TEXT, re.MULTILINE)
    if field.default is None or field.default_factory is not None:
        assert shown == ""
    else:
        assert str(ServiceSettings(**{name: shown.strip("`")}).__getattribute__(name)) == str(field.default)
