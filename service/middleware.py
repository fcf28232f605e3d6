"""What happens around every request: it gets an id, a log line, a measurement, and always an answer.

And what every answer tells browsers not to do with it.
"""

import logging
import re
import time
import uuid
from collections.abc import Mapping
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.error_handlers import internal_error
from service.telemetry import Telemetry

log = logging.getLogger("hindcast.requests")

CLIENT_GONE = 499
"""The status logged when nobody waited for the answer."""

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """The outermost layer of the service's own."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app = app
        self.telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["hindcast.request_id"] = _choose_id(Headers(scope=scope).get("x-request-id"))
        reply = _Reply(send, request_id)
        began = time.perf_counter()
        try:
            await self.app(scope, receive, reply.send)
        except ClientDisconnect:
            reply.status = CLIENT_GONE
        except Exception:
            log.exception("request %s failed", request_id)
            if reply.status:
                raise  # Half an answer is out: only closing the connection says that it is wrong.
            await internal_error(request_id)(scope, receive, reply.send)
        finally:
            self._record(scope, request_id, reply.status or CLIENT_GONE, time.perf_counter() - began)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        self.telemetry.record_request(route, status, seconds)
        path = quote(scope["path"][:200], safe="/")
        log.info("id=%s %s %s status=%d ms=%.1f", request_id, scope["method"], path, status, 1000 * seconds)


class _Reply:
    """Passes an answer on, puts the request id on it and remembers its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send(message)


def _choose_id(sent: str | None) -> str:
    """Keep the caller's id when it is harmless in a log and in a header."""
    return sent if sent and _SANE_ID.fullmatch(sent) else uuid.uuid4().hex


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
