"""What happens around every request: it gets an id, a log line, a measurement, and always an answer."""

import logging
import re
import time
import uuid
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
