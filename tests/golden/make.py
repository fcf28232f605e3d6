"""Write the golden artefacts of the current format: `python -m tests.golden.make`.

Run it once for each new format version, never over an old one: old artefacts must load for ever.
"""

from pathlib import Path

from forecasting.artifact import save_artifact
from forecasting.spec import (
    FORMAT_VERSION,
    DriftSpec,
    MLPSpec,
    NaiveSpec,
    NetworkSpec,
    RecurrentSpec,
    RidgeSpec,
    SeasonalNaiveSpec,
)
from tests.conftest import make_forecaster

SMALL: list[NetworkSpec] = [
    NaiveSpec(input_size=8),
    SeasonalNaiveSpec(input_size=8, season_length=7),
    DriftSpec(input_size=8),
    RidgeSpec(input_size=8),
    MLPSpec(input_size=8, hidden_size=4),
    RecurrentSpec(kind="rnn", input_size=8, hidden_size=4),
    RecurrentSpec(kind="gru", input_size=8, hidden_size=4, scaling="mean"),
    RecurrentSpec(kind="lstm", input_size=8, hidden_size=4, layers=2, scaling="difference"),
]


def main() -> None:
    """Write one small artefact of every kind."""
    home = Path(__file__).parent / f"v{FORMAT_VERSION}"
    home.mkdir(exist_ok=False)
    for network in SMALL:
        save_artifact(make_forecaster(network), home / network.kind)


if __name__ == "__main__":
    main()
