"""Bodies that somebody broke on purpose: answered or refused as documented, never a 5xx, and nobody notices."""

import io
import json
import re
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.intake import NDJSON, PARQUET
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until

JSON = "application/json"
Y = [round(20 + i % 7 / 3, 2) for i in range(24)]
SERIES = {"unique_id": "pump-7", "start": "2024-01-01T00:00:00", "y": Y}
ROWS = [{"unique_id": "pump-7", "ds": "2024-02-01T00:00:00", "y": 1.5, "load": 2.0}]
TOLD = {
    "unique_id": "boiler-1",
    "ds": [f"2024-01-01T{h:02d}:00:00Z" for h in range(6)],
    "y": Y[:6],
    "past": {"ambient": Y[:6], "load": Y[:6]},
    "future": {"setpoint": Y[:10]},
    "static": {"site": "north"},
}

VALID: dict[str, list[Any]] = {
    "/v1/forecast": [
        {"model": "pump", "h": 3, "level": [80, 95], "record": True, "series": [SERIES]},
        {"model": "boiler", "series": [TOLD]},
    ],
    "/v1/observations": [
        {"dataset": "plant", "observations": ROWS, "static": []},
        {
            "dataset": "plant",
            "series": [
                {"unique_id": "a", "ds": ["2024-01-01"], "y": [1.0], "columns": {"x": [2]}, "static": {"k": "v"}}
            ],
        },
    ],
}
OTHERWISE = [{"model": "pump", "series": [SERIES], "h": 3, "data": {"a": [1, 2.5, None]}}]
"""What a route is sent that nobody wrote a body for here."""

HOSTILE = [
    *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "-1e308", "5e-324", "-0.0", "1e", "01", "0x10"),
    *("9" * 30, "9" * 5000, "-" + "9" * 400, "1" + "0" * 308, "0." + "1" * 5000, "18446744073709551616"),
    *('""', '" "', '"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udc00\\ud800"', '"\\uffff"', '"\n"', '"\\x"'),
    *(
        '"\u202e\ufeff\u200b"',
        '"' + "\U0001f600" * 300 + '"',
        '"' + "a" * 300 + '"',
        '"../../etc/passwd"',
        '"%s%n"',
    ),
    *('"0001-01-01"', '"9999-12-31T23:59:59.999999"', '"1800-01-01"', '"2199-12-31T23:59:59Z"', '"2024-02-30"'),
    *('"2024-01-01T00:00:00+99:99"', '"2024-13-01"', '"2016-12-31T23:59:60Z"', '"-2024-01-01"', '"1704067200"'),
    *("[]", "{}", "null", "true", "[[]]", "[null]", '{"a":1,"a":2}', '{"":1}', '{"__class__":"x","$ref":"#"}'),
    *("[" * 50 + "]" * 50, "[" * 500 + "]" * 500, "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300),
    *("[1,]", "[,]", "{,}", "undefined", "'a'", "/**/1", ""),
]
"""What stands in for a value, as it is written."""

MARK = "@here@"


def places_in(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a document, the document's own first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places_in(one, (*at, key)))]


def replace(value: Any, at: tuple[Any, ...], by: object) -> Any:
    """Return a copy of a document with another value at one place."""
    if not at:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replace(value[at[0]], at[1:], by)
    return copy


@st.composite
def with_hostile_value(draw: st.DrawFn, valid: list[Any]) -> bytes:
    document = draw(st.sampled_from(valid))
    marked = replace(document, draw(st.sampled_from(places_in(document))), MARK)
    text = json.dumps(marked).replace(json.dumps(MARK), draw(st.sampled_from(HOSTILE)))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def with_a_key_twice(draw: st.DrawFn, valid: list[Any]) -> bytes:
    text = json.dumps(draw(st.sampled_from(valid)))
    key, second = draw(st.sampled_from(re.findall(r'"\w+":', text))), draw(st.sampled_from(HOSTILE))
    return text.replace(key, f"{key} {second}, {key}", 1).encode("utf-8", "surrogatepass")


@st.composite
def with_broken_bytes(draw: st.DrawFn, valid: list[Any]) -> bytes:
    text = json.dumps(draw(st.sampled_from(valid))).encode()
    first = draw(st.integers(0, len(text)))
    last = draw(st.integers(first, min(len(text), first + 40)))
    return text[:first] + draw(st.binary(max_size=20)) + text[last:]


@st.composite
def cut_short(draw: st.DrawFn, valid: list[Any]) -> bytes:
    text = json.dumps(draw(st.sampled_from(valid))).encode()
    return text[: draw(st.integers(0, len(text)))]


@st.composite
def encoded_otherwise(draw: st.DrawFn, valid: list[Any]) -> bytes:
    text = json.dumps(draw(st.sampled_from(valid)))
    return text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037"])))


def broken(valid: list[Any]) -> st.SearchStrategy[bytes]:
    ways = (with_hostile_value, with_a_key_twice, with_broken_bytes, cut_short, encoded_otherwise)
    return st.one_of(
        *(way(valid) for way in ways), st.binary(max_size=200), st.sampled_from([b"", b" \r\n\t", b"\0"])
    )


def hold(client: httpx.Client, path: str, content: bytes, media_type: str) -> None:
    """Send a body, and hold the answer to what every answer is."""
    answer = client.post(path, content=content, headers={"content-type": media_type})
    assert answer.status_code < 500, (answer.status_code, content[:500])
    assert "Traceback" not in answer.text
    if path.startswith("/v1/") and answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code
    if answer.headers["content-type"] == JSON:
        json.loads(answer.content, parse_constant=lambda word: pytest.fail(f"{word} in an answer"))


def posts_of(client: httpx.Client) -> dict[str, str]:
    """Return every documented route that takes a POST, and an address of it."""
    names = {"job": "co2", "run": "none", "key": "none", "version": "1"}

    def fill(found: "re.Match[str]") -> str:
        return names.get(found[1], "pump")

    documented = client.get("/openapi.json").json()["paths"]
    return {path: re.sub(r"\{(\w+)[^}]*\}", fill, path) for path, item in documented.items() if "post" in item}


def test_broken_bodies_are_refused_or_answered_at_every_route(client: httpx.Client) -> None:
    posts = posts_of(client)
    assert set(VALID) <= set(posts)
    bodies = st.sampled_from(sorted(posts)).flatmap(
        lambda path: st.tuples(st.just(posts[path]), broken(VALID.get(path, OTHERWISE)))
    )

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(bodies)
    @example(("/v1/forecast", b'{"model":' * 1000))
    @example(
        ("/v1/forecast", json.dumps({"model": "price", "series": [{**SERIES, "y": [1e308, 5e-324] * 9}]}).encode())
    )
    @example(
        ("/v1/forecast", json.dumps({"model": "pump", "series": [{**SERIES, "y": [1e308, -1e308] * 12}]}).encode())
    )
    @example(
        ("/v1/forecast", json.dumps({"model": "sales", "series": [{**SERIES, "start": "2199-12-01"}]}).encode())
    )
    def check(sent: tuple[str, bytes]) -> None:
        hold(client, *sent, JSON)

    check()
    assert client.get("/health/ready").status_code == 200


def test_broken_lines_of_json_are_refused_line_by_line(client: httpx.Client) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(broken(ROWS), max_size=4))
    def check(lines: list[bytes]) -> None:
        hold(client, "/v1/observations?dataset=plant", b"\n".join(lines), NDJSON)

    check()


