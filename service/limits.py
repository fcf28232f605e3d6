"""How a body gets in: of a kind that is taken, within its size and its time, packed or not.

And text and moments of a query.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from starlette.requests import ClientDisconnect, Request

from service.decompression import ENCODINGS, BadEncodingError, UnpackedTooLargeError, unpack
from service.journey import end_stage
from service.problems import (
    BAD_ENCODING,
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    FieldError,
    ProblemError,
    refuse,
)
from service.rate_limit import charge_body
from service.settings import ServiceSettings

IDENTITY = "identity"
UNPACKED_INLINE = 2048
"""Bytes that are unpacked where they are: bombs apart, that takes less than the hop to another thread."""
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
    headers = _declared(request)
    media_type, encoding = _check_content_type(headers, taken), _check_encoding(headers)
    limit = settings.max_body_bytes
    try:
        async with asyncio.timeout(settings.body_seconds):
            body = await _read_body(request, headers, limit)
    except TimeoutError:
        detail = f"the body did not arrive within {settings.body_seconds:g} seconds"
        raise ProblemError(BODY_TIMEOUT, detail, headers={"connection": "close"}) from None
    if encoding != IDENTITY:
        body = await _unpack(encoding, body, limit)
    charge_body(request.scope, len(body))
    end_stage("read")
    return media_type, body


async def _unpack(encoding: str, body: bytes, limit: int) -> bytes:
    try:
        if len(body) <= UNPACKED_INLINE:
            return unpack(encoding, body, limit)
        return await asyncio.to_thread(unpack, encoding, body, limit)
    except UnpackedTooLargeError:
        detail = f"the body unpacks to more than {limit} bytes, the most this service takes"
        raise ProblemError(BODY_TOO_LARGE, detail) from None
    except BadEncodingError as error:
        raise ProblemError(
            BAD_ENCODING, f"the body is not what content-encoding: {encoding} says: {error}"
        ) from None


def _declared(request: Request) -> dict[bytes, str]:
    """Return what is said of the body, in one pass; where something is said twice, both."""
    found: dict[bytes, str] = {}
    for name, value in request.scope["headers"]:
        if name.startswith(b"content-"):
            text = value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if name in found else text
    return found


def _check_content_type(headers: Mapping[bytes, str], taken: Sequence[str]) -> str:
    sent = headers.get(b"content-type", "")
    if sent in taken:
        return sent
    declared, _, parameters = sent.lower().partition(";")
    charset = parameters.partition("charset=")[2].strip().strip('"')
    media_type = declared.strip()
    if media_type not in taken or charset not in ("", "utf-8", "utf8"):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, f"send content-type: {' or '.join(taken)}, in UTF-8")
    return media_type


def _check_encoding(headers: Mapping[bytes, str]) -> str:
    encoding = headers.get(b"content-encoding", "").strip().lower() or IDENTITY
    if encoding != IDENTITY and encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        detail = f"a body may be packed with one of {known}; send it so, or without a content-encoding"
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, detail, headers={"accept-encoding": known})
    return encoding


async def _read_body(request: Request, headers: Mapping[bytes, str], limit: int) -> bytes:
    # What the header declares is believed only when it is already too much.
    declared = headers.get(b"content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    left, more = limit, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        left -= len(part)
        if left < 0:
            raise _too_large(limit)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


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
