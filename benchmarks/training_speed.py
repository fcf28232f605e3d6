"""How fast networks are trained: ours beside neuralforecast's, Darts' and the plainest torch loop.

The same data, window, horizon, batch and number of steps for all, mean absolute error as the loss of all (the
pinball loss of the median is half of it), runs in turns, medians. A supervised forecast is one horizon that
entered the loss: one a window, and one for every scored step of a lane. Counted are the seconds from the first
training step to the last: no import, no reading of data, no validation (ours validates on one window a series
when it is done, which is left in).
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.bare_loop import Kind, build_bare_network, train_bare
from benchmarks.data import as_panel, generate_values, load_values
from benchmarks.peer_process import Peer, PeerError, find_peers_python
from benchmarks.report import OURS, Report, build_parser, finish
from forecasting.networks.base import Inputs
from forecasting.panel import FloatArray
from forecasting.spec import ForecasterSpec, MLPSpec, RecurrentSpec
from training.fit import FitResult, fit
from training.job import TrainingConfig
from training.windows import PanelTensors, Windows

INPUT_SIZE, HORIZON, BATCH = 96, 24, 256
HIDDEN = {"mlp": 256, "lstm": 64}
SKIP = INPUT_SIZE // 4
VALIDATION_SHARE = 0.2
RATE = "supervised forecasts/s"
BARE = "bare loop"
BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
STEPS_PER_EPOCH = 10


@dataclass(frozen=True)
class Sizes:
    """How much is done; `--quick` does less."""

    n_steps: int
    mlp_steps: int
    lstm_steps: int
    error_steps: int
    """Steps of neuralforecast's LSTM whose error ours has to reach."""
    runs: int


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    sizes = Sizes(4000, 40, 6, 20, 1) if arguments.quick else Sizes(17_420, 200, 60, 300, arguments.runs)
    y_NT = generate_values(7, sizes.n_steps)
    if arguments.csv:
        y_NT = load_values(arguments.csv, 1 - VALIDATION_SHARE)
    report = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        np.save(folder / "values.npy", y_NT)
        peers = Peers(arguments, folder / "values.npy", stack, report)
        measure_case(report, "MLP(256x2)", mlp_systems(y_NT, sizes, peers), sizes.runs)
        measure_case(report, "LSTM(64)", lstm_systems(y_NT, sizes, peers), sizes.runs)
        if peers.neuralforecast:
            measure_time_to_error(report, y_NT, peers, sizes)
    finish(report, "training_speed", argv, arguments.out)


def _parse(argv: Sequence[str]) -> Namespace:
    parser = build_parser("training_speed", "Training speed beside neuralforecast, Darts and a bare torch loop.")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a date column and one column a series (ETT)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each system, in turns (%(default)s)")
    parser.add_argument("--peers-python", type=Path, metavar="FILE", help="default .venv-peers/bin/python")
    return parser.parse_args(argv)


class Peers:
    """The peers' workers, where their environment is there."""

    def __init__(self, arguments: Namespace, values: Path, stack: ExitStack, report: Report) -> None:
        self.threads, self.values = arguments.threads, values
        self.neuralforecast: Peer | None = None
        self.darts: Peer | None = None
        python = find_peers_python(arguments.peers_python)
        if python is not None:
            self.neuralforecast = stack.enter_context(Peer(python, "neuralforecast_worker", self.threads))
            self.darts = stack.enter_context(Peer(python, "darts_worker", self.threads))
            for peer in (self.neuralforecast, self.darts):
                report.peer_versions |= peer.ask(versions=True)

    def train(
        self, peer: Peer, kind: str, steps: int, *, seed: int = 1, validation_size: int = 0
    ) -> dict[str, float]:
        """Train a network of a peer; with a validation size, on the rows before it, and say its error there."""
        return peer.ask(
            kind=kind,
            values=str(self.values),
            input_size=INPUT_SIZE,
            horizon=HORIZON,
            hidden_size=HIDDEN[kind],
            batch_size=BATCH,
            steps=steps,
            threads=self.threads,
            seed=seed,
            validation_size=validation_size,
            validation_step=HORIZON,
        )

    def rate(self, peer: Peer, kind: str, steps: int) -> float:
        """Return supervised forecasts a second."""
        return steps * BATCH / self.train(peer, kind, steps)["seconds"]


Measure = Callable[[], float]


def mlp_systems(y_NT: FloatArray, sizes: Sizes, peers: Peers) -> dict[str, Measure]:
    """Return how to measure each system's MLP."""
    steps, network = sizes.mlp_steps, MLPSpec(input_size=INPUT_SIZE, hidden_size=HIDDEN["mlp"])
    systems = {OURS: lambda: our_rate(y_NT, network, steps), BARE: lambda: bare_rate(y_NT, "mlp", steps)}
    if peer := peers.neuralforecast:
        systems["neuralforecast"] = lambda: peers.rate(peer, "mlp", steps)
    return systems


def lstm_systems(y_NT: FloatArray, sizes: Sizes, peers: Peers) -> dict[str, Measure]:
    """Return how to measure each system's LSTM."""
    steps, network = sizes.lstm_steps, RecurrentSpec(input_size=INPUT_SIZE, hidden_size=HIDDEN["lstm"])
    systems = {
        OURS: lambda: our_rate(y_NT, network, steps),
        BARE: lambda: bare_rate(y_NT, "lstm every step", steps),
        f"{BARE}, windowed": lambda: bare_rate(y_NT, "lstm windowed", steps),
    }
    if peer := peers.neuralforecast:
        systems["neuralforecast"] = lambda: peers.rate(peer, "lstm", steps)
    if other := peers.darts:
        systems["darts"] = lambda: peers.rate(other, "lstm", steps)
    return systems


