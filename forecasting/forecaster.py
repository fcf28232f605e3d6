"""Forecaster: a spec, a network and one `predict`, the only inference path there is.

The backtest that promoted a model runs this very code on this very object; so does the service.

B batch, L input_size, H horizon, Q quantiles, P parameters of a density.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forecasting.calendar import Calendar, parse_freq
from forecasting.covariates import Covariates, future_columns, past_columns, static_codes
from forecasting.errors import InputError
from forecasting.networks import QuantileNetwork, build_network
from forecasting.networks.base import CovariateTensors, Inputs
from forecasting.networks.ensemble import Ensemble
from forecasting.networks.volatility import Volatility
from forecasting.spec import ForecasterSpec
from forecasting.transforms import apply_transform, invert_transform

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Ask = Callable[[FloatArray, NDArray[np.bool_], Covariates | None], FloatArray]

BATCH = {"cpu": 256, "cuda": 4096}
"""Windows in one forward pass, which bounds the memory of a large request and not its size; on a CPU so many that
what a recurrent network leaves behind at every step stays in the cache."""


class Density(NamedTuple):
    """Skewed Student-t densities (Hansen, 1994) on the modelling scale, each `(B, H)`."""

    location_BH: FloatArray
    """The mean of the change since the last value known: of log prices, the cumulated return in percent."""
    scale_BH: FloatArray
    """The standard deviation."""
    tail_BH: FloatArray
    """The inverse of the degrees of freedom."""
    skew_BH: FloatArray
    """Between -1 and 1, below 0 where the left tail is the longer one."""


class Forecaster:
    """A fitted model that turns histories into quantiles."""

    def __init__(self, spec: ForecasterSpec, network: QuantileNetwork, device: str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(requires_grad=False)

    @classmethod
    def untrained(cls, spec: ForecasterSpec) -> "Forecaster":
        """Build a forecaster with fresh weights."""
        return cls(spec, build_network(spec))

    @property
    def input_size(self) -> int:
        """Steps of history `predict` expects."""
        return self.spec.input_size

    @property
    def batch(self) -> int:
        """Windows in one forward pass."""
        return BATCH.get(self.device.type, BATCH["cpu"])

    @torch.inference_mode()
    def predict(self, y_BL: FloatArray, covariates: Covariates | None = None) -> FloatArray:
        """Forecast the steps after each history.

        Args:
            y_BL: histories in observed units, oldest first, NaN where missing. Longer histories than
                `input_size` are cut to their end.
            covariates: what else is known of each history; needed where `spec.takes_covariates`.

        Returns:
            `(B, H, Q)` quantiles in observed units, ascending along Q. A result that is not finite is NaN
            over its whole series: a forecast is right or it is none.

        Raises:
            InputError: the histories are shorter than `input_size`, one holds no usable value, or the
                covariates are not those of the spec.
        """
        x_BL, mask_BL = self._modelled(y_BL, covariates)
        return self.to_observed(
            self._in_batches(self._forward, len(self.spec.quantiles), x_BL, mask_BL, covariates)
        )

    def _modelled(self, y_BL: FloatArray, covariates: Covariates | None) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return the histories on the modelling scale and what of them is known, both checked."""
        if y_BL.ndim != 2 or y_BL.shape[1] < self.input_size:
            raise InputError(f"histories of shape {y_BL.shape}; this model needs (series, {self.input_size})")
        x_BL = apply_transform(y_BL[:, -self.input_size :], self.spec.transform)
        mask_BL = np.isfinite(x_BL)
        if not mask_BL.all() and not mask_BL.any(axis=1).all():
            row = int(mask_BL.any(axis=1).argmin())
            raise InputError(f"history {row} has no usable value in its last {self.input_size} steps")
        self._require_covariates(len(y_BL), covariates)
        return x_BL, mask_BL

    def to_observed(self, x_BHQ: FloatArray) -> FloatArray:
        """Return quantiles on the modelling scale in observed units, NaN over a series where any is not finite."""
        y_BHQ = invert_transform(x_BHQ, self.spec.transform)
        if not np.isfinite(y_BHQ).all():
            y_BHQ[~np.isfinite(y_BHQ).all(axis=(1, 2))] = np.nan
        return y_BHQ

    def _in_batches(
        self, ask: Ask, width: int, x_BL: FloatArray, mask_BL: NDArray[np.bool_], covariates: Covariates | None
    ) -> FloatArray:
        """Return the `(B, H, width)` answers, asked for a batch at a time."""
        size = self.batch
        if len(x_BL) <= size:
            return ask(x_BL, mask_BL, covariates) if len(x_BL) else np.empty((0, self.spec.horizon, width))
        batches = [slice(i, i + size) for i in range(0, len(x_BL), size)]
        return np.concatenate(
            [
                ask(x_BL[rows], mask_BL[rows], None if covariates is None else covariates.rows(rows))
                for rows in batches
            ]
        )

    def _require_covariates(self, n_series: int, covariates: Covariates | None) -> None:
        if not self.spec.takes_covariates:
            return
        if covariates is None:
            raise InputError(f"model {self.spec.name!r} needs covariates: at least the time of each last step")
        if len(covariates.cutoff_B) != n_series:
            raise InputError(f"{n_series} histories and covariates of {len(covariates.cutoff_B)}")

    @torch.inference_mode()
    def predict_density(self, y_BL: FloatArray, covariates: Covariates | None = None) -> Density:
        """Return the densities whose quantiles `predict` gives, on the modelling scale; of an ensemble the mean.

        Averaged are location, scale, tail and skew, which is the density of averaged quantiles where the members
        have one shape, and close to it where they nearly do. Arguments and errors are those of `predict`.

        Raises:
            InputError: the network is no volatility network, and says no density.
        """
        if not self.says_density:
            raise InputError(f"model {self.spec.name!r} says quantiles and no density; volatility networks do")
        x_BL, mask_BL = self._modelled(y_BL, covariates)
        parts_BHP = self._in_batches(self._density, len(Density._fields), x_BL, mask_BL, covariates)
        return Density(*np.moveaxis(parts_BHP, -1, 0))

    @property
    def says_density(self) -> bool:
        """Whether `predict_density` has an answer."""
        return len(self._volatility_networks()) == len(self._networks())

    def _networks(self) -> list[QuantileNetwork]:
        return self.network.networks() if isinstance(self.network, Ensemble) else [self.network]

    def _volatility_networks(self) -> list[Volatility]:
        return [network for network in self._networks() if isinstance(network, Volatility)]

    def _density(self, x_BL: FloatArray, mask_BL: NDArray[np.bool_], covariates: Covariates | None) -> FloatArray:
        # Their level is the last value known, and so what the location is relative to.
        inputs, _ = self._inputs(x_BL, mask_BL, covariates)
        said = [torch.stack(network.density(inputs), dim=-1) for network in self._volatility_networks()]
        parts_BHP: FloatArray = torch.stack(said).mean(dim=0).cpu().numpy().astype(np.float64)
        return parts_BHP

    def _forward(self, x_BL: FloatArray, mask_BL: NDArray[np.bool_], covariates: Covariates | None) -> FloatArray:
        inputs, level_B1 = self._inputs(x_BL, mask_BL, covariates)
        quantiles_BHQ: FloatArray = self.network(inputs).cpu().numpy().astype(np.float64)
        quantiles_BHQ += level_B1[:, :, None]
        return quantiles_BHQ

    def _inputs(
        self, x_BL: FloatArray, mask_BL: NDArray[np.bool_], covariates: Covariates | None
    ) -> tuple[Inputs, FloatArray]:
        """Return what the network sees, and the level that was taken off its values."""
        # Networks follow shifts of their input exactly, so the level is taken off here in double precision:
        # single precision then carries the movement, whatever the level.
        whole = bool(mask_BL.all())
        level_B1 = x_BL[:, -1:] if whole else _last_observed(x_BL, mask_BL)
        # What does not fit becomes infinite, and so a forecast that is none: no warning is needed.
        with np.errstate(over="ignore", invalid="ignore"):
            centred_BL = x_BL - level_B1 if whole else np.where(mask_BL, x_BL - level_B1, 0.0)
            narrow_BL = centred_BL.astype(np.float32)
        return Inputs(self.tensor(narrow_BL), self.tensor(mask_BL), *self._known(covariates), whole), level_B1

    def _known(self, covariates: Covariates | None) -> tuple[CovariateTensors | None, Tensor | None]:
        """Return covariates as the network takes them, and where in its cycle each history ends."""
        spec = self.spec
        if covariates is None or not spec.takes_covariates:
            return None, None
        ordinal_B = self.tensor(self.calendar.ordinals(covariates.cutoff_B)) if spec.has_cycle else None
        if not spec.covariates:
            return None, ordinal_B
        past_BLP = past_columns(covariates, spec.covariates, spec.input_size)
        future_BTF = future_columns(covariates, spec.covariates, spec.input_size, spec.horizon, self.calendar)
        return self.covariate_tensors(past_BLP, future_BTF, static_codes(covariates, spec.covariates)), ordinal_B

    def covariate_tensors(
        self, past_BLP: FloatArray, future_BTF: FloatArray, static_BS: IntArray
    ) -> CovariateTensors:
        """Return covariates as networks take them: calendar columns follow the future ones, statics are codes."""
        # What does not fit becomes infinite, and so counts as missing.
        with np.errstate(over="ignore"):
            past_BLP, future_BTF = past_BLP.astype(np.float32), future_BTF.astype(np.float32)
        return CovariateTensors(self.tensor(past_BLP), self.tensor(future_BTF), self.tensor(static_BS))

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """Return an array where the network is."""
        return torch.from_numpy(values).to(self.device)

    @cached_property
    def calendar(self) -> Calendar:
        """Return the grid its timestamps lie on."""
        return parse_freq(self.spec.freq)


