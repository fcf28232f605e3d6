"""Fitting a network: sample, forward, loss, step, evaluate, stop; top to bottom, nothing hidden.

B batch, L input_size, S steps forecasts are made at, H horizon, Q quantiles.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forecasting.errors import TrainingError
from forecasting.networks import QuantileNetwork, build_network
from forecasting.networks.base import ScaledForecast
from forecasting.networks.recurrent import Recurrent
from forecasting.scaling import SCALE_FLOOR
from forecasting.spec import ForecasterSpec
from training.job import TrainingConfig
from training.losses import pinball_loss
from training.windows import Batch, Windows

Log = Callable[[Mapping[str, float], int], None]
"""Called once an epoch with its metrics and its number; a tracker, a progress bar, or nothing."""


def log_nothing(metrics: Mapping[str, float], epoch: int) -> None:
    """Take an epoch's metrics and keep nothing."""
    del metrics, epoch


TARGET_LIMIT = 50.0
"""Targets further than this many scales away are drawn in: a sensor that sticks and jumps must not rule."""

WARM_UP_SHARE = 0.05
FINAL_RATE = 0.05
VALIDATION_WINDOWS = 2048
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
    spec: ForecasterSpec, config: TrainingConfig, train: Windows, validation: Windows, log: Log | None = None
) -> FitResult:
    """Fit the network of a spec and return it with the weights of its best epoch.

    Args:
        spec: what to build.
        config: how to fit it.
        train: windows to learn from.
        validation: windows that decide when to stop; their targets come after all of `train`'s.
        log: called once an epoch.

    Raises:
        TrainingError: there is nothing to learn from, or the loss is no longer a number.
    """
    if not len(train) or not len(validation):
        empty = "train" if not len(train) else "validate"
        raise TrainingError(
            f"no window to {empty} with: input_size {spec.input_size} and horizon {spec.horizon} "
            f"do not fit into the data"
        )
    device = train.data.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        return _Fitting(spec, config, train, validation, device).run(log or log_nothing)


