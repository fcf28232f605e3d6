"""What more series cost: training forecasts a second and peak memory at 10 to 10,000 series of 1,000 points.

Each size runs in a process of its own, whose peak resident memory is read at its end. The constant (Python,
torch, network, batches) is that of the same training on 2 series. The data are the panel as it lies in memory:
series x points x 8 bytes, float64, made in place so that nothing but what is measured was ever held.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal

import torch

from benchmarks.data import as_panel, generate_values
from benchmarks.report import OURS, Report, build_parser, finish
from forecasting.spec import ForecasterSpec, MLPSpec, RecurrentSpec
from training.fit import fit
from training.job import TrainingConfig
from training.windows import PanelTensors, Windows

INPUT_SIZE, HORIZON, BATCH = 48, 12, 256
SIZES = (10, 100, 1_000, 10_000)
BASELINE_SERIES = 2
LEAST_DATA_MIB = 4.0
"""Two runs of one size differ by a few MiB; beside less data than this the ratio would be that difference."""
MIB = 2**20

Kind = Literal["mlp", "lstm"]
NETWORKS: dict[Kind, MLPSpec | RecurrentSpec] = {
    "mlp": MLPSpec(input_size=INPUT_SIZE, hidden_size=64),
    "lstm": RecurrentSpec(input_size=INPUT_SIZE, hidden_size=32),
}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark, or, as its own child, one measurement."""
    parser = build_parser("scaling", "Training throughput and peak memory against the number of series.")
    parser.add_argument("--points", type=int, default=1_000, help="points of a series (%(default)s)")
    parser.add_argument("--series", type=int, nargs="+", help="numbers of series (10 100 1000 10000)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each size, in turns (%(default)s)")
    parser.add_argument("--measure", help="one measurement, as this process's child is asked for it")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(**json.loads(arguments.measure))))
        return
    sizes = tuple(arguments.series or (SIZES[:3:2] if arguments.quick else SIZES))
    runs, steps = (1, 20) if arguments.quick else (arguments.runs, 100)
    report = Report()
    for kind in NETWORKS:
        measure_case(report, kind, sizes, arguments.points, steps, runs, arguments.threads)
    finish(report, "scaling", argv, arguments.out)


def measure_case(
    report: Report, kind: Kind, sizes: Sequence[int], points: int, steps: int, runs: int, threads: int
) -> None:
    """Measure one network at every size, in turns, and add what it is to the smallest size and to the data."""
    counts = (BASELINE_SERIES, *sizes)
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    for _ in range(runs):
        for count in counts:
            found[count].append(measure_apart(kind, count, points, steps, threads))
    constant = median(run["peak_mib"] for run in found[BASELINE_SERIES])
    report.add(f"{kind}, {BASELINE_SERIES} series", OURS, "peak memory, MiB (the constant)", constant)
    first = median(run["rate"] for run in found[sizes[0]])
    for count in sizes:
        case = f"{kind}, {count:,} series"
        rates, peak = [run["rate"] for run in found[count]], median(run["peak_mib"] for run in found[count])
        data = count * points * 8 / MIB
        report.add_median(case, OURS, "supervised forecasts/s", rates)
        report.add(case, OURS, f"forecasts/s, ratio to {sizes[0]:,} series", median(rates) / first)
        report.add(case, OURS, "seconds to prepare", median(run["prepare_seconds"] for run in found[count]))
        report.add(case, OURS, "peak memory, MiB", peak)
        report.add(case, OURS, "data, MiB", data)
        if data >= LEAST_DATA_MIB:
            report.add(case, OURS, "peak memory above the constant, ratio to data", (peak - constant) / data)


def measure_apart(kind: Kind, n_series: int, n_points: int, steps: int, threads: int) -> dict[str, float]:
    """Measure in a fresh process, because a peak once reached stays a process's peak."""
    order = json.dumps({"kind": kind, "n_series": n_series, "n_points": n_points, "steps": steps})
    done = subprocess.run(  # noqa: S603  (this module, with this interpreter)
        [sys.executable, "-m", "benchmarks.scaling", "--threads", str(threads), "--measure", order],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(kind: Kind, n_series: int, n_points: int, steps: int) -> dict[str, float]:
    """Train for some steps in this process; return forecasts a second, seconds to prepare, and peak memory."""
    panel = as_panel(generate_values(n_series, n_points))
    started = perf_counter()
    data = PanelTensors(panel, "none", torch.device("cpu"))
    boundary = n_points - 2 * HORIZON
    train = Windows(data, INPUT_SIZE, HORIZON, 0, boundary)
    validation = Windows(data, INPUT_SIZE, HORIZON, boundary, n_points)
    prepared = perf_counter() - started
    spec = ForecasterSpec(
        name="scaling",
        freq="h",
        season_length=24,
        horizon=HORIZON,
        quantiles=(0.1, 0.5, 0.9),
        network=NETWORKS[kind],
    )
    config = TrainingConfig(batch_size=BATCH, steps_per_epoch=steps, max_epochs=1, device="cpu")
    result = fit(spec, config, train, validation)
    return {
        "rate": result.forecasts_seen / result.seconds,
        "prepare_seconds": prepared,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _unit() / MIB,
    }


def _unit() -> int:
    """Return the bytes in a unit of `ru_maxrss`: Linux counts in KiB, macOS in bytes."""
    return 1 if sys.platform == "darwin" else 1024


if __name__ == "__main__":
    main(sys.argv[1:])
