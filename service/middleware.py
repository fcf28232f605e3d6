"""What happens around every request: it gets an id, a log line, a measurement, and always an answer.

And what every answer tells browsers not to do with it.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_handlers import internal_error
from service.journey import CURRENT, Journey
from service.logs import RequestLog
from service.telemetry import Telemetry
from service.tracing import Tracing

log = logging.getLogger("hindcast.requests")

CLIENT_GONE = 499
"""The status noted when nobody waited for the answer."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """The outermost layer of the service's own."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, tracing: Tracing, request_log: RequestLog) -> None:
        self.app = app
        self.telemetry = telemetry
        self.tracing = tracing
        self.request_log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        journey = Journey(_choose_id(scope["headers"]))
        scope["hindcast.request_id"] = journey.request_id
        self.tracing.begin(journey, scope)
        token = CURRENT.set(journey)
        try:
            await self._answer(scope, receive, _Reply(send, journey))
        finally:
            self._record(scope, journey)
            CURRENT.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, reply: "_Reply") -> None:
        try:
            await self.app(scope, receive, reply.send)
        except ClientDisconnect:
            reply.journey.status = CLIENT_GONE
        except Exception:
            log.exception("request %s failed", reply.journey.request_id)
            if reply.journey.status:
                raise  # Half an answer is out: only closing the connection says that it is wrong.
            await internal_error(reply.journey.request_id)(scope, receive, reply.send)

    def _record(self, scope: Scope, journey: Journey) -> None:
        journey.status = journey.status or CLIENT_GONE
        journey.end_stage("send")
        seconds = journey.laps[-1][1] - journey.began
        route: str | None = getattr(scope.get("route"), "path", None)
        self.telemetry.record_request(route or "other", journey, seconds)
        self.tracing.end(journey, scope["method"], route)
        self.request_log.write(scope, journey, route, seconds)


class _Reply:
    """Passes an answer on, puts the request id on it and remembers its status."""

    __slots__ = ("_send", "journey")

    def __init__(self, send: Send, journey: Journey) -> None:
        self._send = send
        self.journey = journey

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.journey.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.journey.request_id.encode())]
        try:
            await self._send(message)
        except RuntimeError as error:
            # uvloop says so of a connection that was closed since uvicorn looked: nobody waits any more.
            if "the handler is closed" not in str(error):
                raise
            raise ClientDisconnect from error


def _choose_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Keep the caller's id when it is harmless in a log and in a header."""
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode() if _SANE_ID.fullmatch(value) else os.urandom(16).hex()
    return os.urandom(16).hex()


class SecurityHeaders:
    """The outermost layer of all, so that no answer goes without.

    Args:
        policies: content security policies of the pages that need more than nothing, by address.
        files: the beginning of the addresses of files, which may be kept.
    """

    def __init__(self, app: ASGIApp, policies: Mapping[str, str], files: str) -> None:
        self.app = app
        self._files = files
        self._usual = _headers_with("default-src 'none'; frame-ancestors 'none'")
        self._of_pages = {path: _headers_with(policy) for path, policy in policies.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = self._headers_of(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] in _STARTS:
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _headers_of(self, path: str) -> list[tuple[bytes, bytes]]:
        if path.startswith(self._files):
            return self._usual[1:]
        return self._of_pages.get(path, self._usual)


_STARTS = ("http.response.start", "websocket.http.response.start")


def _headers_with(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
        (b"content-security-policy", policy.encode()),
    ]
