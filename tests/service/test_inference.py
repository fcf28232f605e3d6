"""Whatever a network does, the service answers the others or ends, so that another is started; it never hangs."""

import asyncio
import ctypes
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
import pytest
import torch

from forecasting.forecaster import Forecaster
from forecasting.registry import DirectoryRegistry
from forecasting.spec import MLPSpec
from service.inference import HUNG, InferenceThread, Watchdog
from service.problems import DEADLINE_EXCEEDED
from service.runtime import Runtime
from service.settings import ServiceSettings
from tests.service.conftest import Publish, Serve, build_forecaster, wait_until
from tests.service.faults import EXITS, HANGS, LARGE, OUT_OF_MEMORY, SLOW, SMALL, WAITS, body_of, misbehave
from tests.service.test_main import JSON, Process
from tests.service.test_telemetry import sample

GOOD = body_of(1.0)


def publish_both(publish: Publish) -> None:
    """Publish a model whose requests are small, and one whose requests go to the inference thread."""
    publish(build_forecaster("pump", network=MLPSpec(input_size=SMALL, hidden_size=8)))
    publish(build_forecaster("large", network=MLPSpec(input_size=LARGE, hidden_size=8)))


@pytest.fixture
def faulty(publish: Publish, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Return a function that serves networks which misbehave when they are told to."""
    publish_both(publish)
    monkeypatch.setattr(Forecaster, "predict", misbehave)
    return serve


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("mark", [EXITS, OUT_OF_MEMORY])
def test_a_network_that_gives_up_takes_nobody_with_it(faulty: Serve, mark: float, large: bool) -> None:
    with faulty() as client, ThreadPoolExecutor(4) as threads:
        bad = threads.submit(client.post, "/v1/forecast", json=body_of(mark, large=large))
        good = [threads.submit(client.post, "/v1/forecast", json=GOOD) for _ in range(6)]
        assert bad.result().status_code == 500
        assert "Traceback" not in bad.result().text
        assert {one.result().status_code for one in good} <= {200, 500}
        assert client.post("/v1/forecast", json=body_of(1.0, large=large)).status_code == 200


def kill(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread, wherever it is."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))


dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def inference() -> Iterator[InferenceThread]:
    thread = InferenceThread()
    yield thread
    thread.shutdown()


def dead(inference: InferenceThread) -> InferenceThread:
    """Kill the thread while it waits for work."""
    kill(inference._thread)
    inference.submit(lambda: None)  # it wakes up to die
    inference._thread.join(timeout=10)
    assert not inference._thread.is_alive()
    return inference


@dies
def test_a_thread_that_died_is_started_again_and_what_waited_is_done(inference: InferenceThread) -> None:
    waiting = dead(inference).submit(lambda: "done")
    assert inference.revive()
    assert waiting.result(timeout=10) == "done"
    assert inference.restarts == 1
    assert not inference.revive(), "it is alive"


@dies
def test_every_thread_that_is_started_prepares_itself_first() -> None:
    """torch counts its threads for each thread that asks: the one after a revival must be told as well."""
    prepared: list[str] = []
    inference = InferenceThread(lambda: prepared.append(threading.current_thread().name))
    assert inference.submit(lambda: list(prepared)).result(timeout=10) == ["inference"]
    done = dead(inference).submit(lambda: list(prepared))
    assert inference.revive()
    assert done.result(timeout=10) == ["inference", "inference"]
    inference.shutdown()


@dies
def test_networks_run_on_as_many_cores_as_are_set_also_after_a_revival(registry: DirectoryRegistry) -> None:
    runtime = Runtime(
        ServiceSettings(registry_uri=str(registry.root), ledger_url="off", torch_threads=3), lambda: registry
    )
    assert asyncio.run(runtime.infer(torch.get_num_threads)) == 3
    assert dead(runtime._worker).revive()
    assert asyncio.run(runtime.infer(torch.get_num_threads)) == 3
    runtime._worker.shutdown()


@dies
def test_who_waited_for_what_a_dead_thread_ran_is_told(inference: InferenceThread) -> None:
    running = InferenceThread.submit(dead(inference), lambda: None)
    inference._running = running  # type: ignore[assignment]  # as if it had died in the middle
    inference.revive()
    with pytest.raises(RuntimeError, match="ended in the middle of it"):
        running.result(timeout=10)


@dies
def test_the_watchdog_revives_the_thread(faulty: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.runtime.InferenceThread", lambda prepare: dead(InferenceThread(prepare)))
    with faulty(hang_seconds=1) as client:
        assert client.post("/v1/forecast", json=body_of(1.0, large=True)).status_code == 200
        assert sample(client, "hindcast_inference_restarts") == 1


def test_nothing_is_taken_after_the_end(inference: InferenceThread) -> None:
    inference.shutdown()
    with pytest.raises(RuntimeError, match="has ended"):
        inference.submit(lambda: None)


def test_a_process_that_was_stopped_for_long_did_not_hang(
    inference: InferenceThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog counts its own looks: one long pause is one of them."""
    watchdog = Watchdog(inference, hang_seconds=0.5, grace_seconds=0)
    ended: list[str] = []
    watchdog.end = ended.append

    async def be_held(seconds: float) -> None:
        watchdog.start(asyncio.get_running_loop())
        await asyncio.sleep(0.2)
        wait = watchdog._stopped.wait
        monkeypatch.setattr(watchdog._stopped, "wait", lambda _: time.sleep(seconds) or wait(0.05))
        time.sleep(seconds)  # noqa: ASYNC251  (the loop and the watchdog rest together, as in a stopped process)
        monkeypatch.undo()
        await asyncio.sleep(0.2)

    asyncio.run(be_held(0.7))
    watchdog.stop()
    assert ended == []


def test_a_held_event_loop_and_an_endless_forward_pass_end_the_process(inference: InferenceThread) -> None:
    ended: list[str] = []

    async def hold(loop_seconds: float, thread_seconds: float) -> None:
        watchdog = Watchdog(inference, hang_seconds=0.2, grace_seconds=0)
        watchdog.end = ended.append
        watchdog.start(asyncio.get_running_loop())
        inference.submit(time.sleep, thread_seconds)
        time.sleep(loop_seconds)  # noqa: ASYNC251  (holding the loop is the point)
        await asyncio.sleep(0.5)
        watchdog.stop()

    asyncio.run(hold(0.5, 0))
    asyncio.run(hold(0, 0.6))
    assert ended == [
        "the event loop has been held for 0.2 seconds",
        "a forward pass has not come to an end for 0.2 seconds",
    ]


class FaultyProcess(Process):
    """The service whose networks misbehave when they are told to."""

    module = "tests.service.faults"


@pytest.fixture
def start(registry: DirectoryRegistry, publish: Publish) -> Iterator[Callable[..., Process]]:
    publish_both(publish)
    started: list[Process] = []

    def run(**settings: str) -> Process:
        usual = {"registry_uri": str(registry.root), "port": "0", "home": str(registry.root.parent)}
        chosen = {**usual, "poll_seconds": "0.1", "ledger_url": "off", **settings}
        started.append(FaultyProcess(**{f"HINDCAST_{name.upper()}": value for name, value in chosen.items()}))
        wait_until(started[-1].is_ready)
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_a_forward_pass_that_hangs_ends_the_process_so_that_another_is_started(
    start: Callable[..., Process], large: bool
) -> None:
    process = start(hang_seconds="1", drain_seconds="1.5" if large else "0")
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(process.client.post, "/v1/forecast", json=body_of(HANGS, large=large))
        if large:  # else the event loop is held, and nobody is answered
            address = f"{process.client.base_url}/health/ready"
            ready = [httpx.get(address)]
            wait_until(lambda: ready.append(httpx.get(address)) or ready[-1].status_code == 503)
            assert ready[-1].json()["detail"] == "a forward pass has not come to an end for 1 seconds"
        assert process.popen.wait(timeout=20) == HUNG
        assert isinstance(hanging.exception(timeout=20), httpx.TransportError)
    assert "this process ends" in process.log


@pytest.mark.slow
def test_on_sigterm_everything_that_was_accepted_is_answered(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    """Fifty requests: one in the inference thread, the others waiting for it, until the gate opens."""
    gate = tmp_path / "gate"
    process = start(drain_seconds="0.5", max_in_flight="50", test_gate=str(gate))
    url, waiting = f"{process.client.base_url}/v1/forecast", json.dumps(body_of(WAITS, large=True)).encode()

    def post(_: int) -> int:
        return clients.post(url, content=waiting, headers=JSON).status_code

    clients = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=50))
    with clients, ThreadPoolExecutor(50) as threads:
        accepted = [threads.submit(post, i) for i in range(50)]
        # Whoever asks for nothing is told so at once, or that as many are in as may be.
        wait_until(lambda: process.client.post("/v1/forecast", content=b"{", headers=JSON).status_code == 503)
        process.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_open(url))
        assert not any(one.done() for one in accepted)
        gate.touch()
        assert {one.result(timeout=60) for one in accepted} == {200}
    assert process.popen.wait(timeout=30) == 0
    assert "Traceback" not in process.log