def measure_case(report: Report, case: str, systems: dict[str, Measure], runs: int) -> None:
    """Measure every system in turns, so that a busy minute of the machine hits them all alike."""
    measured: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(runs):
        for system, measure in systems.items():
            try:
                measured[system].append(measure())
            except PeerError as error:
                print(f"{case}: {system} left out: {error}", file=sys.stderr)
    for system, rates in measured.items():
        if rates:
            report.add_median(case, system, RATE, rates)
    add_ratios(report, case, RATE)


def our_rate(y_NT: FloatArray, network: MLPSpec | RecurrentSpec, steps: int) -> float:
    """Return the supervised forecasts a second of the product's own training loop."""
    stop = y_NT.shape[1]
    config = TrainingConfig(
        optimizer="adam",
        weight_decay=0.0,
        batch_size=BATCH,
        steps_per_epoch=steps,
        max_epochs=1,
        device="cpu",
    )
    result = our_fit(y_NT, network, config, train_stop=stop - HORIZON)
    return result.forecasts_seen / result.seconds


def our_fit(
    y_NT: FloatArray, network: MLPSpec | RecurrentSpec, config: TrainingConfig, train_stop: int
) -> FitResult:
    """Fit a network on the rows before a position, choosing on the ones from there on."""
    data = PanelTensors(as_panel(y_NT), "none", torch.device("cpu"))
    spec = ForecasterSpec(
        name="speed", freq="h", season_length=24, horizon=HORIZON, quantiles=(0.5,), network=network
    )
    train = Windows(data, INPUT_SIZE, HORIZON, 0, train_stop)
    return fit(spec, config, train, Windows(data, INPUT_SIZE, HORIZON, train_stop, y_NT.shape[1]))


def bare_rate(y_NT: FloatArray, kind: Kind, steps: int) -> float:
    """Return the supervised forecasts a second of the bare loop."""
    hidden = HIDDEN["mlp" if kind == "mlp" else "lstm"]
    network = build_bare_network(kind, INPUT_SIZE, HORIZON, hidden, SKIP)
    per_window = INPUT_SIZE - SKIP if kind == "lstm every step" else 1
    return steps * BATCH * per_window / train_bare(network, y_NT, INPUT_SIZE, HORIZON, BATCH, steps)


def measure_time_to_error(report: Report, y_NT: FloatArray, peers: Peers, sizes: Sizes) -> None:
    """Find how long ours trains until it is no worse than neuralforecast's LSTM at the end of its run.

    Ours is trained from scratch with ever larger budgets of epochs, each with its own whole schedule, until one
    ends at that error; the seconds are those of that one run with all that its loop does, validation included.
    """
    if not peers.neuralforecast:
        return
    case = f"to the error neuralforecast's LSTM(64) has after {sizes.error_steps} steps"
    n_windows = int(VALIDATION_SHARE * y_NT.shape[1]) // HORIZON
    size = n_windows * HORIZON
    theirs, ours = [], []
    for seed in range(1, sizes.runs + 1):
        said = peers.train(peers.neuralforecast, "lstm", sizes.error_steps, seed=seed, validation_size=size)
        theirs.append((said["seconds"], said["mae"]))
        if said["n_forecasts"] != n_windows * len(y_NT):
            raise PeerError(f"neuralforecast answered {said['n_forecasts']} windows, not {n_windows * len(y_NT)}")
        reached = _train_until(y_NT, size, said["mae"], seed)
        if reached is not None:
            ours.append(reached)
    _add_times(report, case, "neuralforecast", theirs)
    if len(ours) == len(theirs):
        _add_times(report, case, OURS, ours)
    add_ratios(report, case, "seconds")


def _add_times(report: Report, case: str, system: str, runs: list[tuple[float, float]]) -> None:
    report.add_median(case, system, "seconds", [seconds for seconds, _ in runs])
    report.add(case, system, "validation mean absolute error", median(error for _, error in runs))


def _train_until(y_NT: FloatArray, validation_size: int, target: float, seed: int) -> tuple[float, float] | None:
    """Return seconds and error of the first budget that reaches the target, or None."""
    network = RecurrentSpec(input_size=INPUT_SIZE, hidden_size=HIDDEN["lstm"])
    for epochs in BUDGETS:
        config = TrainingConfig(
            max_epochs=epochs, steps_per_epoch=STEPS_PER_EPOCH, patience=epochs, seed=seed, device="cpu"
        )
        result = our_fit(y_NT, network, config, y_NT.shape[1] - validation_size)
        error = validation_error(result, y_NT, validation_size)
        if error <= target:
            return result.seconds, error
    return None


@torch.inference_mode()
def validation_error(result: FitResult, y_NT: FloatArray, validation_size: int) -> float:
    """Return the mean absolute error of the median over the windows neuralforecast is asked at."""
    first = y_NT.shape[1] - validation_size
    cutoffs = np.arange(first, y_NT.shape[1], HORIZON)[:, None]
    x = torch.tensor(y_NT[:, cutoffs + np.arange(-INPUT_SIZE, 0)], dtype=torch.float32).flatten(0, 1)
    said_BHQ = result.network(Inputs(x, torch.ones_like(x, dtype=torch.bool)))
    actual = y_NT[:, cutoffs + np.arange(HORIZON)].reshape(-1, HORIZON)
    return float(np.abs(said_BHQ[..., 0].double().numpy() - actual).mean())


def add_ratios(report: Report, case: str, metric: str) -> None:
    """Append what ours is to each of the others."""
    ours = report.value(case, OURS, metric)
    for row in list(report.rows):
        if ours is not None and (row.case, row.metric) == (case, metric) and row.system != OURS:
            report.add(case, OURS, f"{metric}, ratio to {row.system}", ours / row.value)


if __name__ == "__main__":
    main(sys.argv[1:])
