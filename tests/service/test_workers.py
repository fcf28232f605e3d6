"""Several workers on one address: they share the work, are replaced when they end, and leave together."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.settings import ServiceSettings
from service.workers import LONGEST_PAUSE, Worker, merge_pages, supervise
from tests.service.conftest import Publish, build_forecaster, wait_until
from tests.service.test_main import Process, start  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]

STAND_IN = """
    import os, signal, sys, time
    from pathlib import Path
    folder = Path(sys.argv[1])
    number = os.environ["HINDCAST_WORKER_NUMBER"]
    behaviour = (folder / "behaviour").read_text()
    with (folder / f"began-{number}").open("a") as began:
        began.write(f"{os.getpid()}\\n")
    def leave(*_):
        if behaviour != "stays":
            (folder / f"left-{number}").touch()
            sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    if behaviour.startswith("ends"):
        sys.exit(int(behaviour.split()[1]))
    (folder / f"ready-{number}").touch()
    if not os.read(0, 1):
        (folder / f"orphan-{number}").touch()
"""
"""A worker that does nothing but what a test wants of it; it starts in a moment."""

SUPERVISE = """
    import sys
    from service.settings import ServiceSettings
    from service.workers import Supervisor
    settings = ServiceSettings(workers=2, port=0, drain_seconds=0, shutdown_seconds=1)
    sys.exit(Supervisor(settings, [sys.executable, sys.argv[1] + "/worker.py", sys.argv[1]]).run())
"""


class Stage:
    """A supervisor over workers that stand in for real ones."""

    def __init__(self, folder: Path, behaviour: str) -> None:
        self.folder = folder
        (folder / "behaviour").write_text(behaviour)
        (folder / "worker.py").write_text(textwrap.dedent(STAND_IN))
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SUPERVISE), str(folder)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )

    def pids(self, number: int) -> list[int]:
        path = self.folder / f"began-{number}"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def shows(self, name: str) -> bool:
        return all((self.folder / f"{name}-{number}").exists() for number in (0, 1))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[[str], Stage]]:
    staged: list[Stage] = []

    def begin(behaviour: str) -> Stage:
        staged.append(Stage(tmp_path, behaviour))
        return staged[-1]

    yield begin
    for one in staged:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(timeout=10)


def test_a_worker_that_ends_has_a_successor_and_all_leave_together(stage: Callable[[str], Stage]) -> None:
    play = stage("works")
    wait_until(lambda: play.shows("ready"))
    (first,) = play.pids(0)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(play.pids(0)) == 2)
    assert len(play.pids(1)) == 1
    time.sleep(0.2)  # its signal handler is set before it is needed
    play.process.send_signal(signal.SIGTERM)
    assert play.process.wait(timeout=20) == 0
    assert play.shows("left")


def test_settings_no_worker_can_honour_end_the_supervisor(stage: Callable[[str], Stage]) -> None:
    play = stage("ends 2")
    assert play.process.wait(timeout=20) == 2
    assert len(play.pids(0)) == 1


def test_workers_learn_that_their_supervisor_was_killed(stage: Callable[[str], Stage]) -> None:
    play = stage("works")
    wait_until(lambda: play.shows("ready"))
    play.process.kill()
    wait_until(lambda: play.shows("orphan"), 10)


def test_a_worker_that_ends_again_and_again_is_started_less_and_less_often() -> None:
    worker = Worker(0, began=100.0)
    assert [worker.note_end(100.0) for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert [worker.note_end(100.0) for _ in range(9)][-1] == LONGEST_PAUSE
    assert worker.note_end(500.0) == 0.5, "one that was well for long is started at once"


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 workers share 1 GPU: "):
        supervise(ServiceSettings(workers=2, device="auto"), [])


def test_a_page_of_metrics_shows_every_worker_and_each_family_once() -> None:
    page = (
        b"# HELP a_total A.\n# TYPE a_total counter\n"
        b'a_total{route="/x y"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    )
    assert merge_pages({"0": page, "1": page}).decode().splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{route="/x y",worker="0"} 1.0',
        'a_total{route="/x y",worker="1"} 1.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{worker="0"} 2.0',
        'b{worker="1"} 2.0',
    ]


@pytest.mark.slow
def test_two_workers_answer_on_one_port_and_one_scrape_shows_both(
    publish: Publish,
    start: Callable[..., Process],  # noqa: F811
) -> None:
    publish(build_forecaster("pump"))
    process = start(HINDCAST_WORKERS="2", HINDCAST_DRAIN_SECONDS="0", HINDCAST_LEDGER_URL="off")

    def ready_workers() -> set[str]:
        try:
            page = httpx.get(f"{process.client.base_url}/metrics", timeout=5).text
        except httpx.TransportError:
            return set()
        return set(re.findall(r'^hindcast_ready{worker="(\d)"} 1.0$', page, re.MULTILINE))

    wait_until(lambda: ready_workers() == {"0", "1"}, 60)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(timeout=30) == 0
    assert "Traceback" not in process.log
