"""Write the golden artefacts of the current format: `python -m tests.golden.make`.

Run it once for each new format version, never over an old one: old artefacts must load for ever.
"""

from pathlib import Path

from forecasting.artifact import save_artifact
from forecasting.spec import (
    FORMAT_VERSION,
    CovariatesSpec,
    DriftSpec,
    EnsembleSpec,
    MLPSpec,
    NaiveSpec,
    NetworkSpec,
    RecurrentSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
    SegmentSpec,
    StaticSpec,
    VolatilitySpec,
)
from tests.conftest import make_forecaster

LSTM = RecurrentSpec(kind="lstm", input_size=8, hidden_size=4, layers=2, scaling="difference")
SEGMENTS = SegmentSpec(kind="segment_lstm", input_size=8, segment_size=3, hidden_size=4, cycle=7)

SHARES = VolatilitySpec(kind="volatility_lstm", input_size=8, hidden_size=4)

SMALL: list[NetworkSpec] = [
    NaiveSpec(input_size=8),
    SeasonalNaiveSpec(input_size=8, season_length=7),
    DriftSpec(input_size=8),
    RidgeSpec(input_size=8),
    MLPSpec(input_size=8, hidden_size=4, head="point"),
    RecurrentSpec(kind="rnn", input_size=8, hidden_size=4),
    RecurrentSpec(kind="gru", input_size=8, hidden_size=4, scaling="mean", decoding="autoregressive"),
    LSTM,
    SegmentSpec(kind="segment_rnn", input_size=8, segment_size=2, hidden_size=4, scaling="mean", linear="skip"),
    SegmentSpec(kind="segment_gru", input_size=8, segment_size=4, hidden_size=4, linear="none"),
    SEGMENTS,
    VolatilitySpec(kind="volatility_rnn", input_size=8, hidden_size=4, absolute=False),
    VolatilitySpec(kind="volatility_gru", input_size=8, hidden_size=4),
    SHARES,
    EnsembleSpec(n_members=2, member=RecurrentSpec(kind="lstm", input_size=8, hidden_size=4, head="student_t")),
]

TOLD = CovariatesSpec(
    past=("ambient", "garman_klass"),
    future=("setpoint",),
    static=(StaticSpec(name="unique_id", categories=("pump-1", "pump-2")),),
    calendar=("hour", "weekday", "holiday"),
    country="DE",
)


def main() -> None:
    """Write one small artefact of every kind."""
    home = Path(__file__).parent / f"v{FORMAT_VERSION}"
    home.mkdir(exist_ok=False)
    for network in SMALL:
        save_artifact(make_forecaster(network), home / network.kind)
    for network in (MLPSpec(input_size=8, hidden_size=4), LSTM, SEGMENTS, SHARES):
        save_artifact(make_forecaster(network, covariates=TOLD), home / f"{network.kind}-covariates")


if __name__ == "__main__":
    main()
