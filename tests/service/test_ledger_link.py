"""The ledger beside the service: a database that is down, or hangs, takes nothing from forecasts."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.ledger_link import MOST_WAITING, DaemonPool, LedgerLink
from service.problems import ProblemError
from service.settings import ServiceSettings
from tests.conftest import free_port
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until
from tests.service.test_telemetry import SERIES, sample

REQUEST = {"model": "pump", "series": [SERIES]}


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the service runs."""
    return "asyncio"


@pytest.fixture
def link(tmp_path: Path) -> Iterator[LedgerLink]:
    """A link to an open ledger, that waits a tenth of a second."""
    opened = LedgerLink(ServiceSettings(home=tmp_path, ledger_seconds=0.1, poll_seconds=0.05))
    opened.start()
    wait_until(lambda: opened.ledger is not None)
    yield opened
    opened.stop()


def test_a_database_that_is_down_is_shown_and_takes_nothing_away(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with serve(ledger_url=f"postgresql://secret:word@127.0.0.1:{free_port()}/ledger") as client:
        wait_until(lambda: client.get("/health/ready").json()["ledger"] is not None)
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert "does not answer" in ready.json()["ledger"]["detail"]
        assert "word" not in ready.text
        assert sample(client, "hindcast_ledger_failing") == 1
        assert client.post("/v1/forecast", json=REQUEST).status_code == 200


def test_a_database_that_hangs_is_shown_and_the_service_still_ends(publish: Publish, serve: Serve) -> None:
    publish(build_forecaster("pump"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/ledger"
        with serve(ledger_url=url, ledger_seconds=0.2) as client:
            wait_until(lambda: "has not answered for 0.2 s" in client.get("/health/ready").text)
            assert client.post("/v1/forecast", json=REQUEST).status_code == 200
            began = time.monotonic()
    assert time.monotonic() - began < 8


def test_a_ledger_that_could_not_be_opened_is_opened_later(serve: Serve, tmp_path: Path) -> None:
    place = tmp_path / "ledger.db"
    place.mkdir()  # no database can be where a folder is
    with serve(ledger_url=f"sqlite:///{place}", ready=False) as client:
        wait_until(lambda: sample(client, "hindcast_ledger_failing") == 1)
        place.rmdir()
        wait_until(lambda: sample(client, "hindcast_ledger_failing") == 0)
    assert place.is_file()


def test_a_service_without_a_ledger_says_nothing_of_one(serve: Serve) -> None:
    with serve(ledger_url="off", ready=False) as client:
        assert client.get("/health/ready").json()["ledger"] is None
        assert sample(client, "hindcast_ledger_failing") is None


@pytest.mark.anyio
async def test_a_question_is_answered_from_a_thread(link: LedgerLink) -> None:
    assert await link.ask(lambda ledger: ledger.observations.datasets()) == []


@pytest.mark.anyio
async def test_a_question_that_takes_too_long_is_given_up(link: LedgerLink) -> None:
    with pytest.raises(ProblemError) as caught:
        await link.ask(lambda _: time.sleep(0.5))
    assert caught.value.detail == "the ledger has not answered for 0.1 seconds"
    assert caught.value.headers == {"retry-after": "5"}
    assert await link.ask(lambda _: "next", seconds=5) == "next"


@pytest.mark.anyio
async def test_only_so_many_questions_may_wait(link: LedgerLink) -> None:
    waiting = [asyncio.create_task(link.ask(lambda _: time.sleep(0.02), seconds=5)) for _ in range(MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(ProblemError) as caught:
        await link.ask(lambda _: None)
    assert "questions are waiting" in caught.value.detail
    await asyncio.gather(*waiting)
    assert await link.ask(lambda _: "next", seconds=5) == "next"


@pytest.mark.anyio
async def test_a_service_without_a_ledger_refuses_questions() -> None:
    with pytest.raises(ProblemError) as caught:
        await LedgerLink(ServiceSettings(ledger_url="off")).ask(lambda _: None)
    assert "HINDCAST_LEDGER_URL is off" in caught.value.detail


def test_a_pool_does_what_was_submitted_and_passes_errors_on() -> None:
    pool = DaemonPool(2, "test")
    assert [pool.submit(lambda i=i: i * i).result(5) for i in range(4)] == [0, 1, 4, 9]
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 // 0).result(5)
    pool.stop()


@pytest.mark.parametrize("url", ["mysql://host/db", "ledger.db", ""])
def test_other_databases_are_refused_before_the_service_listens(url: str) -> None:
    with pytest.raises(ValueError, match="a ledger is sqlite:///path or postgresql://"):
        ServiceSettings(ledger_url=url)
