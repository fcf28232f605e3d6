"""The shape of a request is checked once, strictly, and everything wrong is named."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.parsing import parse_request
from service.problems import ProblemError
from service.schemas import ForecastRequest
from service.settings import ServiceSettings

LIMITS = ServiceSettings(max_series=5)
GOOD = {"model": "pump", "series": [{"unique_id": "a", "start": "2024-01-01", "y": [1, 2.5, None]}]}


def refused(body: bytes | str | dict[str, object]) -> ProblemError:
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    with pytest.raises(ProblemError) as caught:
        parse_request(raw, LIMITS)
    return caught.value


def series(**changes: object) -> dict[str, object]:
    one = {"unique_id": "pump-7", "start": "2024-01-01", "y": [1.0], **changes}
    return {"model": "pump", "series": [{key: value for key, value in one.items() if value != "absent"}]}


def test_a_good_request_is_read_as_it_is() -> None:
    request = parse_request(json.dumps({**GOOD, "h": 3, "level": [80, 95.5]}).encode(), LIMITS)
    assert (request.model, request.h, request.level) == ("pump", 3, [80.0, 95.5])
    assert request.series[0].y == [1.0, 2.5, None]


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    st.text(min_size=1, max_size=20).filter(lambda text: not re.search(r"[\x00-\x1f\x7f]", text)),
    st.lists(st.none() | finite | st.integers(-(10**15), 10**15), min_size=1, max_size=30),
)
def test_json_round_trips_names_and_numbers_exactly(name: str, y: list[float | None]) -> None:
    body = json.dumps({"model": "pump", "series": [{"unique_id": name, "start": "2024-01-01", "y": y}]})
    (read,) = parse_request(body.encode(), LIMITS).series
    assert read.unique_id == name
    assert read.y == y


json_values = st.recursive(
    st.none() | st.booleans() | finite | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
near_requests = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just("pump") | json_values,
        "h": st.integers(-1, 9) | json_values,
        "level": st.lists(st.floats(0, 100), max_size=3) | json_values,
        "series": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "unique_id": st.just("a") | json_values,
                    "start": st.just("2024-01-01") | json_values,
                    "ds": st.just(["2024-01-01"]) | json_values,
                    "y": st.just([1.0]) | json_values,
                    "x": json_values,
                },
            )
            | json_values,
            max_size=6,
        ),
    },
)


@settings(max_examples=150, deadline=None)
@given(near_requests | json_values)
def test_whatever_json_comes_it_is_read_or_refused_with_reasons(body: object) -> None:
    outcome = read_or_refuse(json.dumps(body).encode())
    if isinstance(outcome, ProblemError):
        assert outcome.kind.status == 400 or (outcome.kind.status == 422 and outcome.errors)
        assert outcome.detail
    else:
        assert outcome.series


def read_or_refuse(body: bytes) -> ForecastRequest | ProblemError:
    try:
        return parse_request(body, LIMITS)
    except ProblemError as problem:
        return problem


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60))
def test_whatever_bytes_come_they_are_refused(body: bytes) -> None:
    assert refused(body).kind.status in (400, 422)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "EOF while parsing"),
        (b'{"model": "pump",}', "trailing comma"),
        (b'{"model": "\xff"}', "unicode"),
        (b'{"model": "\\ud800"}', "hex escape"),
        (b"[" * 100_000, "recursion limit"),
        (b'{"a":' * 100_000, "recursion limit"),
        (b'{"y": [' + b"9" * 5000 + b"]}", "number out of range"),
        (b"\xef\xbb\xbf{}", "expected value"),
        (b"{} {}", "trailing characters"),
    ],
)
def test_a_body_that_is_not_json_is_refused_with_the_place(body: bytes, reason: str) -> None:
    problem = refused(body)
    assert problem.kind.slug == "malformed-json"
    assert reason in problem.detail
    assert "line 1 column" in problem.detail


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ('"3"', "valid number, got the string '3'"),
        ("true", "valid number, got true"),
        ("NaN", "finite number, got nan"),
        ("-Infinity", "finite number, got -inf"),
        ("1e400", "finite number, got inf"),
        ("9" * 400, "valid number, got a huge number"),
        ("[]", "valid number, got a list"),
        ("{}", "valid number, got an object"),
    ],
)
def test_only_json_numbers_and_null_are_values(value: str, got: str) -> None:
    one = f'{{"unique_id": "a", "start": "2024-01-01", "y": [1, {value}]}}'
    problem = refused(f'{{"model": "pump", "series": [{one}]}}')
    (error,) = problem.errors
    assert (error.path, error.unique_id) == ("series[0].y[1]", "a")
    assert error.detail == f"series[0].y[1] of series 'a': Input should be a {got}"


@pytest.mark.parametrize(
    ("changes", "path", "detail"),
    [
        ({"unique_id": 7}, "series[0].unique_id", "valid string, got 7"),
        ({"unique_id": ""}, "series[0].unique_id", "at least 1 character"),
        ({"unique_id": "x" * 257}, "series[0].unique_id", "at most 256 characters"),
        ({"unique_id": "absent"}, "series[0].unique_id", "Field required"),
        ({"y": "absent"}, "series[0].y", "Field required"),
        ({"y": []}, "series[0].y", "at least 1 item"),
        ({"start": "absent"}, "series[0]", "give either start or ds"),
        ({"ds": ["2024-01-01"]}, "series[0]", "give either start or ds"),
        ({"start": "absent", "ds": ["2024-01-01"] * 2}, "series[0]", "ds has 2 timestamps and y has 1 values"),
        ({"start": "absent", "ds": ["now"]}, "series[0].ds[0]", "should match pattern"),
        ({"start": 20240101}, "series[0].start", "valid string, got 20240101"),
        ({"start": "1024-01-01"}, "series[0].start", "should match pattern"),
        ({"start": "01/02/2024"}, "series[0].start", "should match pattern"),
        ({"freq": "h"}, "series[0].freq", "Extra inputs are not permitted"),
    ],
)
def test_a_field_that_is_wrong_is_named(changes: dict[str, object], path: str, detail: str) -> None:
    (error,) = refused(series(**changes)).errors
    assert error.path == path
    assert detail in error.detail


@pytest.mark.parametrize(
    ("changes", "path", "detail"),
    [
        ({"model": "../etc"}, "model", "should match pattern"),
        ({"h": 0}, "h", "greater than or equal to 1, got 0"),
        ({"h": 2.5}, "h", "valid integer, got 2.5"),
        ({"h": True}, "h", "valid integer, got true"),
        ({"level": [80, 100]}, "level[1]", "less than 100, got 100"),
        ({"level": 80}, "level", "valid list, got 80"),
        ({"level": ["80"]}, "level[0]", "valid number, got the string '80'"),
        ({"series": []}, "series", "series must be a list of series, got an empty one"),
        ({"series": {}}, "series", "series must be a list of series, got an object"),
        ({"series": [7]}, "series[0]", "series[0] must be an object, got 7"),
        ({"series": GOOD["series"] * 6}, "series", "6 series in one request; at most 5"),
        ({"series": GOOD["series"] * 2}, "series[1].unique_id", "series 'a' is there twice"),
        ({"fh": 3}, "fh", "Extra inputs are not permitted"),
    ],
)
def test_an_option_that_is_wrong_is_named(changes: dict[str, object], path: str, detail: str) -> None:
    (error,) = refused({**GOOD, **changes}).errors
    assert error.path == path
    assert detail in error.detail


def test_all_that_is_wrong_is_reported_together() -> None:
    wrong = [
        {"unique_id": "a", "start": "2024-01-01", "y": ["x", "y", "z"]},
        {"unique_id": "b", "start": "2024-01-01", "y": [1]},
        {"unique_id": 3, "start": 4, "y": 5},
    ]
    problem = refused({"model": "pump", "h": "2", "series": wrong})
    assert [error.path for error in problem.errors] == [
        "h",
        "series[0].y[0]",
        "series[2].unique_id",
        "series[2].start",
        "series[2].y",
    ]
    assert problem.detail.endswith("(and 4 more problems)")


def test_no_list_of_errors_grows_with_the_body() -> None:
    keys = dict.fromkeys(map(str, range(5000)))
    problem = refused({**GOOD, "series": [{"unique_id": "a", **keys}], **keys})
    assert [error.path for error in problem.errors] == ["", "series[0]"]
    assert "5001 keys" in problem.errors[1].detail
    many = refused({"model": "pump", "series": [{"unique_id": "a", "start": "2024-01-01", "y": ["x"] * 5000}]})
    assert len(many.errors) == 1


def test_values_are_not_repeated_at_length() -> None:
    (error,) = refused(series(start="x" * 1000)).errors
    assert error.detail.endswith("got a string of 1000 characters")
    (odd,) = refused({**GOOD, "k" * 1000: 1}).errors
    assert len(odd.path) == 64
