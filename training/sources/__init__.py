"""Where training data comes from: the `source:` of a job file, one class a kind."""

from typing import Annotated

from pydantic import Field

from training.sources.base import Source, SourceConfig, SourceContext
from training.sources.files import CsvSource, ParquetSource
from training.sources.ledger import Feed, LedgerSource
from training.sources.samples import SampleSource
from training.sources.simulate import SimulateSource
from training.sources.sql import SqlSource
from training.sources.yahoo import YahooSource

AnySource = Annotated[
    SampleSource | SimulateSource | CsvSource | ParquetSource | YahooSource | SqlSource | LedgerSource,
    Field(discriminator="kind"),
]
"""The `source:` section of a job file."""

__all__ = [
    "AnySource",
    "CsvSource",
    "Feed",
    "LedgerSource",
    "ParquetSource",
    "SampleSource",
    "SimulateSource",
    "Source",
    "SourceConfig",
    "SourceContext",
    "SqlSource",
    "YahooSource",
]
