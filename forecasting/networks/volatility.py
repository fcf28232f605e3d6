"""Volatility networks: how far the next returns may spread, by a linear path and a recurrent one beside it.

The log of the scale is a linear map of the logs of past variances over several horizons (heterogeneous
autoregression: Corsi, 2009), of squared returns and of what a day's range tells where it is known (Parkinson,
1980; Garman and Klass, 1980), plus what a recurrent network adds to it. Both start at nothing: an untrained
network says that returns spread as they did in its window. Of each step it says a skewed Student-t (Hansen, 1994).

Every variance is relative to a running one of the returns, which is also the scale of the forecast: one network
serves calm and wild series. How large that running one is it reads too, unless told not to: what is calm beyond
all that was usual does not stay so, and a spread relative to the window alone would not know.

Corsi, F. (2009). A simple approximate long-memory model of realized volatility. J. of Financial Econometrics 7(2).
Garman, M. B. and Klass, M. J. (1980). On the estimation of security price volatilities. Journal of Business 53(1).

B batch, L steps, S steps a forecast is made at, H horizon, P past columns, C signals, F features, D hidden,
parameters of the output as in `forecasting.networks.outputs`.
"""

import torch
from torch import Tensor, nn

from forecasting.networks.base import EveryStepNetwork, Inputs, RawForecast
from forecasting.networks.covariates import AheadEffect, CovariateEncoder
from forecasting.networks.outputs import SkewedTDensity, SkewedTOutput
from forecasting.networks.recurrent import start_recurrence
from forecasting.scaling import SCALE_FLOOR, running_mean
from forecasting.spec import RETURN_COLUMNS, VARIANCE_COLUMNS, ForecasterSpec, VolatilitySpec

HALF_LIVES = (1.0, 3.0, 8.0, 20.0, 60.0)
"""Steps over which the weight of a variance halves, in the means the linear path reads."""

RETURN_HALF_LIVES = (2.0, 8.0)
LOWEST_SHARE = 1e-2
"""Share of the running variance below which variances are not told apart: a log has no bottom.

Of 0.01 to 1 the best on the S&P 500 of 2007 to 2014."""

STALE = 20
"""Steps after which a column that is told no more counts as unknown."""

NEVER = 2**30

FARTHEST = 8.0
"""Standard deviations further than which a feature is drawn in."""


