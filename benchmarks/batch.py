"""Forecasting a panel larger than memory: series/s of `forecast --batch`, against the forward pass alone.

The forward pass has its windows ready in memory; the command reads Parquet, splits it by series, validates, lays
out, forecasts, and writes Parquet. Each run is a process of its own, whose peak memory is read at its end; the
seconds are those of the command, without the start of Python and torch; those of further processes count. Nobody
trained the model: weights cost no time.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.data import generate_values
from benchmarks.report import OURS, Report, build_parser, finish, say
from forecasting.artifact import load_artifact, save_artifact
from forecasting.forecaster import Forecaster
from forecasting.registry import CHAMPION, open_registry
from forecasting.spec import ForecasterSpec, MLPSpec, quantiles_for
from pipelines.batch import ROWS_PER_PART, BatchOrder, forecast_batch
from pipelines.report import LogReporter
from pipelines.settings import PipelineSettings

INPUT_SIZE, HORIZON = 48, 12
MIB = 2**20
SERIES_AT_ONCE = 5_000
START = np.datetime64("2024-01-01T00", "us")
SPEC = ForecasterSpec(
    name="batch",
    freq="h",
    season_length=24,
    horizon=HORIZON,
    level=(80.0, 95.0),
    quantiles=quantiles_for((80.0, 95.0)),
    network=MLPSpec(input_size=INPUT_SIZE, hidden_size=64),
)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark, or, as its own child, one measurement."""
    parser = build_parser("batch", "Batch scoring: series/s and peak memory.")
    parser.add_argument("--series", type=int, help="number of series (100000)")
    parser.add_argument("--points", type=int, default=100, help="points of a series (%(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="fan-outs to measure (1 2)")
    parser.add_argument("--measure", help="one measurement, as this process's child is asked for it")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(**json.loads(arguments.measure))))
        return
    n_series = arguments.series or (2_000 if arguments.quick else 100_000)
    part_rows = n_series * arguments.points // 4 if arguments.quick else ROWS_PER_PART
    report = Report()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        publish(home)
        size = write_panel(home / "panel.parquet", n_series, arguments.points)
        run_cases(report, home, n_series, arguments.points, part_rows, arguments.processes, size)
    finish(report, "batch", argv, arguments.out)


def run_cases(
    report: Report, home: Path, n_series: int, points: int, part_rows: int, processes: Sequence[int], size: float
) -> None:
    """Measure the forward pass, and the command with each number of processes."""
    case = f"{n_series:,} series of {points} points"
    report.add(case, OURS, "input on disk, MiB", size)
    seconds, cpu_seconds = forward_seconds(n_series)
    bare = n_series / seconds
    report.add(case, OURS, "forward pass alone, series/s", bare)
    report.add(case, OURS, "forward pass alone, series per CPU second", n_series / cpu_seconds)
    for count in processes:
        say(f"{count} at a time")
        found = measure_apart(home, count, part_rows)
        name = f"{count} process{'es' if count > 1 else ''}"
        report.add(case, OURS, f"{name}, series/s", n_series / found["seconds"])
        report.add(case, OURS, f"{name}, share of the forward pass", n_series / found["seconds"] / bare)
        report.add(case, OURS, f"{name}, seconds", found["seconds"])
        if count == 1:  # on a busy machine the fairer figure
            report.add(case, OURS, f"{name}, series per CPU second", n_series / found["cpu_seconds"])
        report.add(case, OURS, f"{name}, peak memory of the largest, MiB", found["peak_mib"])


def publish(home: Path) -> None:
    """Put a model with fresh weights into a registry below the folder."""
    torch.manual_seed(0)
    save_artifact(Forecaster.untrained(SPEC), home / "artifact")
    registry = open_registry((home / "registry").as_uri())
    registry.set_alias("batch", CHAMPION, registry.publish("batch", home / "artifact", {}).version)


def write_panel(path: Path, n_series: int, points: int) -> float:
    """Write a panel series by series, never holding all of it, and return its size in MiB."""
    ds = START + np.arange(points).astype("timedelta64[h]")
    schema = pa.schema([("unique_id", pa.string()), ("ds", pa.timestamp("us")), ("y", pa.float64())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, n_series, SERIES_AT_ONCE):
            count = min(SERIES_AT_ONCE, n_series - first)
            names = np.repeat([f"sensor-{first + i:07d}" for i in range(count)], points)
            y = generate_values(count, points).ravel()
            writer.write_table(pa.table({"unique_id": names, "ds": np.tile(ds, count), "y": y}, schema=schema))
    return path.stat().st_size / MIB


def forward_seconds(n_series: int) -> tuple[float, float]:
    """Return the seconds, and those of the processor, of the forward pass over as many windows that lie ready."""
    forecaster = Forecaster.untrained(SPEC)
    y_BL = generate_values(n_series, INPUT_SIZE)
    forecaster.predict(y_BL[:SERIES_AT_ONCE])
    started, computed = perf_counter(), process_time()
    forecaster.predict(y_BL)
    return perf_counter() - started, process_time() - computed


def measure_apart(home: Path, processes: int, part_rows: int) -> dict[str, float]:
    """Measure in a fresh process, because a peak once reached stays a process's peak."""
    order = json.dumps({"home": str(home), "processes": processes, "part_rows": part_rows})
    done = subprocess.run(  # noqa: S603  (this module, with this interpreter)
        [sys.executable, "-m", "benchmarks.batch", "--threads", str(torch.get_num_threads()), "--measure", order],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(home: str, processes: int, part_rows: int) -> dict[str, float]:
    """Forecast the panel below a folder; return the seconds, and the peak memory of the largest process."""
    root = Path(home)
    settings = PipelineSettings(
        home=root / "home", registry_uri=(root / "registry").as_uri(), fan_out=processes, ray_address=""
    )
    load_artifact(root / "artifact")  # the first one has torch import what takes seconds
    order = BatchOrder("batch", root / "panel.parquet", root / f"out-{processes}", part_rows=part_rows)
    started, computed = perf_counter(), process_time()
    result = forecast_batch(order, settings, LogReporter())
    seconds, cpu_seconds = perf_counter() - started, process_time() - computed
    if result.rejects:
        raise SystemExit(f"{result.rejects} series were refused")
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": largest * (1 if sys.platform == "darwin" else 1024) / MIB,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
