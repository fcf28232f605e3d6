"""Where training data comes from: the `source:` of a job file, one class a kind."""

from typing import Annotated

from pydantic import Field

from training.sources.base import Source, SourceConfig, SourceContext
from training.sources.samples import SampleSource
from training.sources.simulate import SimulateSource

AnySource = Annotated[SampleSource | SimulateSource, Field(discriminator="kind")]
"""The `source:` section of a job file."""

__all__ = ["AnySource", "SampleSource", "SimulateSource", "Source", "SourceConfig", "SourceContext"]
