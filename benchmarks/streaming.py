"""What a step of a stream costs: at many series at once, after a long history, and beside computing windows anew.

The rival is the same model asked for the same forecasts by `Forecaster.predict` on the last `input_size` values,
as whoever keeps no state has to. Both take turns, and both keep what they need of the series themselves. Times
are of this process's CPU, so that what else the machine does counts for nothing; over HTTP they are of the clock.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.recording import HORIZON, INPUT_SIZE, publish_model, serve
from benchmarks.report import OURS, Report, build_parser, finish, say
from forecasting.artifact import load_artifact
from forecasting.forecaster import Forecaster
from forecasting.stream import Observed, Streams

FloatArray = NDArray[np.float64]

WINDOWS = "a window each time"
HOUR = 3_600_000_000
START = int(np.datetime64("2020-01-01", "us").astype(np.int64))
YOUNG, OLD = 10, 100_000
BODY = 1000
"""Observations of one request."""


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("streaming", "Observations/s and time per step of streams, beside windows.")
    parser.add_argument("--series", type=int, nargs="+", help="numbers of series (1000 100000)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every case (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    sizes = arguments.series or ([200, 1000] if arguments.quick else [1000, 100_000])
    rounds, old = (3, 2000) if arguments.quick else (arguments.rounds, OLD)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        registry = publish_model(Path(folder))
        forecaster = load_artifact(Path(folder) / "artifact")
        for n_series in sizes:
            measure_engine(report, forecaster, n_series, rounds)
        for n_series in (1, 100):
            measure_age(report, forecaster, n_series, old, 20 * rounds)
        with serve(Path(folder), registry, "off", 0) as client:
            for n_series in sizes:
                measure_http(report, client, n_series, rounds)
    finish(report, "streaming", argv, arguments.out)


class Walks:
    """Random walks that go on for ever, and the streams that follow them."""

    def __init__(self, forecaster: Forecaster, n_series: int, seed: int = 0) -> None:
        self.streams = Streams(forecaster, capacity=n_series)
        self.slots = np.arange(n_series)
        self.window_BL = np.zeros((n_series, forecaster.input_size))
        self.n_steps = 0
        self._rng = np.random.default_rng(seed)

    def move(self) -> FloatArray:
        """Return the next value of every series; the window a rival keeps goes along."""
        y_B = self.window_BL[:, -1] + self._rng.normal(size=len(self.slots))
        self.window_BL[:, :-1] = self.window_BL[:, 1:]
        self.window_BL[:, -1] = y_B
        self.n_steps += 1
        return y_B

    def observe(self, y_B: FloatArray) -> None:
        """Tell the streams one value each."""
        ds_B = np.full(len(self.slots), START + self.n_steps * HOUR)
        self.streams.observe(Observed(self.slots, ds_B, y_B))

    def step(self) -> None:
        """Observe and forecast."""
        self.observe(self.move())
        self.streams.forecast(self.slots)

    def grow(self, n_steps: int) -> None:
        """Lengthen the history."""
        while self.n_steps < n_steps:
            self.observe(self.move())
        self.streams.settle(self.slots)


def cpu_seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return the seconds of this process's CPU that work takes once."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def measure_engine(report: Report, forecaster: Forecaster, n_series: int, rounds: int) -> None:
    """Advance every series a step, by state and by window, in turns."""
    say(f"{n_series:,} series")
    walks = Walks(forecaster, n_series)
    walks.grow(INPUT_SIZE)
    times = max(1, 20_000 // n_series)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(n_series / cpu_seconds(walks.step, times))
        theirs.append(n_series / cpu_seconds(lambda: forecaster.predict(walks.window_BL), max(1, times // 10)))
    case = f"{n_series:,} series, one step of each"
    report.add_median(case, OURS, "observations/s of CPU", ours)
    report.add_median(case, WINDOWS, "observations/s of CPU", theirs)
    report.add(case, OURS, f"ratio to {WINDOWS}", median(a / b for a, b in zip(ours, theirs, strict=True)))
    report.add(case, OURS, "bytes a series", walks.streams.bytes_each)


def measure_age(report: Report, forecaster: Forecaster, n_series: int, old: int, rounds: int) -> None:
    """Compare steps of streams that just began with steps of streams that are old, in turns."""
    say(f"{n_series} series that are {old:,} steps old")
    young, aged = Walks(forecaster, n_series), Walks(forecaster, n_series)
    young.grow(YOUNG)
    aged.grow(old)
    found: dict[str, list[float]] = {"young": [], "aged": []}
    for _ in range(rounds):
        # Each turn begins at the same step of a stretch between two states that are kept.
        young = Walks(forecaster, n_series)
        young.grow(YOUNG)
        found["young"].append(cpu_seconds(young.step, 20))
        found["aged"].append(cpu_seconds(aged.step, 20))
    case = f"{n_series} series, a step after {YOUNG} and after {old:,}"
    for name, steps in ((f"after {YOUNG}", "young"), (f"after {old:,}", "aged")):
        report.add_median(case, OURS, f"ms of CPU a step, {name}", [1e3 * one for one in found[steps]])
    report.add(case, OURS, "ratio of the two", median(found["aged"]) / median(found["young"]))


def measure_http(report: Report, client: httpx.Client, n_series: int, rounds: int) -> None:
    """Send a step of every series in requests of a thousand; and, in turns, their windows to be forecast."""
    say(f"{n_series:,} series over HTTP")
    walks = [list(map(float, np.random.default_rng(i).normal(size=INPUT_SIZE).round(3))) for i in range(100)]
    ours, theirs = [], []
    for turn in range(rounds + 1):
        seconds = sum(
            ask(client, "/v1/observe", observations(turn, i, n_series)) for i in range(0, n_series, BODY)
        )
        if turn:  # the first begins the streams
            ours.append(n_series / seconds)
            n = min(BODY, n_series)
            theirs.append(n / ask(client, "/v1/forecast", windows(turn, n, walks)))
    case = f"{n_series:,} series over HTTP, {min(BODY, n_series):,} a request"
    report.add_median(case, OURS, "observations/s", ours)
    report.add_median(case, WINDOWS, "observations/s", theirs)
    report.add(case, OURS, f"ratio to {WINDOWS}", median(a / b for a, b in zip(ours, theirs, strict=True)))


def observations(turn: int, first: int, n_series: int) -> bytes:
    """Return the request that tells a step of some series."""
    ds = _stamp(turn)
    rows = [
        {"unique_id": f"{n_series}-{i}", "ds": ds, "y": (i % 97) + turn / 7}
        for i in range(first, min(first + BODY, n_series))
    ]
    return json.dumps({"model": "pump", "h": HORIZON, "level": [80], "observations": rows}).encode()


def windows(turn: int, n: int, walks: Sequence[list[float]]) -> bytes:
    """Return the request for the same forecasts of someone who keeps no state."""
    start = _stamp(turn)
    series = [{"unique_id": str(i), "start": start, "y": walks[i % len(walks)]} for i in range(n)]
    body = {"model": "pump", "h": HORIZON, "level": [80], "record": False, "series": series}
    return json.dumps(body).encode()


def _stamp(turn: int) -> str:
    return str(np.datetime64(START + turn * HOUR, "us").astype("datetime64[s]")) + "Z"


def ask(client: httpx.Client, path: str, body: bytes) -> float:
    """Return the seconds an answer takes."""
    began = time.perf_counter()
    client.post(path, content=body, headers={"content-type": "application/json"}).raise_for_status()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(sys.argv[1:])