class Volatility(EveryStepNetwork):
    """A linear path and a recurrent one to the parameters of a skewed Student-t, at every step."""

    feature_mean_F: Tensor
    feature_scale_F: Tensor
    log_scale_P: Tensor
    output: SkewedTOutput

    def __init__(self, spec: ForecasterSpec, network: VolatilitySpec) -> None:
        super().__init__(spec, network.head)
        past = spec.covariates.past
        self.absolute = network.absolute
        self.decay = 1.0 - 2.0 / (network.span + 1.0)
        self.variances = [i for i, name in enumerate(past) if name in VARIANCE_COLUMNS]
        self.returns = [i for i, name in enumerate(past) if name in RETURN_COLUMNS]
        apart = (*self.variances, *self.returns)
        self.encoder = CovariateEncoder(spec.covariates, apart=apart) if spec.covariates else None
        n_seen, n_ahead = (self.encoder.n_seen, self.encoder.n_ahead) if self.encoder is not None else (0, 0)
        # What features are standardised by is measured on the training block; see training.prepare.
        self.register_buffer("feature_mean_F", torch.zeros(self.n_features))
        self.register_buffer("feature_scale_F", torch.ones(self.n_features))
        self.register_buffer("log_scale_P", torch.tensor(SkewedTOutput.is_log_scale), persistent=False)
        # Solved before descent, which has no part in it: see training.prepare.
        self.linear = nn.Linear(self.n_features, spec.horizon, bias=False).requires_grad_(requires_grad=False)
        cell = {"volatility_rnn": nn.RNN, "volatility_gru": nn.GRU, "volatility_lstm": nn.LSTM}[network.kind]
        self.recurrent = cell(self.n_features + n_seen, network.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(network.dropout)
        self.from_hidden = nn.Linear(network.hidden_size, spec.horizon, bias=False)
        self.effect = AheadEffect(network.hidden_size, spec.horizon, n_ahead, 1) if n_ahead else None
        with torch.device("cpu"):
            start_HP = self.output.start(spec.horizon)
        self.constant_HP = nn.Parameter(start_HP)
        start_recurrence(self.recurrent)
        self._start_at_nothing()

    @property
    def n_features(self) -> int:
        """Return the width of what `features` puts together."""
        n_columns = len(self.variances) + len(self.returns)
        n_means = (2 + n_columns) * len(HALF_LIVES) + n_columns + len(RETURN_HALF_LIVES)
        n_told = 2 * (1 + len(self.returns)) + 1 + n_columns
        return n_means + len(self.variances) + n_told + int(self.absolute)

    def _start_at_nothing(self) -> None:
        """Let no path say anything at first: each must earn what it adds to the spread of the window."""
        with torch.no_grad():
            self.linear.weight.zero_()
            self.from_hidden.weight.zero_()
            if self.effect is not None:
                self.effect.out.weight.zero_()

    def forecast_steps(self, inputs: Inputs, *, skip: int = 0) -> RawForecast:
        features_BLF, anchor_BL, scale_BL = self.features(inputs)
        standard_BLF = self.standardise(features_BLF)
        hidden_BLD, _ = self.recurrent(self._seen(standard_BLF, inputs))
        hidden_BSD = self.dropout(hidden_BLD[:, skip:])
        log_scale_BSH = self.linear(standard_BLF[:, skip:]) + self.from_hidden(hidden_BSD)
        if self.effect is not None and self.encoder is not None:
            log_scale_BSH = log_scale_BSH + self.effect(hidden_BSD, self.encoder.ahead(inputs))[..., 0]
        return RawForecast(self.parameters_at(log_scale_BSH), anchor_BL[:, skip:], scale_BL[:, skip:])

    def raw_forecast(self, inputs: Inputs) -> RawForecast:
        return self.forecast_steps(inputs, skip=inputs.x_BL.shape[1] - 1)

    def density(self, inputs: Inputs) -> SkewedTDensity:
        """Return what is said of each step `(B, H)`, in units and calibrated: `forward` has its quantiles."""
        raw = self.raw_forecast(inputs)
        said = SkewedTDensity(*(part_BSH[:, -1] for part_BSH in self.output.density(raw.parameters_BSHP)))
        return said._replace(
            location=raw.anchor_BS + raw.scale_BS * said.location, scale=raw.scale_BS * said.scale
        )

    def parameters_at(self, log_scale_BSH: Tensor) -> Tensor:
        """Return the parameters `(B, S, H, P)` of the constant distribution, its scale multiplied as said."""
        return self.constant_HP + log_scale_BSH[..., None] * self.log_scale_P

    def standardise(self, features_BLF: Tensor) -> Tensor:
        """Return features as the paths read them: 0 where unknown, extremes drawn in."""
        standard_BLF = (features_BLF - self.feature_mean_F) / self.feature_scale_F
        return standard_BLF.nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)

    def _seen(self, standard_BLF: Tensor, inputs: Inputs) -> Tensor:
        tamed_BLF = torch.asinh(standard_BLF)
        return tamed_BLF if self.encoder is None else torch.cat([tamed_BLF, self.encoder.seen(inputs)], dim=-1)

    @torch.no_grad()
    def features(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the paths read `(B, L, F)`, NaN where unknown, and each step's anchor and scale `(B, L)`.

        In single precision also where the network works with half of it: the sums span many orders.
        """
        with torch.autocast(inputs.x_BL.device.type, enabled=False):
            return_BL, anchor_BL = _returns(inputs.x_BL, inputs.mask_BL)
            square_BL = return_BL.square()
            variance_BL = _mean_so_far(square_BL, self.decay, stale=inputs.x_BL.shape[1])
            scale_BL = variance_BL.nan_to_num(0.0).sqrt().clamp_min(SCALE_FLOOR)
            variances, returns = self._columns(inputs)
            columns = [*variances, *(column_BL.square() for column_BL in returns)]
            falls_BL = torch.where(return_BL < 0, square_BL, square_BL * 0.0)
            spreads = [
                *_means([square_BL, falls_BL, *columns], [0.5 ** (1 / life) for life in HALF_LIVES]),
                *_means(columns, [self.decay]),
                *(_latest(column_BL) for column_BL in variances),
            ]
            moves = [_latest(column_BL) / scale_BL for column_BL in (return_BL, *returns)]
            trends = _means([return_BL], [0.5 ** (1 / life) for life in RETURN_HALF_LIVES])
            features = [
                *(0.5 * torch.log(spread_BL / scale_BL.square() + LOWEST_SHARE) for spread_BL in spreads),
                *(torch.asinh(move_BL) for move_BL in moves),
                *(torch.asinh(move_BL.abs()) for move_BL in moves),
                *(trend_BL / scale_BL for trend_BL in trends),
                *(known_BL.isfinite().to(scale_BL.dtype) for known_BL in (return_BL, *columns)),
                *([torch.log(scale_BL)] if self.absolute else []),
            ]
            return torch.stack(features, dim=-1), anchor_BL, scale_BL

    def _columns(self, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """Return the past columns that hold variances and those that hold returns, NaN where not known."""
        if inputs.covariates is None:
            return [], []
        past_BLP = inputs.covariates.past_BLP
        past_BLP = torch.where(past_BLP.isfinite(), past_BLP, torch.nan)
        variances = [past_BLP[..., place] for place in self.variances]
        possible = [torch.where(column_BL >= 0, column_BL, torch.nan) for column_BL in variances]
        return possible, [past_BLP[..., place] for place in self.returns]


def _returns(x_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the change since the last value known, NaN where there is none, and the last value known.

    A change over several steps is divided by the root of their number, and so spreads as that of one.
    """
    step_L = torch.arange(x_BL.shape[1], device=x_BL.device)
    latest_BL = torch.where(mask_BL, step_L, -1).cummax(dim=1).values
    before_BL = torch.nn.functional.pad(latest_BL[:, :-1], (1, 0), value=-1)
    last_BL = torch.where(latest_BL >= 0, x_BL.gather(1, latest_BL.clamp_min(0)), 0.0)
    change_BL = last_BL - x_BL.gather(1, before_BL.clamp_min(0))
    known_BL = mask_BL & (before_BL >= 0)
    return torch.where(known_BL, change_BL / (step_L - before_BL).sqrt(), torch.nan), last_BL


def _means(signals: list[Tensor], decays: list[float]) -> list[Tensor]:
    """Return the decayed means of every signal `(B, L)`, decay by decay."""
    if not signals:
        return []
    stacked_RL = torch.cat(signals)
    means = [torch.split(_mean_so_far(stacked_RL, decay, stale=STALE), len(signals[0])) for decay in decays]
    return [mean_BL for means_C in means for mean_BL in means_C]


def _mean_so_far(signal_BL: Tensor, decay: float, *, stale: int) -> Tensor:
    """Return the decayed mean of what is known up to each step, NaN where nothing is or it is stale."""
    known_BL = signal_BL.isfinite()
    mean_BL = running_mean(torch.where(known_BL, signal_BL, 0.0), known_BL.to(signal_BL.dtype), decay)
    return torch.where(_age(known_BL) <= stale, mean_BL, torch.nan)


def _latest(signal_BL: Tensor) -> Tensor:
    """Return the last value known at each step, NaN where there is none or it is stale."""
    known_BL = signal_BL.isfinite()
    age_BL = _age(known_BL)
    step_BL = torch.arange(signal_BL.shape[1], device=signal_BL.device) - age_BL
    return torch.where(age_BL <= STALE, signal_BL.gather(1, step_BL.clamp_min(0)), torch.nan)


def _age(known_BL: Tensor) -> Tensor:
    """Return the steps since something was known, more than a window can have where nothing was."""
    step_L = torch.arange(known_BL.shape[1], device=known_BL.device)
    latest_BL = torch.where(known_BL, step_L, -NEVER).cummax(dim=1).values
    return step_L - latest_BL
