"""Real series that ship inside Python packages: they need no network and no account."""

from typing import Literal

import pandas as pd
from pydantic import Field

from forecasting.errors import SourceError
from training.sources.base import SourceConfig, SourceContext


class SampleSource(SourceConfig):
    """A data set that an installed package carries."""

    kind: Literal["sample"] = Field("sample", description="A series that ships inside a package.")
    dataset: Literal["sp500", "co2"] = Field(
        description="sp500: daily S&P 500, 1999 to 2018 (series ^GSPC; columns Open, High, Low, Close, "
        "Adj Close, Volume). co2: weekly CO2 at Mauna Loa, 1958 to 2001, 59 weeks missing (series mauna-loa; y)."
    )

    def load(self, context: SourceContext) -> pd.DataFrame:
        """Return the data set as a long frame.

        Raises:
            SourceError: the package that carries it is not installed.
        """
        del context
        return _load_sp500() if self.dataset == "sp500" else _load_co2()


def _load_sp500() -> pd.DataFrame:
    try:
        from arch.data import sp500
    except ImportError as error:
        raise _absent("sp500", "arch") from error
    return _to_long(sp500.load(), "^GSPC")


def _load_co2() -> pd.DataFrame:
    try:
        from statsmodels.datasets import co2
    except ImportError as error:
        raise _absent("co2", "statsmodels") from error
    return _to_long(co2.load_pandas().data.rename(columns={"co2": "y"}), "mauna-loa")


def _absent(dataset: str, package: str) -> SourceError:
    return SourceError(
        f"the sample {dataset!r} ships with {package}, which is not installed: pip install hindcast[training]"
    )


def _to_long(table: pd.DataFrame, unique_id: str) -> pd.DataFrame:
    frame = table.rename_axis("ds").reset_index()
    frame.insert(0, "unique_id", unique_id)
    return frame
