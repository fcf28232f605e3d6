"""ForecasterSpec: everything needed to rebuild and feed a forecaster, as frozen data.

The architecture is a union discriminated on `kind`; no class name is ever stored or resolved.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from forecasting.scaling import Scaling
from forecasting.transforms import Transform

FORMAT_VERSION = 1
"""The newest artefact format this version writes and reads."""

MODEL_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"

InputSize = Annotated[int, Field(ge=1, le=100_000)]
HiddenSize = Annotated[int, Field(ge=1, le=8192)]
Layers = Annotated[int, Field(ge=1, le=16)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


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

    @property
    def span(self) -> int:
        """Return the span of the running scale that is in force."""
        return self.scale_span or max(2, self.input_size // 2)


NetworkSpec = Annotated[
    NaiveSpec | SeasonalNaiveSpec | DriftSpec | RidgeSpec | MLPSpec | RecurrentSpec,
    Field(discriminator="kind"),
]

BASELINE_KINDS = ("naive", "seasonal_naive", "drift", "ridge")


class ForecasterSpec(_Frozen):
    """The whole of a forecaster but its weights; `spec.json` of an artefact."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=MODEL_NAME_PATTERN, description="The job, and the registered model.")
    freq: str = Field(max_length=32, description="Pandas alias or exchange calendar.")
    season_length: int = Field(ge=1, le=100_000)
    horizon: int = Field(ge=1, le=10_000, description="Steps forecast.")
    level: tuple[float, ...] = Field((80.0, 95.0), description="Intervals answered when none are asked for.")
    quantiles: tuple[float, ...] = Field(min_length=1, max_length=199, description="Ascending, in (0, 1).")
    transform: Transform = "none"
    network: NetworkSpec

    @field_validator("quantiles")
    @classmethod
    def _quantiles_ascend(cls, quantiles: tuple[float, ...]) -> tuple[float, ...]:
        ascending = all(low < high for low, high in pairwise(quantiles))
        if not ascending or quantiles[0] <= 0 or quantiles[-1] >= 1:
            raise ValueError("quantiles must ascend strictly between 0 and 1")
        return quantiles

    @property
    def input_size(self) -> int:
        return self.network.input_size


DEFAULT_QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def quantiles_for(level: tuple[float, ...]) -> tuple[float, ...]:
    """Return the quantiles to train: a grid fine enough for the CRPS, and the bounds of every level."""
    # Rounded as `interval_bounds` rounds, or the bounds of a level would lie just outside the grid made for it.
    bounds = {round(side, 9) for lv in level for side in (0.5 - lv / 200, 0.5 + lv / 200)}
    return tuple(sorted(bounds | set(DEFAULT_QUANTILES)))
