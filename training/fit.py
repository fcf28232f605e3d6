"""Fitting a network: sample, forward, loss, step, evaluate, stop; top to bottom, nothing hidden.

B batch, L input_size, S steps forecasts are made at, H horizon, Q quantiles.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from forecasting.errors import TrainingError
from forecasting.networks import QuantileNetwork, build_network
from forecasting.networks.base import EveryStepNetwork, RawForecast, TrainedNetwork
from forecasting.networks.ensemble import Ensemble
from forecasting.networks.recurrent import Recurrent, RecurrentState
from forecasting.networks.segment import Segment
from forecasting.networks.volatility import Volatility
from forecasting.spec import EnsembleSpec, ForecasterSpec
from training.baselines import solve_window_map
from training.job import LossKind, TrainingConfig
from training.losses import ForecastLoss
from training.prepare import (
    measure_covariates,
    measure_features,
    measure_units,
    solve_linear_path,
    start_warm,
    weigh_linear,
)
from training.windows import Batch, Lanes, Windows

Log = Callable[[Mapping[str, float], int], None]
"""Called once an epoch with its metrics and its number; a tracker, a progress bar, or nothing."""


def log_nothing(metrics: Mapping[str, float], epoch: int) -> None:
    """Take an epoch's metrics and keep nothing."""
    del metrics, epoch


WARM_UP_SHARE = 0.05
FINAL_RATE = 0.05
MOST_VALIDATED, FEWEST_VALIDATED = 2048, 512
VALIDATED_SHARE = 0.5
"""Windows validated after an epoch, for each trained on in it: to look must not cost more than to learn."""
VALIDATION_BATCH = 1024


@dataclass(frozen=True)
class FitResult:
    """A fitted network and how it came about."""

    network: QuantileNetwork
    best_epoch: int
    epochs: int
    validation_loss: float
    seconds: float
    stopped_by: str
    forecasts_seen: int


