"""POST /v1/observations: idempotent, whole but for the rows that are refused and told."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

import service.intake
from ledger.ledger import Ledger, open_ledger
from service.intake import NDJSON, PARQUET
from tests.conftest import free_port
from tests.service.conftest import Serve, wait_until

Post = Callable[..., httpx.Response]
HOURS = [f"2024-03-01T0{hour}:00:00Z" for hour in range(4)]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """The ledger of the service under test, opened beside it."""
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as opened:
        yield opened


@pytest.fixture
def client(serve: Serve, ledger: Ledger, tmp_path: Path) -> Iterator[httpx.Client]:
    with serve(ready=False, ledger_url=f"sqlite:///{tmp_path}/ledger.db") as client:
        wait_until(lambda: post(client, {"dataset": "warm", "observations": [row()]}).status_code == 200)
        yield client


def row(**changes: Any) -> dict[str, Any]:
    return {"unique_id": "pump-7", "ds": HOURS[0], "y": 1.0, **changes}


def post(
    client: httpx.Client, content: Any, media_type: str = "application/json", **params: Any
) -> httpx.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return client.post("/v1/observations", content=body, headers={"content-type": media_type}, params=params)


def counts(answer: httpx.Response) -> tuple[int, int, int, int]:
    assert answer.status_code == 200, answer.text
    content = answer.json()
    return content["new"], content["revised"], content["unchanged"], content["refused"]


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def known(ledger: Ledger, column: str = "y") -> list[tuple[str, float]]:
    frame = ledger.observations.read("plant", column=column).to_frame()
    return list(zip(frame["unique_id"], frame["y"], strict=True))


ROWS = [row(ds=ds, y=float(i)) for i, ds in enumerate(HOURS)]
LINES = b"\n".join(json.dumps(one).encode() for one in ROWS) + b"\n\n"
SERIES = [{"unique_id": "pump-7", "ds": HOURS, "y": [0, 1, 2, 3]}]
TABLE = parquet(unique_id=["pump-7"] * 4, ds=HOURS, y=[0.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("content", "media_type", "params"),
    [
        ({"dataset": "plant", "observations": ROWS}, "application/json", {}),
        ({"observations": ROWS}, "application/json", {"dataset": "plant"}),
        ({"dataset": "plant", "series": SERIES}, "application/json", {}),
        (LINES, NDJSON, {"dataset": "plant"}),
        (TABLE, PARQUET, {"dataset": "plant"}),
    ],
    ids=["rows", "rows, named outside", "series", "lines", "parquet"],
)
def test_what_is_sent_twice_is_kept_once(
    client: httpx.Client, ledger: Ledger, content: Any, media_type: str, params: dict[str, str]
) -> None:
    first = post(client, content, media_type, **params)
    again = post(client, content, media_type, **params)

    assert counts(first) == (4, 0, 0, 0)
    assert counts(again) == (0, 0, 4, 0)
    assert known(ledger) == [("pump-7", float(i)) for i in range(4)]
    known_at = pd.Timestamp(first.json()["known_at"]).to_pydatetime()
    assert ledger.observations.last_known_at("plant") == known_at


def test_a_revision_is_counted_and_what_was_known_stays(client: httpx.Client, ledger: Ledger) -> None:
    post(client, {"dataset": "plant", "observations": ROWS})
    changed = [row(ds=HOURS[0], y=7), row(ds=HOURS[1], y=None)]
    assert counts(post(client, {"dataset": "plant", "observations": changed})) == (0, 2, 0, 0)
    assert len(ledger.observations.revisions("plant", "pump-7")) == 6


BAD = [
    ({"y": "x"}, "y", "must be a number or null, not the text 'x'"),
    ({"y": 1e999}, "y", "must be finite, not inf"),
    (
        {"ds": "yesterday"},
        "ds",
        "must be a timestamp in ISO 8601 of the years 1800 to 2199, not the text 'yesterday'",
    ),
    (
        {"unique_id": ""},
        "unique_id",
        "must be 1 to 256 characters, none of them control characters, not the text ''",
    ),
]


@pytest.mark.parametrize(("change", "field", "reason"), BAD)
def test_a_bad_row_fails_alone_in_json_and_in_lines(
    client: httpx.Client, ledger: Ledger, change: dict[str, Any], field: str, reason: str
) -> None:
    rows = [ROWS[0], row(**change), ROWS[2]]
    lines = b"\n".join(json.dumps(one).encode() for one in rows)
    expected = {"unique_id": change.get("unique_id", "pump-7"), "field": field, "reason": reason}

    by_rows = post(client, {"dataset": "plant", "observations": rows})
    by_lines = post(client, lines, NDJSON, dataset="plant")

    assert counts(by_rows) == (2, 0, 0, 1)
    assert by_rows.json()["refusals"] == [{"row": 1, **expected}]
    assert by_lines.json()["refusals"] == [{"row": 2, **expected}], "lines are counted from one"
    assert known(ledger) == [("pump-7", 0), ("pump-7", 2)]


def test_what_is_no_row_at_all_fails_alone_too(client: httpx.Client) -> None:
    lines = b'{"unique_id": \n[1]\n' + LINES
    answer = post(client, lines, NDJSON, dataset="plant")
    assert counts(answer) == (4, 0, 0, 2)
    assert [(one["row"], one["field"]) for one in answer.json()["refusals"]] == [(1, "row"), (2, "row")]
    assert answer.json()["refusals"][1]["reason"] == "must be an object"


@pytest.mark.parametrize(
    ("bad", "refused", "field"),
    [
        ({"unique_id": "b", "ds": HOURS[:2], "y": [1]}, 2, "y"),
        ({"unique_id": "b", "ds": HOURS[:2]}, 2, "y"),
        ({"unique_id": "b", "ds": [], "y": []}, 1, "ds"),
        ({"unique_id": "b", "ds": HOURS[:2], "y": [1, 2], "columns": {"ds": [1, 2]}}, 2, "columns"),
        ({"unique_id": "b", "ds": HOURS[:2], "y": [1, 2], "start": "2024-01-01"}, 2, "series"),
        ("b", 1, "series"),
        ({"unique_id": None, "ds": HOURS[:2], "y": [1, 2]}, 2, "unique_id"),
    ],
)
def test_a_bad_series_fails_alone(client: httpx.Client, bad: Any, refused: int, field: str) -> None:
    answer = post(client, {"dataset": "plant", "series": [bad, *SERIES]})
    assert counts(answer) == (4, 0, 0, refused)
    assert answer.json()["refusals"][0]["field"] == field


def test_columns_and_names_are_kept_beside_the_values(client: httpx.Client, ledger: Ledger) -> None:
    series = [
        {"unique_id": "a", "ds": HOURS, "y": [1, 2, 3, 4], "columns": {"load": [5, 6, None, 8]}},
        {"unique_id": "b", "ds": HOURS[:1], "columns": {"speed": [9]}, "static": {"site": "north"}},
    ]
    assert counts(post(client, {"dataset": "plant", "series": series})) == (8, 0, 1, 0)
    assert known(ledger, "load") == [("a", 5), ("a", 6), ("a", 8)]
    assert known(ledger, "speed") == [("b", 9)]
    assert ledger.observations.labels("plant") == {"b": {"site": "north"}}


def test_a_column_that_a_row_does_not_name_is_not_withdrawn(client: httpx.Client, ledger: Ledger) -> None:
    """A key that is not there says nothing; null says that there is no value."""
    post(client, {"dataset": "plant", "observations": [row(load=5.0, site="north")], "static": ["site"]})
    later = [{"unique_id": "pump-7", "ds": HOURS[0], "load": 6.0}, row(unique_id="b", y=2.0)]
    post(client, {"dataset": "plant", "observations": later, "static": ["site"]})
    assert known(ledger) == [("b", 2), ("pump-7", 1)]
    assert known(ledger, "load") == [("pump-7", 6)]
    assert ledger.observations.labels("plant") == {"pump-7": {"site": "north"}}

    post(client, {"dataset": "plant", "observations": [row(y=None)]})
    assert np.isnan(known(ledger)[1][1])


def test_parquet_keeps_the_types_it_declares(client: httpx.Client, ledger: Ledger) -> None:
    stamps = pd.date_range("2024-03-31", periods=3, freq="h", tz="Europe/Berlin")
    content = parquet(
        unique_id=pa.array([7, 7, None]),
        ds=pa.array(stamps.to_pydatetime(), pa.timestamp("ms", "Europe/Berlin")),
        y=pa.array([1, 2, 3], pa.float32()),
        site=pa.array(["n", "n", "s"]).dictionary_encode(),
    )
    answer = post(client, content, PARQUET, dataset="plant", static="site")
    assert counts(answer) == (2, 0, 0, 1)
    assert answer.json()["refusals"][0]["row"] == 2
    assert ledger.observations.revisions("plant", "7")["ds"].tolist() == list(stamps[:2].tz_convert(None))
    assert ledger.observations.labels("plant") == {"7": {"site": "n"}}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PAR1 not at all", "not Parquet that can be read"),
        (TABLE[:-40] + TABLE[-8:], "not Parquet that can be read"),
        (parquet(unique_id=["a"], ds=[1.5], y=[1.0]), "column 'ds' holds double"),
        (parquet(unique_id=["a"], ds=HOURS[:1], y=[[1.0]]), "column 'y' holds list"),
        (parquet(unique_id=["a"], ds=HOURS[:1], y=[1.0], site=["n"]), "?static=site"),
        (parquet(unique_id=["a"], ds=HOURS[:1]), "a column of values"),
        (
            parquet(
                unique_id=pa.array([], pa.string()), ds=pa.array([], pa.string()), y=pa.array([], pa.float64())
            ),
            "no",
        ),
    ],
    ids=range(7),
)
def test_parquet_that_cannot_be_meant_is_refused(client: httpx.Client, content: bytes, why: str) -> None:
    answer = post(client, content, PARQUET, dataset="plant")
    assert answer.status_code == 422, answer.text
    assert why in answer.json()["detail"]


def test_small_parquet_that_unpacks_to_much_is_refused(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = service.intake.MOST_ROWS + 1
    many = parquet(
        unique_id=pa.array(["a"] * n).dictionary_encode(), ds=np.zeros(n, "datetime64[us]"), y=np.zeros(n)
    )
    assert len(many) < 100_000
    answer = post(client, many, PARQUET, dataset="plant")
    assert (answer.status_code, "500001 rows" in answer.text) == (422, True)

    long = pa.table({"unique_id": ["a" * 3_000_000, "b"], "ds": HOURS[:2], "y": [1.0, 2.0]})
    file = io.BytesIO()
    pyarrow.parquet.write_table(long, file, compression="zstd")
    assert len(file.getvalue()) < 10_000
    assert counts(post(client, file.getvalue(), PARQUET, dataset="plant")) == (1, 0, 0, 1)
    monkeypatch.setattr(service.intake, "MOST_UNPACKED", 2_000_000)
    assert "unpacks to" in post(client, file.getvalue(), PARQUET, dataset="plant").json()["detail"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"dataset": "plant"}, "give either observations or series"),
        ({"dataset": "plant", "observations": [], "series": []}, "give either"),
        ({"dataset": "plant", "observations": []}, "there is no observation"),
        ({"dataset": "plant", "observations": {}}, "observations must be a list"),
        ({"dataset": "plant", "rows": []}, "there is no field 'rows'"),
        ({"dataset": "../x", "observations": [row()]}, "no dataset can be named"),
        ({"dataset": 7, "observations": [row()]}, "dataset must be a text"),
        ({"observations": [row()]}, "which dataset"),
        ([row()], "the body must be an object"),
        ({"dataset": "plant", "observations": [row(**{"\x00": 1})]}, "no column can be named"),
        ({"dataset": "plant", "observations": [row(**{f"c{i}": 1 for i in range(300)})]}, "at most 256"),
        ({"dataset": "plant", "observations": [{"unique_id": "a", "ds": HOURS[0]}]}, "a column of values"),
        (
            {"dataset": "plant", "observations": [7]},
            "none of 1 rows can be kept; the first: row must be an object",
        ),
        (
            {"dataset": "plant", "observations": [row(y="x")] * 200},
            "none of 200 rows can be kept; the first: y must",
        ),
        ({"dataset": "plant", "series": [{}]}, "none of 1 rows can be kept; the first: ds must be a list"),
    ],
)
def test_a_body_of_which_nothing_can_be_kept_is_a_problem(client: httpx.Client, content: Any, why: str) -> None:
    answer = post(client, content)
    assert answer.status_code == 422, answer.text
    assert why in answer.json()["detail"]
    assert len(answer.json()["errors"]) <= 100


def test_the_address_and_the_body_agree_on_the_dataset(client: httpx.Client) -> None:
    answer = post(client, {"dataset": "plant", "observations": [row()]}, dataset="other")
    assert (answer.status_code, "the address says 'other'" in answer.text) == (422, True)


def test_other_kinds_of_body_are_not_taken(client: httpx.Client) -> None:
    assert post(client, b"unique_id,ds,y", "text/csv").status_code == 415
    assert post(client, b"{", "application/json").json()["type"].endswith("malformed-json")


def test_a_body_has_the_limits_of_every_body(serve: Serve) -> None:
    with serve(ready=False, max_body_bytes=2000) as client:
        assert post(client, b" " * 2001).status_code == 413


def test_a_ledger_that_is_away_is_said_with_when_to_come_back(serve: Serve) -> None:
    with serve(ready=False, ledger_url=f"postgresql://127.0.0.1:{free_port()}/x") as client:
        answer = post(client, {"dataset": "plant", "observations": ROWS})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["type"].endswith("ledger-unavailable")
        assert post(client, {"dataset": "plant", "observations": [7]}).status_code == 422
    with serve(ready=False) as client:
        assert "this service has no ledger" in post(client, {"dataset": "plant", "observations": ROWS}).text
