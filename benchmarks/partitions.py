"""Training one network over partitions of the series: the error against training on all series at once.

Two ways to share the work out: the same number of windows in all, so that each partition does its share of the
steps; and the same number of steps in each partition, so that an epoch takes as long as one on all series.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from benchmarks.data import as_panel, generate_values
from benchmarks.report import OURS, Report, build_parser, finish, say
from forecasting.panel import Panel
from forecasting.spec import ForecasterSpec, MLPSpec, RecurrentSpec
from training.fit import FitResult, fit
from training.job import TrainingConfig
from training.partitioned import partitioned, train_round, write_partitions
from training.windows import PanelTensors, Windows

INPUT_SIZE, HORIZON = 48, 12
NETWORKS: dict[str, MLPSpec | RecurrentSpec] = {
    "mlp": MLPSpec(input_size=INPUT_SIZE, hidden_size=64),
    "lstm": RecurrentSpec(kind="lstm", input_size=INPUT_SIZE, hidden_size=32),
}


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = build_parser("partitions", "Error of training over partitions of the series.")
    parser.add_argument("--series", type=int, default=400, help="number of series (%(default)s)")
    parser.add_argument("--points", type=int, default=600, help="points of a series (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds averaged (%(default)s)")
    parser.add_argument("--steps", type=int, default=96, help="steps of an epoch on all series (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    n_series, seeds = (20, 1) if arguments.quick else (arguments.series, arguments.seeds)
    report = Report()
    panel = as_panel(generate_values(n_series, arguments.points))
    for kind in NETWORKS:
        compare(report, panel, kind, seeds, 8 if arguments.quick else arguments.steps)
    finish(report, "partitions", argv, arguments.out)


def compare(report: Report, panel: Panel, kind: str, seeds: int, steps: int) -> None:
    """Add the validation loss over 1, 4 and 16 partitions, and what it is to that over one."""
    case = f"{kind}, {panel.n_series:,} series"
    whole = mean(train(panel, kind, 1, steps, seed).validation_loss for seed in range(1, seeds + 1))
    report.add(case, OURS, "all at once, validation loss", whole)
    for count in (4, 16):
        for steps_each, what in ((steps // count, "windows in all"), (steps, "steps in each")):
            say(f"{kind}: {count} partitions, as many {what}")
            losses = [train(panel, kind, count, steps_each, seed).validation_loss for seed in range(1, seeds + 1)]
            report.add(
                case, OURS, f"{count} partitions, as many {what}, ratio to all at once", mean(losses) / whole
            )


def train(panel: Panel, kind: str, count: int, steps: int, seed: int) -> FitResult:
    """Fit over so many partitions, all in this process: where they are trained changes no bit."""
    boundary = panel.n_steps - 5 * HORIZON
    spec = ForecasterSpec(
        name="partitions",
        freq="h",
        season_length=24,
        horizon=HORIZON,
        quantiles=(0.1, 0.5, 0.9),
        network=NETWORKS[kind],
    )
    config = TrainingConfig(max_epochs=20, steps_per_epoch=max(1, steps), seed=seed, device="cpu")
    data = PanelTensors(panel, "none", torch.device("cpu"))
    windows = Windows(data, INPUT_SIZE, HORIZON, 0, boundary)
    validation = Windows(data, INPUT_SIZE, HORIZON, boundary, panel.n_steps)
    if count == 1:
        return fit(spec, config, windows, validation)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_partitions(panel, Path(folder), count)
        fitting = partitioned(paths, lambda orders: [train_round(order) for order in orders])
        return fit(spec, config, windows, validation, fitting=fitting)


if __name__ == "__main__":
    main(sys.argv[1:])
