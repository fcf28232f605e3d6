"""How a body gets in: of a kind that is taken, within its size and its time; and text and moments of a query."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.requests import Request

from service.journey import end_stage
from service.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    FieldError,
    ProblemError,
    refuse,
)
from service.settings import ServiceSettings

JSON = "application/json"
FIRST_YEAR, LAST_YEAR = 1800, 2199
"""As timestamps of series have it."""


async def read_json_body(request: Request, settings: ServiceSettings) -> bytes:
    """Return the raw body.

    Raises:
        ProblemError: it is not declared as JSON, is too large or too slow.
    """
    _, body = await read_body(request, settings, (JSON,))
    return body


async def read_body(request: Request, settings: ServiceSettings, taken: Sequence[str]) -> tuple[str, bytes]:
    """Return what the body is declared as, and the raw body.

    Raises:
        ProblemError: it is declared as nothing that is taken, is too large or too slow.
    """
    media_type = _check_content_type(request, taken)
    try:
        async with asyncio.timeout(settings.body_seconds):
            body = await _read_body(request, settings.max_body_bytes)
    except TimeoutError:
        detail = f"the body did not arrive within {settings.body_seconds:g} seconds"
        raise ProblemError(BODY_TIMEOUT, detail, headers={"connection": "close"}) from None
    end_stage("read")
    return media_type, body


def _check_content_type(request: Request, taken: Sequence[str]) -> str:
    declared, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].strip().strip('"')
    media_type = declared.strip()
    if media_type not in taken or charset not in ("", "utf-8", "utf8"):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, f"send content-type: {' or '.join(taken)}, in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "send the body without a content-encoding")
    return media_type


async def _read_body(request: Request, limit: int) -> bytes:
    # What the header declares is believed only when it is already too much.
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ProblemError:
    detail = f"the body is larger than {limit} bytes, the most this service takes"
    return ProblemError(BODY_TOO_LARGE, detail, headers={"connection": "close"})


def clean_text(sent: str) -> str:
    """Return text that a database can compare: no name has a NUL, so what replaces it finds nothing either."""
    return sent.replace("\0", "\ufffd")


def parse_moment(name: str, sent: datetime | None) -> datetime | None:
    """Return a moment of the query with a time zone: UTC unless it says otherwise.

    Raises:
        ProblemError: the year is not possible.
    """
    if sent is None:
        return None
    if not FIRST_YEAR <= sent.year <= LAST_YEAR:
        detail = f"{name} is in the year {sent.year}; expected {FIRST_YEAR} to {LAST_YEAR}"
        raise refuse([FieldError(path=f"query.{name}", detail=detail)])
    return sent if sent.tzinfo is not None else sent.replace(tzinfo=UTC)
