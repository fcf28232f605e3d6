"""A request that waits for something that never comes is answered all the same."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Scope

from forecasting.registry import DirectoryRegistry
from service.app import create_app
from service.deadline import Deadline
from service.settings import ServiceSettings
from tests.service.conftest import serve_app


@pytest.fixture
def app(registry: DirectoryRegistry) -> FastAPI:
    app = create_app(ServiceSettings(registry_uri=str(registry.root), ledger_url="off", request_seconds=1.0))

    @app.get("/wait")
    async def wait(request: Request, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            request.app.state.given_up = True
            raise
        return "done"

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def parts() -> "Iterator[str]":
            yield "half"
            await asyncio.sleep(60)

        return StreamingResponse(parts())

    return app


def test_it_is_given_up_and_answered_with_a_problem(app: FastAPI) -> None:
    with serve_app(app, ready=False) as client:
        answer = client.get("/wait?seconds=60", timeout=15)
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:hindcast:problem:deadline-exceeded"
        assert answer.json()["instance"] == answer.headers["x-request-id"]
        assert answer.headers["retry-after"] == "1"
        assert app.state.given_up
        assert client.get("/wait?seconds=0").json() == "done", "the connection serves on"
        assert 'status="503"' in client.get("/metrics").text


def test_half_an_answer_is_cut_off(app: FastAPI) -> None:
    with serve_app(app, ready=False) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/half", timeout=15)


def test_nothing_is_remembered_of_one_that_was_cut_off() -> None:
    async def half(scope: Scope, receive: object, send: Callable[[Message], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(60)

    async def nothing(message: Message) -> None:
        pass

    async def run() -> Deadline:
        deadline = Deadline(half, 0.1)
        (ended,) = await asyncio.gather(
            asyncio.create_task(deadline({"type": "http"}, None, nothing)), return_exceptions=True
        )
        assert isinstance(ended, asyncio.CancelledError)
        return deadline

    deadline = asyncio.run(run())
    assert not deadline._cancelled


def test_requests_in_time_are_left_alone_and_nothing_is_remembered_of_them() -> None:
    async def slow(scope: Scope, receive: object, send: object) -> None:
        await asyncio.sleep(0.05)

    async def nothing(message: Message) -> None:
        pass

    async def run() -> Deadline:
        deadline = Deadline(slow, 2.0)
        await asyncio.gather(*(deadline({"type": "http"}, None, nothing) for _ in range(50)))
        await asyncio.sleep(0.6)
        return deadline

    deadline = asyncio.run(run())
    assert not deadline._began
    assert not deadline._cancelled
    assert not deadline._looking, "no timer runs where there is nothing to look at"
