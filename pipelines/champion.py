"""The champion in a comparison: whether it can be asked what the candidates are asked, and who is its refresh."""

import hashlib
import json
from dataclasses import dataclass

from forecasting.errors import ArtifactError, RegistryError, RegistryUnavailableError
from forecasting.forecaster import Forecaster
from forecasting.registry import ModelVersion, champion_or_none, load_version
from pipelines.fitting import unlike
from pipelines.run import Run

TAG_TRAINING = "hindcast.training_digest"
"""Marks a version with its training settings: with the same spec and settings, a later one is its refresh."""


@dataclass(frozen=True)
class Champion:
    """The model in use, as far as it can be compared with."""

    name: str = ""
    forecaster: Forecaster | None = None
    input_size: int = 0
    version: str | None = None
    training: str | None = None
    """The digest of its training settings."""
    why_not: str | None = None
    """Why there is a champion and no comparison."""


def load_champion(run: Run) -> Champion:
    """Fetch the champion, if there is one that answers the same question on this data."""
    version = champion_or_none(run.registry, run.job.name)
    if version is None:
        return Champion()
    try:
        forecaster = load_version(run.registry, version)
    except RegistryUnavailableError:
        raise
    except (ArtifactError, RegistryError) as error:
        return _not_compared(run, version, f"cannot be loaded: {error}")
    spec = forecaster.spec
    asked = run.job.spec_of(spec.network)
    aside = {"format_version", "network", "covariates", "level"}
    if spec.model_dump(exclude=aside) != asked.model_dump(exclude=aside):
        return _not_compared(run, version, "answers another question than this job")
    if spec.input_size > run.split.cutoffs[0] + 1:
        return _not_compared(run, version, f"needs {spec.input_size} steps before the first test cutoff")
    name = f"champion v{version.version}"
    return Champion(name, forecaster, spec.input_size, version.version, version.tags.get(TAG_TRAINING))


def _not_compared(run: Run, version: ModelVersion, why: str) -> Champion:
    reason = f"champion v{version.version} {why}"
    run.reporter.say(f"not compared with: {reason}")
    return Champion(version=version.version, why_not=reason)


def is_refresh(run: Run, name: str, champion: Champion) -> bool:
    """Return whether a candidate is the champion's configuration, to be compared as it trained anew."""
    if champion.forecaster is None or champion.training != training_digest(run, name):
        return False
    return not unlike(champion.forecaster.spec, run.spec_of(name))


def training_digest(run: Run, name: str) -> str:
    """Return the digest of the settings that shape a candidate's weights; where they came about is no matter."""
    aside = ("device", "start", "max_seconds")
    settings = {key: value for key, value in run.training(name).items() if key not in aside}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