def _last_observed(x_BL: FloatArray, mask_BL: NDArray[np.bool_]) -> FloatArray:
    last_B = x_BL.shape[1] - 1 - mask_BL[:, ::-1].argmax(axis=1)
    return np.take_along_axis(x_BL, last_B[:, None], axis=1)


def mean_weights(quantiles: Sequence[float]) -> FloatArray:
    """Return the weights with which quantiles sum to the mean of the distribution they describe.

    The quantile function is integrated by the trapezoid rule, held flat beyond the outermost quantiles.
    """
    q = np.asarray(quantiles, dtype=np.float64)
    edges = np.concatenate([[0.0], (q[1:] + q[:-1]) / 2, [1.0]])
    weights: FloatArray = np.diff(edges)
    return weights


def interval_bounds(quantiles: Sequence[float], level: float) -> tuple[float, float]:
    """Return the probabilities that bound a central interval of `level` percent.

    Raises:
        InputError: the level reaches beyond the quantiles the model was trained for.
    """
    low, high = round(0.5 - level / 200, 9), round(0.5 + level / 200, 9)
    if not 0 < level < 100 or low < quantiles[0] - 1e-9 or high > quantiles[-1] + 1e-9:
        widest = 100 * min(quantiles[-1] - 0.5, 0.5 - quantiles[0]) * 2
        raise InputError(
            f"level {level:g} is outside what this model was trained for: above 0 and up to {widest:g}"
        )
    return low, high