class _Fitting:
    """The state of one fit."""

    def __init__(
        self,
        spec: ForecasterSpec,
        config: TrainingConfig,
        train: Windows,
        validation: Windows,
        device: torch.device,
    ) -> None:
        self.config, self.train, self.validation, self.device = config, train, validation, device
        self.quantiles_Q = torch.tensor(spec.quantiles, device=device)
        self.network = build_network(spec).to(device)
        self.lanes = isinstance(self.network, Recurrent)
        # A recurrent network is not scored on the steps in which it has hardly seen anything yet.
        self.skip = min(spec.input_size // 4, spec.input_size - 1) if self.lanes else 0
        self.forecasts_per_window = spec.input_size - self.skip if self.lanes else 1
        self.optimizer = _build_optimizer(self.network, config)
        self.sampler = torch.Generator(device=device).manual_seed(config.seed)
        self.steps = config.steps_per_epoch or self._default_steps()

    def _default_steps(self) -> int:
        independent = len(self.train) / self.forecasts_per_window
        return min(100, max(10, math.ceil(independent / self.config.batch_size)))

    def run(self, log: Log) -> FitResult:
        """Train until the patience, the epochs or the time budget is used up."""
        started = time.perf_counter()
        best_loss, best_epoch, best_state = math.inf, 0, copy.deepcopy(self.network.state_dict())
        stopped_by = "max_epochs"
        epoch = 0
        for epoch in range(1, self.config.max_epochs + 1):
            metrics = self._train_epoch(epoch)
            loss = self._validation_loss()
            log({**metrics, "val/loss": loss, "seconds": time.perf_counter() - started}, epoch)
            if not math.isfinite(metrics["train/loss"]):
                raise TrainingError(
                    f"training diverged in epoch {epoch}: the loss is not a number; "
                    f"lower learning_rate ({self.config.learning_rate:g}) or clip_norm ({self.config.clip_norm:g})"
                )
            if loss < best_loss:
                best_loss, best_epoch = loss, epoch
                best_state = copy.deepcopy(self.network.state_dict())
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
            forecasts_seen=epoch * self.steps * self.config.batch_size * self.forecasts_per_window,
        )

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self.network.train()
        total = torch.zeros((), device=self.device)
        norms: dict[str, Tensor] = {}
        for step in range(self.steps):
            rate = self._set_learning_rate((epoch - 1) * self.steps + step)
            batch = self._sample()
            loss = self._loss(batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            _add_gradient_norms(self.network, norms)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
            self.optimizer.step()
            total += loss.detach()
        # Read once an epoch: on a GPU every reading waits for the device.
        per_layer = {f"grad_norm/{name}": float(norm / self.steps) for name, norm in norms.items()}
        return {"train/loss": float(total / self.steps), "learning_rate": rate, **per_layer}

    def _sample(self) -> Batch:
        size = (self.config.batch_size,)
        chosen_B = torch.randint(len(self.train), size, generator=self.sampler, device=self.device)
        return self.train.gather_lanes(chosen_B, self.skip) if self.lanes else self.train.gather(chosen_B)

    def _loss(self, batch: Batch) -> Tensor:
        if isinstance(self.network, Recurrent):
            forecast, _ = self.network.forecast_every_step(batch.x_BL, batch.mask_BL, skip=self.skip)
        else:
            forecast = self.network.scaled_forecast(batch.x_BL, batch.mask_BL)
        return scaled_loss(forecast, batch, self.quantiles_Q)

    @torch.inference_mode()
    def _validation_loss(self) -> float:
        """Return the loss of the forecast after the last step, which is the one that will be served."""
        self.network.eval()
        chosen = self.validation.spread(VALIDATION_WINDOWS)
        total, weight = 0.0, 0
        for chosen_B in torch.split(chosen, VALIDATION_BATCH):
            batch = self.validation.gather(chosen_B)
            forecast = self.network.scaled_forecast(batch.x_BL, batch.mask_BL)
            total += float(scaled_loss(forecast, batch, self.quantiles_Q)) * len(chosen_B)
            weight += len(chosen_B)
        return total / weight

    def _set_learning_rate(self, step: int) -> float:
        share = step / max(1, self.steps * self.config.max_epochs)
        rate = self.config.learning_rate * _schedule(self.config.schedule, share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


def scaled_loss(forecast: ScaledForecast, batch: Batch, quantiles_Q: Tensor) -> Tensor:
    """Return the pinball loss in units of each forecast's own scale, so that no series outweighs another."""
    target_BSH = (batch.target_BLH - forecast.anchor_BS[..., None]) / forecast.scale_BS[..., None]
    moving_BS1 = (forecast.scale_BS > SCALE_FLOOR)[..., None]
    weight_BSH = (batch.target_mask_BLH & moving_BS1).to(target_BSH.dtype)
    target_BSH = torch.where(weight_BSH > 0, target_BSH.clamp(-TARGET_LIMIT, TARGET_LIMIT), 0.0)
    return pinball_loss(forecast.values_BSHQ, target_BSH, weight_BSH, quantiles_Q)


def _build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    parameters = network.parameters()
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.RMSprop(parameters, lr=rate, weight_decay=decay, momentum=0.9, alpha=0.99)


def _schedule(kind: str, share: float) -> float:
    """Return the factor on the learning rate after a share of the training."""
    if kind == "constant":
        return 1.0
    if share < WARM_UP_SHARE:
        return (share + 1e-3) / (WARM_UP_SHARE + 1e-3)
    done = (share - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


def _add_gradient_norms(network: nn.Module, norms: dict[str, Tensor]) -> None:
    """Add each layer's gradient norm, unclipped: vanishing and exploding gradients show here."""
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            norms[name] = norms.get(name, torch.zeros((), device=parameter.device)) + parameter.grad.norm()
