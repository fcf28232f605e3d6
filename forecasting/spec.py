"""ForecasterSpec: everything needed to rebuild and feed a forecaster, as frozen data.

The architecture is a union discriminated on `kind`; no class name is ever stored or resolved.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from forecasting.ranges import NEEDS, PRICES, RANGE_FEATURES, Price, RangeFeature
from forecasting.scaling import Scaling
from forecasting.transforms import Transform

FORMAT_VERSION = 3
"""The artefact format this version writes, and the newest it reads.

1 knew no covariates and one head, 2 no volatility networks and no skewed Student-t."""

TARGET_COLUMN = "y"
"""What the values of a series are called wherever their own column has been chosen."""

MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"

InputSize = Annotated[int, Field(ge=1, le=100_000)]
HiddenSize = Annotated[int, Field(ge=1, le=8192)]
Layers = Annotated[int, Field(ge=1, le=16)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
ColumnName = Annotated[str, Field(min_length=1, max_length=128)]

Head = Literal["quantile", "student_t", "skewed_t", "point"]
"""What a network says of each step: quantiles that cannot cross, a Student-t, skewed or not, or one value."""

Decoding = Literal["direct", "autoregressive"]
"""How a sequence is decoded: the whole horizon at once, or step by step with the output fed back."""

LinearPart = Literal["none", "skip", "blend"]

CalendarFeature = Literal["hour", "weekday", "month_day", "year_day", "session_gap", "holiday"]
"""What the product knows of a timestamp; see forecasting.calendar_features."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NaiveSpec(_Frozen):
    """Repeat the last value."""

    kind: Literal["naive"] = "naive"
    input_size: InputSize = Field(description="Steps of history, from which the interval width is scaled.")


class SeasonalNaiveSpec(_Frozen):
    """Repeat the last season."""

    kind: Literal["seasonal_naive"] = "seasonal_naive"
    input_size: InputSize = Field(description="Steps of history; at least one season.")
    season_length: int = Field(ge=1, le=100_000, description="Steps in one season.")

    @model_validator(mode="after")
    def _window_holds_a_season(self) -> "SeasonalNaiveSpec":
        if self.input_size < self.season_length:
            raise ValueError(f"input_size {self.input_size} is shorter than season_length {self.season_length}")
        return self


class DriftSpec(_Frozen):
    """Continue the line from the first to the last value of the window."""

    kind: Literal["drift"] = "drift"
    input_size: InputSize = Field(description="Steps of history the line is drawn through.")


class RidgeSpec(_Frozen):
    """A linear map of the window, last value subtracted, solved in closed form."""

    kind: Literal["ridge"] = "ridge"
    input_size: InputSize = Field(description="Steps of history the network sees.")
    scaling: Scaling = Field("last", description="Window scaling; see forecasting.scaling.")


class MLPSpec(_Frozen):
    """A windowed multi-layer perceptron: it sees its window and nothing else."""

    kind: Literal["mlp"] = "mlp"
    input_size: InputSize = Field(description="Steps of history the network sees.")
    hidden_size: HiddenSize = Field(64, description="Units in each hidden layer.")
    layers: Layers = Field(2, description="Hidden layers.")
    dropout: Dropout = Field(0.0, description="Dropout after each hidden layer, in training.")
    scaling: Scaling = Field("last", description="Window scaling; see forecasting.scaling.")
    head: Head = Field(
        "quantile", description="What is said of each step: quantile, student_t, skewed_t or point."
    )