def pick_device(wanted: str) -> torch.device:
    """Return the device a job asks for; `auto` takes a GPU where there is one.

    Raises:
        TrainingError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("the job asks for device cuda, and this machine has none; use device: auto")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def fit(
    spec: ForecasterSpec,
    config: TrainingConfig,
    train: Windows,
    validation: Windows,
    log: Log | None = None,
    *,
    warm: QuantileNetwork | None = None,
    fitting: "FittingFactory | None" = None,
) -> FitResult:
    """Fit the network of a spec and return it with the weights of its best epoch.

    Args:
        spec: what to build.
        config: how to fit it.
        train: windows to learn from.
        validation: windows that decide when to stop; their targets come after all of `train`'s.
        log: called once an epoch; the epochs of an ensemble's members follow one another.
        warm: a fitted network of the same spec, whose weights are the start.
        fitting: what makes the training; default one over all windows, in this process.

    Raises:
        TrainingError: there is nothing to learn from, the loss does not suit the head, or it diverged.
    """
    if not len(train) or not len(validation):
        empty = "train" if not len(train) else "validate"
        raise TrainingError(
            f"no window to {empty} with: input_size {spec.input_size} and horizon {spec.horizon} "
            f"do not fit into the data"
        )
    if isinstance(spec.network, EnsembleSpec):
        return _fit_ensemble(spec, spec.network, config, train, validation, log or log_nothing, warm, fitting)
    device = train.data.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        network = build_network(spec).to(device)
        if not isinstance(network, TrainedNetwork):
            raise TrainingError(f"a forecaster of kind {spec.network.kind!r} is not fitted by gradient descent")
        _start(network, train, validation, warm)
        result = (fitting or Fitting)(network, spec, config, train, validation).run(log or log_nothing)
        if isinstance(network, Segment) and network.linear_part == "blend":
            weigh_linear(network, validation, config.units)
        return result


def _start(network: TrainedNetwork, train: Windows, validation: Windows, warm: QuantileNetwork | None) -> None:
    """Give a network what it does not learn by descent, or the weights of the one before it."""
    if warm is not None:
        start_warm(network, warm)
        return
    measure_covariates(network, train)
    measure_units(network, train)
    if isinstance(network, Segment) and network.linear is not None:
        solve_window_map(network.linear, network, train, validation)
    if isinstance(network, Volatility):
        measure_features(network, train)
        solve_linear_path(network, train)


def _fit_ensemble(
    spec: ForecasterSpec,
    network: EnsembleSpec,
    config: TrainingConfig,
    train: Windows,
    validation: Windows,
    log: Log,
    warm: QuantileNetwork | None,
    fitting: "FittingFactory | None",
) -> FitResult:
    """Fit each member with a seed of its own and average them."""
    member_spec = spec.model_copy(update={"network": network.member})
    results: list[FitResult] = []
    for i in range(network.n_members):
        member_config = config.model_copy(update={"seed": config.seed + i})
        before = sum(result.epochs for result in results)

        def log_member(metrics: Mapping[str, float], epoch: int, before: int = before) -> None:
            log(metrics, before + epoch)

        start = warm.networks()[i] if isinstance(warm, Ensemble) else None
        results.append(fit(member_spec, member_config, train, validation, log_member, warm=start, fitting=fitting))
    ensemble = build_network(spec).to(train.data.device)
    if not isinstance(ensemble, Ensemble):
        raise TrainingError(f"{spec.network.kind!r} is no ensemble")
    ensemble.set_members([result.network for result in results])
    return FitResult(
        network=ensemble.eval(),
        best_epoch=max(result.best_epoch for result in results),
        epochs=sum(result.epochs for result in results),
        validation_loss=sum(result.validation_loss for result in results) / len(results),
        seconds=sum(result.seconds for result in results),
        stopped_by=results[-1].stopped_by,
        forecasts_seen=sum(result.forecasts_seen for result in results),
    )


class Fitting:
    """The state of one fit."""

    def __init__(
        self,
        network: TrainedNetwork,
        spec: ForecasterSpec,
        config: TrainingConfig,
        train: Windows,
        validation: Windows,
    ) -> None:
        self.network, self.config, self.train, self.validation = network, config, train, validation
        self.device = train.data.device
        self.every_step = network if isinstance(network, EveryStepNetwork) else None
        # A network is not scored on the steps in which it has hardly seen anything yet.
        quarter = min(spec.input_size // 4, spec.input_size - 1)
        self.skip = (quarter if config.warm_up is None else config.warm_up) if self.every_step is not None else 0
        self.lanes = self._list_lanes(spec)
        if self.lanes is None and self.skip >= spec.input_size:
            raise TrainingError(
                f"warm_up is {self.skip}, and a window has {spec.input_size} steps: none is scored"
            )
        self.loss = ForecastLoss(
            _loss_kind(network, config),
            config.units,
            network.output,
            torch.tensor(spec.quantiles, device=self.device),
        )
        self.autocast = config.precision == "bfloat16" or (
            config.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = _build_optimizer(self.parameters, config)
        average = get_ema_multi_avg_fn(config.average)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(network, multi_avg_fn=average) if config.average else None
        self.sampler = torch.Generator(device=self.device).manual_seed(config.seed)
        self.steps = self._steps_per_epoch(spec)

    def _list_lanes(self, spec: ForecasterSpec) -> Lanes | None:
        config, network = self.config, self.network
        if config.truncation is None or self.every_step is None:
            return None
        if not isinstance(network, Recurrent):
            raise TrainingError(f"{spec.network.kind} carries no state from chunk to chunk; leave truncation out")
        lanes = Lanes(
            self.train.data,
            network.trained_horizon,
            self.train.stop,
            chunk=config.truncation,
            n_chunks=config.lane_chunks,
            random_offsets=config.random_offsets,
        )
        if self.skip >= lanes.length:
            raise TrainingError(
                f"warm_up is {self.skip}, and a lane has {lanes.length} steps (lane_chunks of truncation): "
                f"none is scored"
            )
        if not len(lanes):
            raise TrainingError(f"no series is long enough for lanes with a horizon of {spec.horizon}")
        return lanes

    def _steps_per_epoch(self, spec: ForecasterSpec) -> int:
        scored = 1 if self.every_step is None else spec.input_size - min(self.skip, spec.input_size - 1)
        independent = len(self.train) / scored
        steps = self.config.steps_per_epoch or min(100, max(10, math.ceil(independent / self.config.batch_size)))
        return steps if self.lanes is None else max(1, round(steps / self.lanes.n_chunks)) * self.lanes.n_chunks

    def run(self, log: Log) -> FitResult:
        """Train until the patience, the epochs or the time budget is used up."""
        started = time.perf_counter()
        best_loss, best_epoch = self._validation_loss(), 0
        best_state = copy.deepcopy(self._kept().state_dict())
        stopped_by = "max_epochs"
        epoch, seen = 0, 0
        for epoch in range(1, self.config.max_epochs + 1):
            metrics, scored = self.train_epoch(epoch)
            seen += scored
            loss = self._validation_loss()
            log({**metrics, "val/loss": loss, "seconds": time.perf_counter() - started}, epoch)
            if not math.isfinite(metrics["train/loss"]):
                raise TrainingError(
                    f"training diverged in epoch {epoch}: the loss is not a number; "
                    f"lower learning_rate ({self.config.learning_rate:g}) or clip_norm ({self.config.clip_norm:g})"
                )
            if loss < best_loss:
                best_loss, best_epoch = loss, epoch
                best_state = copy.deepcopy(self._kept().state_dict())
            if epoch - best_epoch >= self.config.patience:
                stopped_by = "patience"
                break
            if self.config.max_seconds and time.perf_counter() - started >= self.config.max_seconds:
                stopped_by = "max_seconds"
                break
        self.network.load_state_dict(best_state)
        return FitResult(
            network=self.network.eval(),
            best_epoch=best_epoch,
            epochs=epoch,
            validation_loss=best_loss,
            seconds=time.perf_counter() - started,
            stopped_by=stopped_by,
            forecasts_seen=seen,
        )

    def _kept(self) -> TrainedNetwork:
        """Return the network whose weights are validated and kept: the average, where there is one."""
        if self.averaged is None:
            return self.network
        return cast("TrainedNetwork", self.averaged.module)

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], int]:
        """Train between two validations; return the metrics and the forecasts seen."""
        self.network.train()
        total = torch.zeros((), device=self.device)
        norms = torch.zeros(len(self.parameters), device=self.device)
        seen = 0
        for step, (forecast, batch) in enumerate(self._forecasts()):
            rate = self._set_learning_rate((epoch - 1) * self.steps + step)
            loss = self.loss(forecast, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norms += self._clip()
            self.optimizer.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.network)
            total += loss.detach()
            seen += batch.target_BSH.shape[0] * batch.target_BSH.shape[1]
        # Read once an epoch: on a GPU every reading waits for the device.
        names = [name for name, p in self.network.named_parameters() if p.requires_grad]
        per_layer = dict(zip((f"grad_norm/{n}" for n in names), (norms / self.steps).tolist(), strict=True))
        return {"train/loss": float(total / self.steps), "learning_rate": rate, **per_layer}, seen

    def _forecasts(self) -> Iterator[tuple[RawForecast, Batch]]:
        """Yield the forecasts of an epoch's steps, each made when the step before it has been taken."""
        if self.lanes is not None and isinstance(self.network, Recurrent):
            yield from self._lane_forecasts(self.lanes, self.network)
            return
        for _ in range(self.steps):
            size = (self.config.batch_size,)
            chosen_B = torch.randint(len(self.train), size, generator=self.sampler, device=self.device)
            if self.every_step is None:
                batch = self._hide(self.train.gather(chosen_B))
                with self._precision():
                    forecast = self.network.raw_forecast(batch.inputs)
            else:
                batch = self._hide(self.train.gather_every_step(chosen_B, self.skip, self.network.trained_horizon))
                with self._precision():
                    forecast = self.every_step.forecast_steps(batch.inputs, skip=self.skip)
            yield forecast, batch

    def _lane_forecasts(self, lanes: Lanes, network: Recurrent) -> Iterator[tuple[RawForecast, Batch]]:
        """Cross lanes chunk by chunk, the state carried on and the gradient cut between chunks.

        Truncated back-propagation through time: Williams and Peng, 1990.
        """
        taken = 0
        while taken < self.steps:
            drawn = lanes.sample(self.config.batch_size, self.sampler)
            state: RecurrentState | None = None
            for number in range(lanes.n_chunks):
                skip = min(max(self.skip - number * lanes.chunk, 0), lanes.chunk)
                batch = self._hide(lanes.gather(drawn, number, min(skip, lanes.chunk - 1)))
                with self._precision():
                    if skip == lanes.chunk:
                        # All of it is warm-up: there is nothing to learn from but the state it leaves.
                        with torch.no_grad():
                            state = network.encode(batch.inputs, state)[-1]
                        continue
                    forecast, state = network.forecast_every_step(batch.inputs, state, skip=skip)
                yield forecast, batch
                state = state.detach()
                taken += 1
                if taken == self.steps:
                    return

    def _hide(self, batch: Batch) -> Batch:
        """Hide some covariates, so that the network learns to do without."""
        encoder = self.network.encoder
        return batch if encoder is None else batch._replace(inputs=encoder.hide_some(batch.inputs))

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def _clip(self) -> Tensor:
        """Clip the gradient, and return its norms before: what vanishes or explodes shows here."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        norms = torch.stack(torch._foreach_norm(grads))
        nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norms.norm())
        return norms

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Return the loss of the forecast after the last step, which is the one that will be served."""
        network = self._kept().eval()
        trained = self.steps * self.config.batch_size
        wanted = max(FEWEST_VALIDATED, min(MOST_VALIDATED, round(VALIDATED_SHARE * trained)))
        chosen = self.validation.spread(wanted)
        total = torch.zeros((), device=self.device)
        for chosen_B in torch.split(chosen, VALIDATION_BATCH):
            batch = self.validation.gather(chosen_B).first_steps(network.trained_horizon)
            total += self.loss(network.raw_forecast(batch.inputs), batch) * len(chosen_B)
        return float(total) / len(chosen)

    def _set_learning_rate(self, step: int) -> float:
        share = step / max(1, self.steps * self.config.max_epochs)
        rate = self.config.learning_rate * _schedule(self.config.schedule, share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


FittingFactory = Callable[[TrainedNetwork, ForecasterSpec, TrainingConfig, Windows, Windows], Fitting]
"""Makes the fitting of a network from its spec, its settings, and the windows to train and to validate with."""


def _loss_kind(network: TrainedNetwork, config: TrainingConfig) -> LossKind:
    try:
        return config.loss_for(network.head_kind)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def _build_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.RMSprop(parameters, lr=rate, weight_decay=decay, momentum=0.9, alpha=0.99)


def _schedule(kind: str, share: float) -> float:
    """Return the factor on the learning rate after a share of the training."""
    if kind == "constant":
        return 1.0
    if share < WARM_UP_SHARE:
        return (share + 1e-3) / (WARM_UP_SHARE + 1e-3)
    done = (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))