def parquet() -> bytes:
    stream = io.BytesIO()
    ds = pd.date_range("2024-01-01", periods=20, freq="h")
    pd.DataFrame({"unique_id": "a", "ds": ds, "y": np.arange(20.0)}).to_parquet(stream)
    return stream.getvalue()


def test_broken_parquet_is_refused(client: httpx.Client) -> None:
    good = parquet()
    address = "/v1/observations?dataset=plant"
    assert client.post(address, content=good, headers={"content-type": PARQUET}).status_code == 200

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.integers(0, len(good) - 1), st.binary(max_size=8), st.integers(0, 40))
    def check(at: int, instead: bytes, left_out: int) -> None:
        hold(client, address, good[:at] + instead + good[at + left_out :], PARQUET)

    check()


@pytest.mark.parametrize("name", ["a\0b", "\x1f", "a\nb", "\x7f"])
def test_names_that_no_database_keeps_are_refused_before_they_are_forecast(
    client: httpx.Client, name: str
) -> None:
    body = {"model": "pump", "series": [{**SERIES, "unique_id": name}]}
    answer = client.post("/v1/forecast", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "series[0].unique_id"
    told = {"model": "boiler", "series": [{**TOLD, "static": {"site": name}}]}
    assert client.post("/v1/forecast", json=told).status_code == 422


def test_no_name_that_is_answered_is_refused_by_postgresql(
    publish: Publish, serve: Serve, postgres_url: str, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    publish(build_forecaster("pump"))
    names = ["a", "\u202e\ufeff", "\U0001f600", "../x", "%00", "\x80", "\uffff", "'; drop table forecasts --"]
    with serve(ledger_url=postgres_url, home=tmp_path) as client:
        answered = [
            client.post("/v1/forecast", json={"model": "pump", "series": [{**SERIES, "unique_id": n}]})
            for n in names
        ]
        assert {answer.status_code for answer in answered} == {200}
        kept = f'hindcast_forecasts_kept_total{{outcome="written"}} {len(names)}.0'
        wait_until(lambda: kept in client.get("/metrics").text)
    assert "refuses" not in caplog.text


HOSTILE_TEXTS = ["%00", "%ff", "%ed%a0%80", "%2e%2e%2f", "%0d%0aX-A:b", "%F0%9F%98%80", "a" * 300, "%2F%2F", "-1"]
HOSTILE_QUERIES = [
    *("as_of=0001-01-01", "as_of=9999-12-31T23:59:59Z", "as_of=1e400", "h=" + "9" * 5000, "h=0", "level=nan"),
    *("level=1e-320", "level=99.99999999999999", "&".join(["level=80"] * 3000), "x=" + "a" * 30_000, "since=-1"),
    *(
        "since=2199-12-31T23:59:59-23:59",
        "since=1800-01-01T00:00:00%2B23:59",
        "limit=" + "9" * 40,
        "by=step&by=step",
    ),
    *(
        "unique_id=%00",
        "version=%00",
        "after=%ed%a0%80",
        "prefix=%00",
        "state=%ff",
        "force=maybe",
        "=",
        "&&&",
        "%",
    ),
]


def test_hostile_addresses_are_answered_or_refused_at_every_route(client: httpx.Client) -> None:
    documented = client.get("/openapi.json").json()["paths"]
    gets = [path for path, item in documented.items() if "get" in item]
    assert len(gets) > 10
    for path in gets:
        filled = [re.sub(r"\{(\w+)[^}]*\}", text, path) for text in HOSTILE_TEXTS] if "{" in path else []
        known = re.sub(r"\{unique_id[^}]*\}", "pump-7", path).replace("{model}", "pump").replace("{job}", "co2")
        for address in [*filled, *(f"{known}?{query}" for query in HOSTILE_QUERIES)]:
            answer = client.get(address)
            assert answer.status_code < 500, (address[:200], answer.text)
