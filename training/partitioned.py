"""Fitting one network over partitions of the series: rounds of local steps, then the average of the weights.

Local SGD (Stich, "Local SGD Converges Fast and Communicates Little", 2019), the average weighted by the windows of
each partition (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017);
the moments of the optimiser are averaged alike, so that whoever trains a partition next needs no memory of it.
A round is an epoch. Where its partitions are trained is the caller's matter: the weights are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forecasting.errors import TrainingError
from forecasting.networks import build_network
from forecasting.networks.base import TrainedNetwork
from forecasting.panel import Panel, load_panel, save_panel
from forecasting.spec import ForecasterSpec
from training.fit import Fitting, FittingFactory, pick_device
from training.job import TrainingConfig
from training.windows import PanelTensors, Windows

Arrays = dict[str, NDArray[Any]]
PARTITIONS_KEPT = 4
"""Partitions a process keeps on its device from one round to the next."""
EPOCH_STRIDE, SEED_STRIDE = 10_007, 1_000_000_007
"""What keeps the random numbers of partitions, epochs and seeds apart."""


@dataclass(frozen=True)
class LocalRound:
    """One partition's part of one round; plain data, for it may go to another process."""

    panel: Path
    spec: ForecasterSpec
    config: TrainingConfig
    stop: int
    """Position after the last target that may be learnt from."""
    epoch: int
    partition: int
    weights: Arrays
    moments: Mapping[int, Arrays]
    """The optimiser's state by parameter; empty before the first round."""


@dataclass(frozen=True)
class LocalResult:
    """What a partition came to in a round; `windows` is 0 where it has nothing to learn from."""

    windows: int
    weights: Arrays
    moments: Mapping[int, Arrays]
    metrics: Mapping[str, float]
    forecasts_seen: int


RunRounds = Callable[[Sequence[LocalRound]], Sequence[LocalResult]]
"""Runs `train_round` for each, anywhere, and returns the results in the same order."""


def write_partitions(panel: Panel, folder: Path, count: int) -> list[Path]:
    """Deal the series that have a value to `count` panels in files, and return the paths of those with any."""
    observed = np.flatnonzero(np.isfinite(panel.y_NT).any(axis=1))
    folder.mkdir(parents=True, exist_ok=True)
    shares = [observed[start::count] for start in range(min(count, len(observed)))]
    paths = [folder / f"{number:05d}.npz" for number in range(len(shares))]
    for path, series in zip(paths, shares, strict=True):
        save_panel(panel.take(series), path)
    return paths


def partitioned(paths: Sequence[Path], run_rounds: RunRounds) -> FittingFactory:
    """Return what makes `fit` train over partitions of the panel it is given."""
    return partial(_PartitionedFitting, paths, run_rounds)


class _PartitionedFitting(Fitting):
    """A fitting whose epochs are rounds; it validates, keeps the best and stops as every other."""

    def __init__(
        self,
        paths: Sequence[Path],
        run_rounds: RunRounds,
        network: TrainedNetwork,
        spec: ForecasterSpec,
        config: TrainingConfig,
        train: Windows,
        validation: Windows,
    ) -> None:
        super().__init__(network, spec, config, train, validation)
        self._spec, self._paths, self._run_rounds = spec, paths, run_rounds
        self._moments: Mapping[int, Arrays] = {}

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], int]:
        """Train every partition from the weights as they are, and take the average of what they come to."""
        weights = _to_arrays(self.network)
        orders = [
            LocalRound(path, self._spec, self.config, self.train.stop, epoch, partition, weights, self._moments)
            for partition, path in enumerate(self._paths)
        ]
        results = [result for result in self._run_rounds(orders) if result.windows]
        shares = np.array([result.windows for result in results]) / sum(result.windows for result in results)
        averaged = _average([result.weights for result in results], shares)
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(torch.from_numpy(averaged[name]))
        self._moments = {
            i: _average([result.moments[i] for result in results], shares) for i in results[0].moments
        }
        metrics = {
            name: float(sum(share * result.metrics[name] for share, result in zip(shares, results, strict=True)))
            for name in results[0].metrics
        }
        return metrics, sum(result.forecasts_seen for result in results)


def train_round(order: LocalRound) -> LocalResult:
    """Train one partition for an epoch, from the weights and with the random numbers of its order."""
    spec, config = order.spec, order.config
    data = _load(order.panel, order.panel.stat().st_mtime_ns, spec, pick_device(config.device))
    train = Windows(data, spec.input_size, spec.horizon, 0, order.stop)
    seed = (config.seed * SEED_STRIDE + order.epoch * EPOCH_STRIDE + order.partition) % 2**63
    with torch.random.fork_rng(devices=[data.device] if data.device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = build_network(spec).to(data.device)
        if not len(train) or not isinstance(network, TrainedNetwork):
            return LocalResult(0, {}, {}, {}, 0)
        network.load_state_dict({name: torch.from_numpy(values) for name, values in order.weights.items()})
        try:
            local = Fitting(network, spec, config, train, train)
        except TrainingError:  # its series are too short for lanes; those of others are not
            return LocalResult(0, {}, {}, {}, 0)
        local.sampler.manual_seed(seed)
        _put_moments(local.optimizer, order.moments)
        metrics, seen = local.train_epoch(order.epoch)
        return LocalResult(len(train), _to_arrays(network), _take_moments(local.optimizer), metrics, seen)


@lru_cache(maxsize=PARTITIONS_KEPT)
def _load(path: Path, modified: int, spec: ForecasterSpec, device: torch.device) -> PanelTensors:
    del modified  # a file written anew is another one
    return PanelTensors(load_panel(path), spec.transform, device, spec.covariates)


def _to_arrays(network: torch.nn.Module) -> Arrays:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in network.state_dict().items()}


def _average(parts: Sequence[Arrays], shares: NDArray[np.float64]) -> Arrays:
    """Return the weighted mean of arrays by name, summed in double precision and in the order given."""
    mean: Arrays = {}
    for name, first in parts[0].items():
        total = np.zeros(first.shape)
        for share, part in zip(shares, parts, strict=True):
            total += share * part[name]
        mean[name] = total.astype(first.dtype)
    return mean


def _take_moments(optimizer: torch.optim.Optimizer) -> dict[int, Arrays]:
    state: Mapping[int, Mapping[str, torch.Tensor]] = optimizer.state_dict()["state"]
    return {i: {name: value.cpu().numpy().copy() for name, value in of.items()} for i, of in state.items()}


def _put_moments(optimizer: torch.optim.Optimizer, moments: Mapping[int, Arrays]) -> None:
    state = {i: {name: torch.from_numpy(v.copy()) for name, v in of.items()} for i, of in moments.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
