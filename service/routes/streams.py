"""POST /v1/observe, GET /v1/streams, WS /v1/stream/{model}: observations in, forecasts out, at constant cost."""

import asyncio
import json
import uuid
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field
from starlette.websockets import WebSocketState

from forecasting.spec import MODEL_NAME_PATTERN
from service.limits import JSON, read_json_body
from service.openapi import REFERENCE, problem_responses
from service.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MALFORMED_JSON,
    MODEL_NOT_LOADED,
    OVERLOADED,
    STREAMS_UNAVAILABLE,
    UNKNOWN_MODEL,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
    describe,
)
from service.runtime import Runtime, RuntimeOf
from service.streams.messages import (
    ObserveOptions,
    StreamAnswer,
    id_of,
    parse_observe,
    parse_socket_message,
)

router = APIRouter(tags=["streams"])

GOING_AWAY, NOT_TEXT, TOO_LARGE, RESTARTING, TRY_LATER = 1001, 1003, 1009, 1012, 1013
"""Close codes of RFC 6455 and the registry it opened."""

LARGE_BODY = 64 * 1024
"""Bytes from which a body is read beside the event loop."""

_EXAMPLE = {
    "model": "example",
    "observations": [{"unique_id": "pump-7", "ds": "2024-03-01T00:00:00Z", "y": 20.1}],
}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {JSON: {"schema": {"$ref": REFERENCE.format(model="ObserveRequest")}, "example": _EXAMPLE}},
}


class StreamsInfo(BaseModel):
    """What streams take, as of a moment ago."""

    in_memory: int = Field(description="Series in memory.")
    memory_bytes: int = Field(description="What they take there, room for more included.")
    disk_bytes: int = Field(description="What the saved series take on disk.")
    journal_bytes: int = Field(description="What was observed since, on disk.")
    sockets: int = Field(description="Sockets that are open.")


@router.post(
    "/v1/observe",
    response_model=StreamAnswer,
    summary="Observe values, and forecast what follows them",
    responses=problem_responses(
        MALFORMED_JSON,
        UNKNOWN_MODEL,
        BODY_TIMEOUT,
        BODY_TOO_LARGE,
        UNSUPPORTED_MEDIA_TYPE,
        INVALID_REQUEST,
        INTERNAL_ERROR,
        MODEL_NOT_LOADED,
        OVERLOADED,
        STREAMS_UNAVAILABLE,
    ),
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def observe(request: Request, runtime: RuntimeOf) -> Response:
    """Take observations in, of many series at once, and forecast what follows the newest of each.

    The service keeps what it needs of every series, so a step costs the same however long the history is. An
    observation that was taken in already changes nothing; one that cannot be taken in is refused alone.
    """
    with runtime.admission():
        body = await read_json_body(request, runtime.settings)
        parse = partial(parse_observe, body, runtime.settings.stream_observations)
        message = parse() if len(body) < LARGE_BODY else await asyncio.to_thread(parse)
        return Response(await runtime.streams.observe(message), media_type=JSON)


@router.get("/v1/streams", summary="What streams take")
async def streams(runtime: RuntimeOf) -> StreamsInfo:
    """Answer how many series are kept, and what they take in memory and on disk."""
    counts = runtime.streams.engine.tally.kept
    return StreamsInfo(
        in_memory=counts.in_memory,
        memory_bytes=counts.memory_bytes,
        disk_bytes=counts.disk_bytes,
        journal_bytes=counts.journal_bytes,
        sockets=runtime.streams.sockets,
    )


@router.websocket("/v1/stream/{model}")
async def stream(
    socket: WebSocket,
    model: Annotated[str, Path(pattern=MODEL_NAME_PATTERN)],
    h: Annotated[int | None, Query(ge=1)] = None,
    level: Annotated[list[float] | None, Query()] = None,
) -> None:
    """Answer every message with one message, in their order; an error is an answer and closes nothing."""
    runtime: Runtime = socket.app.state.runtime
    await socket.accept()
    desk = runtime.streams
    if desk.sockets >= runtime.settings.stream_sockets:
        await socket.close(TRY_LATER, "too many sockets are open")
        return
    desk.sockets += 1
    try:
        options = ObserveOptions.model_construct(model=model, h=h, level=level)
        await _Conversation(socket, runtime, options).hold()
    finally:
        desk.sockets -= 1


class _Conversation:
    """One open socket: what is read is answered in order, and no more is read than may be outstanding."""

    def __init__(self, socket: WebSocket, runtime: Runtime, options: ObserveOptions) -> None:
        self.socket = socket
        self.runtime = runtime
        self.options = options
        self.instance = uuid.uuid4().hex
        self._answers: asyncio.Queue[asyncio.Task[str]] = asyncio.Queue()
        self._room = asyncio.Semaphore(runtime.settings.stream_outstanding)

    async def hold(self) -> None:
        """Read and answer until either side closes."""
        writing = asyncio.create_task(self._write())
        try:
            code, reason = await self._read()
            if code is not None:
                await self._answers.join()
                await self._close(code, reason)
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
            while not self._answers.empty():
                self._answers.get_nowait().cancel()

    async def _read(self) -> tuple[int | None, str]:
        """Take messages until there are no more; return how to close, None where the other side did."""
        settings = self.runtime.settings
        while True:
            await self._room.acquire()
            if self.runtime.draining:
                return RESTARTING, "the service is shutting down"
            try:
                received = await asyncio.wait_for(self.socket.receive(), settings.stream_idle_seconds)
            except TimeoutError:
                return GOING_AWAY, f"nothing came for {settings.stream_idle_seconds:g} seconds"
            if received["type"] == "websocket.disconnect":
                return None, ""
            text = received.get("text")
            if text is None:
                return NOT_TEXT, "messages are JSON, in text"
            body = text.encode()
            if len(body) > settings.stream_message_bytes:
                return TOO_LARGE, f"a message has at most {settings.stream_message_bytes} bytes"
            self._answers.put_nowait(asyncio.create_task(self._answer(body)))

    async def _answer(self, body: bytes) -> str:
        try:
            message = parse_socket_message(body, self.options, self.runtime.settings.stream_observations)
            return (await self.runtime.streams.observe(message)).decode()
        except ProblemError as error:
            return self._describe(body, error)
        except Exception:  # noqa: BLE001  (whatever goes wrong, it is answered; the engine wrote the log)
            return self._describe(body, ProblemError(INTERNAL_ERROR, INTERNAL_ERROR.example))

    def _describe(self, body: bytes, error: ProblemError) -> str:
        problem = describe(error.kind, error.detail, self.instance, error.errors)
        return json.dumps({"id": id_of(body), **problem.model_dump()})

    async def _write(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                answer = await self._answers.get()
                try:
                    await self.socket.send_text(await answer)
                finally:
                    self._answers.task_done()
                    self._room.release()

    async def _close(self, code: int, reason: str) -> None:
        if self.socket.application_state is WebSocketState.CONNECTED:
            with suppress(RuntimeError, WebSocketDisconnect):
                await self.socket.close(code, reason)
