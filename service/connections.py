"""BoundedProtocol: uvicorn's HTTP protocol, for clients that are too many, or so slow that they never end.

uvicorn takes connections until there are no files left, waits for ever for the rest of a request's head, takes a
head of any size, and keeps what a client does not read. Everything here happens beside requests that arrive whole,
which pay for a comparison or two.
"""

import asyncio
import resource
from http import HTTPStatus

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import BAD_REQUEST, HEAD_TOO_LARGE, MEDIA_TYPE, OVERLOADED, Kind, describe, respond
from service.settings import ServiceSettings

LARGEST_HEAD = 64 * 1024

SPARE_FILES = 256
"""Open files that connections leave to everything else: models, the ledger, streams, logs."""

_TOO_LARGE = f"the address and the headers have more than {LARGEST_HEAD} bytes"


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections on which nothing that was asked for happens, and those beyond a bound."""

    most_connections: int
    turned_away = 0
    """Connections there was no room for."""
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
        if len(self.connections) > self.most_connections:
            self._turn_away()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        # Nobody waits for what was sent ahead of its turn either.
        for cycle, _ in self.pipeline:
            cycle.disconnected = True
        self.pipeline.clear()
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

    def _turn_away(self) -> None:
        """Answer before anything is read: who is not let in costs no more than this."""
        type(self).turned_away += 1
        detail = f"{self.most_connections} connections are open already; try again in a second"
        self._refuse(OVERLOADED, detail, "retry-after: 1\r\n")

    def _refuse(self, kind: Kind, detail: str, headers: str = "") -> None:
        body = describe(kind, detail, "").model_dump_json().encode()
        head = (
            f"HTTP/1.1 {kind.status} {HTTPStatus(kind.status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n{headers}"
        )
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
    """Return the protocol with the bounds of these settings, or of the open files this process may have."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = settings.max_connections
    if files != resource.RLIM_INFINITY:
        most = min(most, max(files - SPARE_FILES, files // 2))

    class Bounded(BoundedProtocol):
        most_connections = most
        head_seconds = settings.head_seconds
        stall_seconds = settings.stall_seconds

    return Bounded


def allow_files(connections: int) -> None:
    """Let this process open as many files as connections need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = connections + SPARE_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