class RecurrentSpec(_Frozen):
    """A recurrent network that forecasts at every step: `rnn` (tanh), `gru` or `lstm`."""

    kind: Literal["rnn", "gru", "lstm"] = "lstm"
    input_size: InputSize = Field(description="Steps of history the network sees.")
    hidden_size: HiddenSize = Field(64, description="Units in each recurrent layer.")
    layers: Layers = Field(1, description="Stacked recurrent layers.")
    dropout: Dropout = Field(0.0, description="Dropout between stacked layers, in training.")
    scaling: Scaling = Field("last", description="Running scaling; see forecasting.scaling.")
    scale_span: int | None = Field(
        None, ge=2, le=100_000, description="Span of the running scale in steps; default half of input_size."
    )
    head: Head = Field(
        "quantile", description="What is said of each step: quantile, student_t, skewed_t or point."
    )
    decoding: Decoding = Field(
        "direct", description="The horizon at once, or step by step with the forecast fed back (autoregressive)."
    )

    @property
    def span(self) -> int:
        """Return the span of the running scale that is in force."""
        return self.scale_span or max(2, self.input_size // 2)


class SegmentSpec(_Frozen):
    """A recurrent network over the segments of a window, for long windows and long horizons."""

    kind: Literal["segment_rnn", "segment_gru", "segment_lstm"] = "segment_lstm"
    input_size: InputSize = Field(description="Steps of history the network sees.")
    segment_size: int = Field(24, ge=1, le=10_000, description="Steps of one segment.")
    hidden_size: HiddenSize = Field(128, description="Units of the recurrent layer.")
    dropout: Dropout = Field(0.1, description="Dropout before the output, in training.")
    scaling: Scaling = Field("last", description="Window scaling; see forecasting.scaling.")
    scale: Literal["window", "series"] = Field(
        "window",
        description="What values are divided by: the spread of their window, or of their series in the training "
        "data, which tells a calm window from a wild one and takes unique_id among the static covariates.",
    )
    cycle: int | None = Field(
        None, ge=2, le=100_000, description="Steps of a cycle learned and taken off the window; default none."
    )
    linear: LinearPart = Field(
        "blend",
        description="A linear map of the window from the closed-form ridge: none; skip: added, and fitted on with "
        "the network; blend: mixed with it in the proportion validation asks for.",
    )
    head: Head = Field(
        "quantile", description="What is said of each step: quantile, student_t, skewed_t or point."
    )

    @model_validator(mode="after")
    def _window_holds_a_segment(self) -> "SegmentSpec":
        if self.input_size < self.segment_size:
            raise ValueError(f"input_size {self.input_size} is shorter than segment_size {self.segment_size}")
        return self


VARIANCE_COLUMNS = ("parkinson", "garman_klass", "rogers_satchell")
"""Past columns that hold a variance of each step, in the square of the units of the target's changes."""

RETURN_COLUMNS = ("overnight", "intraday")
"""Past columns that hold a part of the target's change at each step."""


class VolatilitySpec(_Frozen):
    """A network for the spread of returns: a linear path and a recurrent one to the log of the scale.

    It reads past columns named in VARIANCE_COLUMNS and RETURN_COLUMNS as what they are, and any other as columns.
    """

    kind: Literal["volatility_rnn", "volatility_gru", "volatility_lstm"] = "volatility_lstm"
    input_size: InputSize = Field(description="Steps of history the network sees; two years of sessions are 500.")
    hidden_size: HiddenSize = Field(8, description="Units of the recurrent path.")
    dropout: Dropout = Field(0.3, description="Dropout before the output of the recurrent path, in training.")
    scale_span: int | None = Field(
        None, ge=2, le=100_000, description="Span of the running scale in steps; default input_size."
    )
    absolute: bool = Field(
        True,
        description="Read the running scale itself, so that spreads revert to what is usual in the training data; "
        "false: forecasts follow any change of unit.",
    )

    @property
    def head(self) -> Head:
        """Return what is said of each step: a skewed Student-t, always."""
        return "skewed_t"

    @property
    def span(self) -> int:
        """Return the span of the running scale that is in force."""
        return self.scale_span or max(2, self.input_size)


Trained = MLPSpec | RecurrentSpec | SegmentSpec | VolatilitySpec
"""What is fitted by gradient descent."""

TrainedSpec = Annotated[Trained, Field(discriminator="kind")]


class EnsembleSpec(_Frozen):
    """The mean of several networks that differ in their seed only."""

    kind: Literal["ensemble"] = "ensemble"
    n_members: int = Field(ge=2, le=100, description="Networks in the ensemble.")
    member: TrainedSpec

    @property
    def input_size(self) -> int:
        return self.member.input_size


NetworkSpec = Annotated[
    NaiveSpec | SeasonalNaiveSpec | DriftSpec | RidgeSpec | Trained | EnsembleSpec,
    Field(discriminator="kind"),
]

BASELINE_KINDS = ("naive", "seasonal_naive", "drift", "ridge")


class StaticSpec(_Frozen):
    """A property of a series, one of a known set of names. Code 0 is any name outside the set."""

    name: ColumnName
    categories: tuple[str, ...] = Field(min_length=1, max_length=1_000_000, description="Ascending.")

    @cached_property
    def codes(self) -> dict[str, int]:
        """Return the code of each category, counted from 1."""
        return {name: code for code, name in enumerate(self.categories, start=1)}


class PriceColumns(_Frozen):
    """The columns of a session's prices, of which range features are made."""

    open: ColumnName = Field("Open", description="Column of the first price.")
    high: ColumnName = Field("High", description="Column of the highest price.")
    low: ColumnName = Field("Low", description="Column of the lowest price.")
    close: ColumnName = Field("Close", description="Column of the last price; usually the target itself.")

    @model_validator(mode="after")
    def _columns_differ(self) -> "PriceColumns":
        names = list(self.by_price.values())
        if len(set(names)) < len(names):
            raise ValueError(f"two prices are one column: {', '.join(names)}")
        return self

    @property
    def by_price(self) -> dict[Price, ColumnName]:
        """Return the column of each price."""
        return {"open": self.open, "high": self.high, "low": self.low, "close": self.close}

    def needed(self, features: Sequence[RangeFeature]) -> dict[Price, ColumnName]:
        """Return the columns these features are made of, by price."""
        wanted = {price for name in features for price in NEEDS[name]}
        return {price: self.by_price[price] for price in PRICES if price in wanted}


class CovariatesSpec(_Frozen):
    """What a forecaster is told besides the values of a series, in the order of its tensors."""

    past: tuple[ColumnName, ...] = Field((), max_length=256, description="Columns known up to the cutoff.")
    future: tuple[ColumnName, ...] = Field((), max_length=256, description="Columns known over the horizon too.")
    static: tuple[StaticSpec, ...] = Field((), max_length=64, description="Names that do not change.")
    calendar: tuple[CalendarFeature, ...] = Field((), description="What the timestamps themselves tell.")
    country: str | None = Field(
        None, pattern=r"^[A-Z]{2}(-[A-Z0-9]{1,3})?$", description="Whose holidays `holiday` marks: DE, US, US-NY."
    )
    prices: PriceColumns | None = Field(
        None, description="What the range features among the past columns are made of; y is the series itself."
    )

    @property
    def ranges(self) -> tuple[RangeFeature, ...]:
        """Return the past columns that are made of prices."""
        return () if self.prices is None else tuple(name for name in RANGE_FEATURES if name in self.past)

    @property
    def price_columns(self) -> tuple[ColumnName, ...]:
        """Return the columns of prices they are made of, beside the series itself."""
        needed = {} if self.prices is None else self.prices.needed(self.ranges)
        return tuple(name for name in needed.values() if name != TARGET_COLUMN)

    @property
    def past_read(self) -> tuple[ColumnName, ...]:
        """Return the past columns to be read where observations are kept: prices, not what is made of them."""
        given = (name for name in self.past if name not in self.ranges)
        return tuple(dict.fromkeys([*given, *self.price_columns]))

    @property
    def past_taken(self) -> tuple[ColumnName, ...]:
        """Return the past columns that may be sent: those of the network, and the prices some are made of."""
        return tuple(dict.fromkeys([*self.past, *self.price_columns]))

    def __bool__(self) -> bool:
        return bool(self.past or self.future or self.static or self.calendar)


class ForecasterSpec(_Frozen):
    """The whole of a forecaster but its weights; `spec.json` of an artefact."""

    format_version: Literal[1, 2, 3] = 3
    name: str = Field(pattern=MODEL_NAME_PATTERN, description="The job, and the registered model.")
    freq: str = Field(max_length=32, description="Pandas alias or exchange calendar.")
    season_length: int = Field(ge=1, le=100_000)
    horizon: int = Field(ge=1, le=10_000, description="Steps forecast.")
    level: tuple[float, ...] = Field((80.0, 95.0), description="Intervals answered when none are asked for.")
    quantiles: tuple[float, ...] = Field(min_length=1, max_length=199, description="Ascending, in (0, 1).")
    transform: Transform = "none"
    covariates: CovariatesSpec = CovariatesSpec()
    network: NetworkSpec

    @field_validator("quantiles")
    @classmethod
    def _quantiles_ascend(cls, quantiles: tuple[float, ...]) -> tuple[float, ...]:
        ascending = all(low < high for low, high in pairwise(quantiles))
        if not ascending or quantiles[0] <= 0 or quantiles[-1] >= 1:
            raise ValueError("quantiles must ascend strictly between 0 and 1")
        return quantiles

    @model_validator(mode="after")
    def _series_are_named_where_they_are_scaled(self) -> "ForecasterSpec":
        network = self.network.member if isinstance(self.network, EnsembleSpec) else self.network
        named = "unique_id" in [static.name for static in self.covariates.static]
        if isinstance(network, SegmentSpec) and network.scale == "series" and not named:
            raise ValueError("scale: series takes unique_id among the static covariates")
        return self

    @property
    def input_size(self) -> int:
        return self.network.input_size

    @property
    def has_cycle(self) -> bool:
        """Return whether the network looks a step of a learned cycle up."""
        network = self.network.member if isinstance(self.network, EnsembleSpec) else self.network
        return isinstance(network, SegmentSpec) and network.cycle is not None

    @property
    def takes_covariates(self) -> bool:
        """Return whether a history alone is not enough: its time, at least, is needed too."""
        return self.has_cycle or bool(self.covariates)


DEFAULT_QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


TAIL_QUANTILES = (0.01, 0.99)
"""What is forecast of returns besides: the loss on the worst day of a hundred, and the gain on the best."""


def quantiles_for(level: tuple[float, ...], transform: Transform = "none") -> tuple[float, ...]:
    """Return the quantiles to train: a grid fine enough for the CRPS, and the bounds of every level.

    Of returns the tails are trained too, by which risk is judged.
    """
    # Rounded as `interval_bounds` rounds, or the bounds of a level would lie just outside the grid made for it.
    bounds = {round(side, 9) for lv in level for side in (0.5 - lv / 200, 0.5 + lv / 200)}
    tails = TAIL_QUANTILES if transform == "log_return" else ()
    return tuple(sorted({*bounds, *DEFAULT_QUANTILES, *tails}))