def format_level(level: float) -> str:
    """Write a level as column names carry it: 80, 99.5."""
    return f"{level:g}"


class Summary(NamedTuple):
    """The columns of a forecast: `mean`, then `lo-80` and `hi-80` for every level, and how they are made.

    C columns besides the mean, each on the line between two quantiles.
    """

    names: tuple[str, ...]
    mean_weights_Q: FloatArray
    left_C: IntArray
    right_C: IntArray
    share_C: FloatArray

    def columns(self, quantiles_BHQ: FloatArray) -> FloatArray:
        """Return `(B, 1 + C, H)`; none of them depends on which others are asked for."""
        columns_BHC = np.empty((*quantiles_BHQ.shape[:2], 1 + len(self.left_C)))
        columns_BHC[..., 0] = quantiles_BHQ @ self.mean_weights_Q
        bounds_BHC = quantiles_BHQ.take(self.left_C, axis=-1)
        if self.share_C.any():
            bounds_BHC += self.share_C * (quantiles_BHQ.take(self.right_C, axis=-1) - bounds_BHC)
        columns_BHC[..., 1:] = bounds_BHC
        return columns_BHC.transpose(0, 2, 1)


@lru_cache(maxsize=1024)
def summary_of(quantiles: tuple[float, ...], level: tuple[float, ...]) -> Summary:
    """Return how columns are made of quantiles; a level between trained quantiles is interpolated in probability.

    Raises:
        InputError: a level reaches beyond the trained quantiles.
    """
    bounds = [(lv, interval_bounds(quantiles, lv)) for lv in level]
    names = [f"{side}-{format_level(lv)}" for lv, _ in bounds for side in ("lo", "hi")]
    places = [_place(quantiles, probability) for _, pair in bounds for probability in pair]
    left, right, share = zip(*places, strict=True) if places else ((), (), ())
    return Summary(
        ("mean", *names),
        mean_weights(quantiles),
        np.array(left, dtype=np.int64),
        np.array(right, dtype=np.int64),
        np.array(share, dtype=np.float64),
    )


def summarise(
    quantiles_BHQ: FloatArray, quantiles: Sequence[float], level: Sequence[float]
) -> Mapping[str, FloatArray]:
    """Return the columns of a forecast by name, each `(B, H)`; see `Summary`.

    Raises:
        InputError: a level reaches beyond the trained quantiles.
    """
    summary = summary_of(tuple(quantiles), tuple(level))
    columns_BCH = summary.columns(quantiles_BHQ)
    return {name: columns_BCH[:, c] for c, name in enumerate(summary.names)}


def interpolate_quantile(quantiles_BHQ: FloatArray, quantiles: Sequence[float], probability: float) -> FloatArray:
    """Return the `(B, H)` values at a probability within the range of the quantiles."""
    left, right, share = _place(tuple(quantiles), probability)
    lower_BH: FloatArray = quantiles_BHQ[..., left]
    return lower_BH if share == 0 else lower_BH + share * (quantiles_BHQ[..., right] - lower_BH)


def _place(quantiles: tuple[float, ...], probability: float) -> tuple[int, int, float]:
    """Return the quantiles a probability lies between, and how far it is from the first to the second."""
    grid = np.asarray(quantiles)
    right = int(np.clip(np.searchsorted(grid, probability - 1e-9), 0, len(grid) - 1))
    if abs(grid[right] - probability) < 1e-6 or right == 0:
        return right, right, 0.0
    return right - 1, right, float((probability - grid[right - 1]) / (grid[right] - grid[right - 1]))
