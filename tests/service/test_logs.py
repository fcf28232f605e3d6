"""Log lines: one an event, whoever writes it, and no data in any."""

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.journey import CURRENT, Journey
from service.logs import JsonFormatter, TextFormatter, configure_logging
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until

SERIES = {"unique_id": "secret-pump", "start": "2024-01-01", "y": [1234.5] * 6 + [5432.25] * 6}
BODY = {"model": "pump", "series": [SERIES]}

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Return a function that returns what was logged as JSON, but for the requests that wait for readiness."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lambda: [
        line
        for line in map(json.loads, stream.getvalue().splitlines())
        if not line.get("path", "").startswith(("/health", "/metrics")) and line["logger"] != "httpx"
    ]
    root.removeHandler(handler)
    root.setLevel(level)


def of_requests(lines: Lines) -> list[dict[str, Any]]:
    return [line for line in lines() if line["logger"] == "hindcast.requests"]


def test_a_line_of_a_request_tells_what_became_of_it_and_no_data(
    publish: Publish, serve: Serve, lines: Lines
) -> None:
    publish(build_forecaster("pump"))
    with serve(log_requests="all") as client:
        client.post("/v1/forecast?secret=1", json=BODY, headers={"x-request-id": "abc"})
        client.post("/v1/forecast", json={**BODY, "h": 99})
        client.get("/v1/models/pump/series/secret-pump/forecast")
        client.get("/no%0Awhere")
        # A line is written once the answer is out, which may be after the client has read it.
        wait_until(lambda: len(of_requests(lines)) >= 4)
    answered, refused, named, lost = of_requests(lines)
    assert {key: answered[key] for key in ("request_id", "method", "path", "status")} == {
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/forecast",
        "status": 200,
    }
    assert (answered["model"], answered["version"], answered["series"]) == ("pump", "1", 1)
    assert 0 < answered["ms"] < 60_000
    assert (refused["status"], refused["problem"]) == (422, "invalid-request")
    assert (named["path"], named["status"]) == ("/v1/models/{model}/series/{unique_id:path}/forecast", 503)
    assert (lost["path"], lost["status"]) == ("/no%0Awhere", 404)
    text = json.dumps(lines())
    assert "secret" not in text
    assert "1234.5" not in text


def test_requests_that_went_well_or_were_refused_on_purpose_make_no_line(
    publish: Publish, serve: Serve, lines: Lines
) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        client.post("/v1/forecast", json=BODY)
        client.post("/v1/forecast", json={})
        client.get("/v1/accuracy")
    assert of_requests(lines) == []


def test_slow_requests_make_a_line(publish: Publish, serve: Serve, lines: Lines) -> None:
    publish(build_forecaster("pump"))
    with serve(slow_seconds=0) as client:
        client.post("/v1/forecast", json=BODY)
        wait_until(lambda: bool(of_requests(lines)))


def failing_answer(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> httpx.Response:
    """Ask for a forecast of a service with a mistake in it, whose message quotes the data."""

    def fail(body: bytes, *_: object) -> None:
        raise RuntimeError(body.decode())

    monkeypatch.setattr("service.answering.parse_request", fail)
    return client.post("/v1/forecast", json=BODY)


def test_a_request_that_fails_is_logged_with_the_place_and_without_the_data(
    publish: Publish, serve: Serve, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(build_forecaster("pump"))
    with serve() as client:
        answer = failing_answer(client, monkeypatch)
        wait_until(lambda: len(of_requests(lines)) == 2)
    assert answer.status_code == 500
    failed, told = of_requests(lines)
    assert failed["request_id"] == told["request_id"] == answer.json()["instance"]
    assert (told["level"], told["status"], told["problem"]) == ("error", 500, "internal-error")
    assert failed["exception"].startswith("builtins.RuntimeError\n")
    assert "in _decode" in failed["exception"]
    assert "1234.5" not in json.dumps(lines())
    assert "Traceback" not in answer.text


def test_an_exception_outside_a_request_keeps_its_message_on_the_same_line(lines: Lines) -> None:
    try:
        raise OSError("connection refused")
    except OSError:
        logging.getLogger("anybody").exception("it\nfailed")
    (line,) = lines()
    assert (line["level"], line["logger"], line["message"]) == ("error", "anybody", "it\nfailed")
    assert line["exception"].endswith("OSError: connection refused")
    assert "in test_an_exception_outside" in line["exception"]


def test_causes_are_shown_by_kind_and_place_too() -> None:
    token = CURRENT.set(Journey("abc"))
    try:
        try:
            raise ValueError(str(17.0 + 0.25)) from KeyError(str(18.0 + 0.25))
        except ValueError:
            record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", None, sys.exc_info())
        shown = TextFormatter().format(record)
    finally:
        CURRENT.reset(token)
    assert "failed request_id=abc\nbuiltins.KeyError\nthen:\nbuiltins.ValueError\n" in shown
    assert not re.search(r"1[78]\.25", shown)


def test_a_line_of_text_stays_one_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "forged\n2026-01-01 ERROR: %s", ("\r",), None)
    assert "\n" not in TextFormatter().format(record)
    assert "\r" not in TextFormatter().format(record)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root of all loggers, left as it was."""
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, threading.excepthook
    yield root
    logging.captureWarnings(False)
    root.handlers[:], threading.excepthook = handlers, hook
    root.setLevel(level)


def test_a_thread_that_ends_in_an_error_makes_a_line_like_any_other(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    configure_logging("info")

    def fail() -> None:
        raise RuntimeError("broken")

    thread = threading.Thread(target=fail, name="looker")
    thread.start()
    thread.join()
    line = json.loads(written.getvalue())
    assert (line["level"], line["message"]) == ("critical", "thread looker ended")
    assert line["exception"].endswith("RuntimeError: broken")


@pytest.mark.parametrize(("terminal", "asked", "expected"), [
    (False, None, JsonFormatter),
    (True, None, TextFormatter),
    (False, "text", TextFormatter),
    (True, "json", JsonFormatter),
])  # fmt: skip
def test_programs_get_json_and_people_text(
    root_logger: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    asked: Any,
    expected: type[logging.Formatter],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    configure_logging("info", asked)
    assert type(root_logger.handlers[0].formatter) is expected
