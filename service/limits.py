"""How a body gets in: JSON, within its size and its time, counted while it arrives."""

import asyncio

from starlette.requests import Request

from service.problems import BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, ProblemError
from service.settings import ServiceSettings


async def read_json_body(request: Request, settings: ServiceSettings) -> bytes:
    """Return the raw body.

    Raises:
        ProblemError: it is not declared as JSON, is too large or too slow.
    """
    _check_content_type(request)
    try:
        async with asyncio.timeout(settings.body_seconds):
            return await _read_body(request, settings.max_body_bytes)
    except TimeoutError:
        detail = f"the body did not arrive within {settings.body_seconds:g} seconds"
        raise ProblemError(BODY_TIMEOUT, detail, headers={"connection": "close"}) from None


def _check_content_type(request: Request) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].strip().strip('"')
    if media_type.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "send content-type: application/json, in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "send the body without a content-encoding")


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
