"""Log lines: one an event, the same shape for everybody's, and nothing in them that a client sent as data.

An exception inside a request is shown by its kinds and places alone: its message may quote what was sent.
"""

import json
import logging
import os
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from starlette.types import Scope

from service.journey import Journey, current_journey
from service.settings import LogFormat, LoggedRequests

log = logging.getLogger("hindcast.requests")

LONGEST_PATH = 200


def configure_logging(level: str, log_format: LogFormat | None = None) -> None:
    """Have everybody in this process write to standard error, in one shape.

    Args:
        level: the least severe line to write.
        log_format: None for text where a person watches (a terminal), and JSON where a program collects.
    """
    chosen = log_format or ("text" if sys.stderr.isatty() else "json")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if chosen == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_failure
    # MLflow would give its lines a shape of their own.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")


class JsonFormatter(logging.Formatter):
    """A line of JSON an event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what is not known of it is left out."""
        line = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_event_of(record),
        }
        shown = _show_exception(record)
        if shown:
            line["exception"] = shown
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps({name: value for name, value in line.items() if value is not None}, default=str)


class TextFormatter(logging.Formatter):
    """A line for people; an exception below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; breaks inside the message are shown, not made."""
        message = record.getMessage().replace("\n", "\\n").replace("\r", "\\r")
        told = "".join(f" {name}={value}" for name, value in _event_of(record).items() if value is not None)
        line = f"{_time_of(record)} {record.levelname} {record.name} {message}{told}"
        shown = _show_exception(record)
        return f"{line}\n{shown}" if shown else line


class RequestLog:
    """Writes a line of every request, or of those somebody should look at."""

    def __init__(self, logged: LoggedRequests, slow_seconds: float) -> None:
        self._all = logged == "all"
        self._slow_seconds = slow_seconds

    def write(self, scope: Scope, journey: Journey, route: str | None, seconds: float) -> None:
        """Write about a request that is over, or do not."""
        level = self._level_of(journey.status, seconds)
        if not log.isEnabledFor(level):
            return
        event = {
            "method": scope["method"],
            "path": route or quote(scope["path"][:LONGEST_PATH], safe="/"),
            "status": journey.status,
            "ms": round(1000 * seconds, 2),
            "problem": journey.problem,
            "model": journey.model,
            "version": journey.version,
            "series": journey.series or None,
        }
        log.log(level, "request", extra={"event": event})

    def _level_of(self, status: int, seconds: float) -> int:
        """Return how much a request matters: what is refused on purpose is counted, a flood of it is no news."""
        if status == 500:
            return logging.ERROR
        return logging.INFO if self._all or seconds >= self._slow_seconds else logging.DEBUG


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _event_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what else is known of an event, and of the request it happened in."""
    journey = current_journey()
    known: dict[str, Any] = {} if journey is None else {"request_id": journey.request_id}
    if journey is not None and journey.span is not None:
        known["trace_id"] = f"{journey.span.get_span_context().trace_id:032x}"
    return {**known, **getattr(record, "event", {})}


def _show_exception(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[1] is None:
        return None
    error = record.exc_info[1]
    if current_journey() is None:
        return "".join(traceback.format_exception(error)).rstrip()
    return "\n".join(_places_of(error))


def _places_of(error: BaseException) -> list[str]:
    """Return the kinds of an error and of what caused it, and where each came about, without their messages."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = [] if cause is None else [*_places_of(cause), "then:"]
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return [*before, kind, *(line.rstrip() for line in traceback.format_tb(error.__traceback__))]


def _log_thread_failure(failed: threading.ExceptHookArgs) -> None:
    name = "?" if failed.thread is None else failed.thread.name
    if failed.exc_value is not None:
        logging.getLogger("hindcast.threads").critical("thread %s ended", name, exc_info=failed.exc_value)