def is_open(url: str) -> bool:
    """Return whether anybody listens there."""
    with socket.socket() as probe:
        address = httpx.URL(url)
        return probe.connect_ex((address.host, address.port)) == 0


def test_what_is_too_much_is_turned_away_at_once_and_the_rest_answered(faulty: Serve) -> None:
    slow = json.dumps(body_of(SLOW, large=True)).encode()
    with faulty(max_in_flight=8) as client, ThreadPoolExecutor(24) as threads:

        def post(_: int) -> tuple[int, float, str | None]:
            began = time.perf_counter()
            answer = client.post("/v1/forecast", content=slow, headers=JSON)
            return answer.status_code, time.perf_counter() - began, answer.headers.get("retry-after")

        found = list(threads.map(post, range(24)))
    answered = [seconds for status, seconds, _ in found if status == 200]
    refused = [seconds for status, seconds, retry in found if (status, retry) == (503, "1")]
    assert len(answered) >= 8
    assert len(refused) == 24 - len(answered)
    assert median(refused) < median(answered) / 4, "nobody waits for a forward pass to be refused"


def test_a_request_that_takes_too_long_is_given_up_and_its_work_dropped(faulty: Serve) -> None:
    """Of those that wait for a forward pass when they are given up, none is computed afterwards."""
    with faulty(request_seconds=0.15) as client, ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(client.post, "/v1/forecast", json=body_of(SLOW, large=True)) for _ in range(3)]
        for answer in (one.result() for one in asked):
            assert answer.status_code == 503
            assert answer.json()["type"] == DEADLINE_EXCEEDED.type
            assert answer.headers["retry-after"] == "1"
        wait_until(lambda: client.post("/v1/forecast", json=GOOD).status_code == 200, 5)
