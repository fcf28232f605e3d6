"""BoundedProtocol: uvicorn's HTTP protocol, for clients that send or read so slowly that they never end.

uvicorn waits for ever for the rest of a request's head, takes a head of any size, and keeps what a client does not
read. Everything here happens beside requests that arrive whole, which pay for a comparison or two.
"""

import asyncio
from http import HTTPStatus

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import BAD_REQUEST, HEAD_TOO_LARGE, MEDIA_TYPE, Kind, describe, respond
from service.settings import ServiceSettings

LARGEST_HEAD = 64 * 1024

_TOO_LARGE = f"the address and the headers have more than {LARGEST_HEAD} bytes"


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections on which nothing that was asked for happens."""

    head_seconds: float
    stall_seconds: float

    _upgraded = False
    _in_head = False
    _received = 0
    """Bytes that came since the head began, and perhaps some before."""
    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received = len(data) + (self._received if self._in_head else 0)
        super().data_received(data)
        if self._in_head and self._received > LARGEST_HEAD:
            self._refuse(HEAD_TOO_LARGE, _TOO_LARGE)
        elif self._waiting is None and (self.cycle is None or self.cycle.response_complete) and not self._upgraded:
            # A head that is not whole, or what is left of a body after its answer.
            self._wait_for_head()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        self._upgraded = True

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as every other error is answered."""
        self._refuse(BAD_REQUEST, msg)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        if self._received > LARGEST_HEAD and self._head_size() > LARGEST_HEAD:
            self.app = _refuse_head
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _wait_for_head(self) -> None:
        self._waiting = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _refuse(self, kind: Kind, detail: str) -> None:
        body = describe(kind, detail, "").model_dump_json().encode()
        head = f"HTTP/1.1 {kind.status} {HTTPStatus(kind.status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def _give_up(self) -> None:
        self._waiting = None
        self.transport.close()

    def _watch_reader(self, left: int) -> None:
        self._stalled = self.loop.call_later(self.stall_seconds, self._check_reader, left)

    def _check_reader(self, left_before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < left_before:
            self._watch_reader(left)
        else:
            self.transport.abort()


async def _refuse_head(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(describe(HEAD_TOO_LARGE, _TOO_LARGE, ""), {"connection": "close"})(scope, receive, send)


def bound_by(settings: ServiceSettings) -> type[BoundedProtocol]:
    """Return the protocol with the times of these settings."""

    class Bounded(BoundedProtocol):
        head_seconds = settings.head_seconds
        stall_seconds = settings.stall_seconds

    return Bounded
