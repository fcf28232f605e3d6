"""The models the accuracy benchmarks fit: an architecture for a window length, and how it is trained."""

from collections.abc import Callable
from typing import NamedTuple

from forecasting.spec import MLPSpec, NetworkSpec, RecurrentSpec, SegmentSpec, VolatilitySpec
from training.job import TrainingConfig

QUICK_EPOCHS = 4


class Recipe(NamedTuple):
    """An architecture, given a size, and its training settings."""

    network: Callable[[int], NetworkSpec]
    training: TrainingConfig

    def quick(self) -> "Recipe":
        """Return the same with so little training that it only shows whether it runs."""
        little = {"max_epochs": QUICK_EPOCHS, "members": 1}
        return self._replace(training=self.training.model_copy(update=little))


def _segment_size(input_size: int) -> int:
    """Return two days of hours where the window holds a week of them, else a quarter of the window at most."""
    return 48 if input_size >= 240 else min(24, max(1, input_size // 4))


def _segments(kind: str, linear: str) -> Callable[[int], NetworkSpec]:
    def build(input_size: int) -> NetworkSpec:
        return SegmentSpec.model_validate(
            {
                "kind": kind,
                "input_size": input_size,
                "segment_size": _segment_size(input_size),
                "hidden_size": 128,
                "linear": linear,
                "scale": "series",
                "head": "point",
            }
        )

    return build


def _mlp(input_size: int) -> NetworkSpec:
    return MLPSpec(input_size=input_size, hidden_size=256, layers=2, dropout=0.1, head="point")


SLOW_AVERAGE = TrainingConfig(
    loss="absolute",
    units="series",
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=0.0,
    batch_size=256,
    steps_per_epoch=50,
    max_epochs=30,
    patience=6,
    average=0.98,
)

RECOMMENDED = "segment_lstm"

ETT_MODELS: dict[str, Recipe] = {
    "segment_lstm": Recipe(_segments("segment_lstm", "blend"), SLOW_AVERAGE),
    "segment_gru": Recipe(_segments("segment_gru", "blend"), SLOW_AVERAGE),
    "segment_lstm_alone": Recipe(_segments("segment_lstm", "none"), SLOW_AVERAGE),
    "segment_lstm_skip": Recipe(_segments("segment_lstm", "skip"), SLOW_AVERAGE),
    "mlp": Recipe(_mlp, SLOW_AVERAGE),
}
"""Architectures given the look-back."""

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

ACROSS_SERIES = TrainingConfig(
    learning_rate=2e-3,
    batch_size=64,
    steps_per_epoch=50,
    max_epochs=20,
    patience=6,
    average=0.98,
)


def _global_segments(kind: str) -> Callable[[int], NetworkSpec]:
    """Return windows of eight horizons in four segments."""
    return lambda horizon: SegmentSpec.model_validate(
        {"kind": kind, "input_size": 8 * horizon, "segment_size": 2 * horizon, "hidden_size": 256}
    )


def _global_lstm(horizon: int) -> NetworkSpec:
    return RecurrentSpec(kind="lstm", input_size=4 * horizon, hidden_size=64, scaling="difference")


def _global_mlp(horizon: int) -> NetworkSpec:
    return MLPSpec(input_size=8 * horizon, hidden_size=256, dropout=0.1)


M4_RECOMMENDED = "segment_gru"

M4_MODELS: dict[str, Recipe] = {
    "segment_gru": Recipe(_global_segments("segment_gru"), ACROSS_SERIES),
    "segment_lstm": Recipe(_global_segments("segment_lstm"), ACROSS_SERIES),
    "lstm": Recipe(_global_lstm, ACROSS_SERIES),
    "mlp": Recipe(_global_mlp, ACROSS_SERIES),
}
"""Architectures given the horizon."""


VOLATILITY = TrainingConfig(
    learning_rate=2e-3,
    batch_size=32,
    steps_per_epoch=15,
    max_epochs=8,
    patience=4,
    members=4,
)


def _volatility(kind: str) -> Callable[[int], NetworkSpec]:
    return lambda input_size: VolatilitySpec.model_validate({"kind": kind, "input_size": input_size})


STOCKS_RECOMMENDED = "volatility_lstm"

STOCKS: dict[str, Recipe] = {
    kind: Recipe(_volatility(kind), VOLATILITY) for kind in ("volatility_lstm", "volatility_gru", "volatility_rnn")
}
"""Architectures for the densities of returns, given the sessions they see."""
