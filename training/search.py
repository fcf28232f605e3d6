"""What a search may try: the space of a candidate's settings, and the candidate of each trial.

A trial is compared by its score on the validation block. While it trains there is only the validation loss,
whose unit is each forecast's own scale: a loss measured with another window or another scaling says nothing
about this one. `PeerPruner` therefore stops a trial early only by what trials of the same unit showed.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.pruners import BasePruner, MedianPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from forecasting.errors import JobError
from forecasting.spec import MLPSpec, SegmentSpec, VolatilitySpec
from training.job import (
    Candidate,
    Choice,
    Dimension,
    JobConfig,
    SearchConfig,
    SearchRange,
    searched_candidate,
    setting_values,
)

Settings = Mapping[str, Choice]

SAME_UNIT = {"kind", "hidden_size", "layers", "dropout", "decoding", "segment_size", "linear_skip"}
"""Fields of a network that leave the unit of its validation loss as it is; of any other that is not known."""

UNIT_OF_TRAINING = {"loss", "units"}

PEERS_NEEDED = 4
PATIENT_SHARE = 5
"""No trial is stopped in the first fifth of its epochs: a high learning rate starts worse and ends better."""


@dataclass(frozen=True)
class Space:
    """The settings a search may choose, around a candidate as the job has it."""

    job: JobConfig
    candidate: Candidate
    dimensions: Mapping[str, Dimension]

    @cached_property
    def current(self) -> Settings:
        """Return what the job now says of every setting of the space."""
        network, training = self.candidate.network.model_dump(), self.job.training_of(self.candidate).model_dump()
        return {name: {**training, **network}[name] for name in self.dimensions}

    @property
    def holds_current(self) -> bool:
        """Return whether the job's own settings are among those that can be chosen."""
        return all(self._holds(name, self.current[name]) for name in self.dimensions)

    def _holds(self, name: str, value: Choice) -> bool:
        values = self._values(name)
        if not isinstance(self.dimensions[name], SearchRange):
            return value in values
        low, high = values
        return None not in (low, value, high) and low <= value <= high  # type: ignore[operator]

    @property
    def longest_window(self) -> int:
        """Return the largest input_size of any trial."""
        sizes = self._values("input_size") if "input_size" in self.dimensions else (0,)
        return max(self.candidate.network.input_size, *(int(size) for size in sizes if size is not None))

    def _values(self, name: str) -> tuple[Choice, ...]:
        return setting_values(self.candidate, name, self.dimensions[name])

    def suggest(self, trial: optuna.Trial) -> Settings:
        """Return the settings of a trial."""
        if trial.user_attrs.get("current") and not self.holds_current:
            return self.current
        return {name: self._suggest(trial, name) for name in self.dimensions}

    def _suggest(self, trial: optuna.Trial, name: str) -> Choice:
        dimension, values = self.dimensions[name], self._values(name)
        if not isinstance(dimension, SearchRange):
            chosen: Choice = trial.suggest_categorical(name, values)
            return chosen
        low, high = values
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=dimension.log)
        value = trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
        # What is trained is what can be read and written in a job; the present value is left as it is.
        rounded = value if value == self.current[name] else float(f"{value:.3g}")
        return min(max(rounded, dimension.low), dimension.high)

    def apply(self, settings: Settings) -> Candidate:
        """Return the candidate with the settings of a trial.

        Raises:
            JobError: the settings do not go together.
        """
        network = self.candidate.network
        of_network = {name: value for name, value in settings.items() if name in type(network).model_fields}
        of_training = {name: value for name, value in settings.items() if name not in of_network}
        try:
            changed = type(network).model_validate({**network.model_dump(exclude_unset=True), **of_network})
        except ValidationError as error:
            raise JobError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        training = {**self.candidate.training, **of_training}
        return self.candidate.model_copy(update={"network": changed, "training": training})

    def from_scratch(self, candidate: Candidate) -> Candidate:
        """Return a candidate that starts from scratch, whatever the job says.

        A warm start would favour the trials that happen to have the champion's architecture.
        """
        if self.job.training_of(candidate).start == "scratch":
            return candidate
        return candidate.model_copy(update={"training": {**candidate.training, "start": "scratch"}})

    def unit_of(self, candidate: Candidate) -> str:
        """Return what the validation loss of a candidate is measured in: those that are alike compare."""
        fields = candidate.network.model_dump(mode="json", exclude=SAME_UNIT)
        training = self.job.training_of(candidate).model_dump(include=UNIT_OF_TRAINING)
        return json.dumps({**fields, **training}, sort_keys=True)

    def digests(self, data: str) -> dict[str, str]:
        """Return what a score depends on, in short: trials compare only where all of these are the same."""
        settled = ("target", "covariates", "freq", "horizon", "level", "evaluation")
        fixed = {
            "job": self.job.model_dump(mode="json", include=set(settled)),
            "season": self.job.season,
            "metric": self.job.gate.metric,
            "network": self.candidate.network.model_dump(mode="json", exclude=set(self.dimensions)),
            "training": self.job.training_of(self.candidate).model_dump(
                mode="json", exclude={"device", *self.dimensions}
            ),
        }
        dimensions = {
            name: dimension.model_dump() if isinstance(dimension, SearchRange) else list(dimension)
            for name, dimension in self.dimensions.items()
        }
        return {"data": data, "space": _digest(dimensions), "job's other settings": _digest(fixed)}


def _digest(content: Any) -> str:  # noqa: ANN401  (anything JSON can hold)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def study_name(candidate: str, digests: Mapping[str, str]) -> str:
    """Return the name of the study whose trials may be compared with each other."""
    return f"{candidate} {_digest(dict(digests))[:12]}"


def build_space(job: JobConfig, search: SearchConfig, longest: int) -> Space:
    """Return what a search tries: what the job says, or a default by the kind of the candidate.

    Args:
        job: the job.
        search: its search section, or one made of options.
        longest: the largest input_size the default may try.

    Raises:
        JobError: the search does not fit the job.
    """
    try:
        candidate = searched_candidate(search, job.candidates)
    except ValueError as error:
        raise JobError(f"job {job.name!r}: search.{error}") from error
    return Space(job, candidate, search.space or default_space(job, candidate, longest))


def default_space(job: JobConfig, candidate: Candidate, longest: int) -> dict[str, Dimension]:
    """Return what is worth trying for any candidate of its kind; its present settings are in it."""
    network = candidate.network
    now = {**network.model_dump(), **job.training_of(candidate).model_dump()}
    unit = max(job.season, job.horizon, 2)
    space: dict[str, Dimension] = {
        "input_size": _with(now["input_size"], [n * unit for n in (1, 2, 4) if n * unit <= longest]),
        "hidden_size": _with(now["hidden_size"], [32, 64, 128]),
        "dropout": _around(now["dropout"], 0.0, 0.4),
        "learning_rate": _around(now["learning_rate"], 3e-4, 3e-2, log=True),
        "weight_decay": _around(now["weight_decay"], 1e-6, 1e-1, log=True),
    }
    if isinstance(network, SegmentSpec):
        smallest = min(size for size in space["input_size"] if isinstance(size, int))
        space["segment_size"] = _with(now["segment_size"], [n for n in (12, 24, 48) if n <= smallest])
    elif not isinstance(network, VolatilitySpec):
        space["layers"] = _around(now["layers"], 1, 3 if isinstance(network, MLPSpec) else 2)
    return space


def _with(now: int, choices: list[int]) -> tuple[int, ...]:
    return tuple(sorted({now, *choices}))


def _around(now: float, low: float, high: float, *, log: bool = False) -> Dimension:
    if log and now <= 0:
        return (now, low, float(f"{(low * high) ** 0.5:.1g}"), high)
    return SearchRange(low=min(low, now), high=max(high, now), log=log)


def write_candidate(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as a job file has it: one flat mapping."""
    network = candidate.network.model_dump(mode="json", exclude_unset=True)
    flat = {"name": candidate.name, "kind": candidate.network.kind, **network}
    return {**flat, "training": candidate.training} if candidate.training else flat


def candidate_line(flat: Mapping[str, Any]) -> str:
    """Return a candidate as the line to paste under `candidates:`."""
    return "- " + yaml.safe_dump(dict(flat), default_flow_style=True, sort_keys=False, width=100_000).strip()


def job_text_with(text: str, job: JobConfig, candidate: Candidate) -> str:
    """Return the text of a job with one candidate replaced by that of the same name."""
    content = yaml.safe_load(text)
    content["candidates"] = [write_candidate(candidate if c.name == candidate.name else c) for c in job.candidates]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


class PeerPruner(BasePruner):
    """Stop a trial that is worse than the median of its peers: the finished trials of the same unit."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether a trial is to stop after the epoch it last reported."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        peers = optuna.create_study()
        peers.add_trials([t for t in finished if t.user_attrs.get("unit") == trial.user_attrs["unit"]])
        patient = trial.user_attrs["max_epochs"] // PATIENT_SHARE
        return MedianPruner(n_startup_trials=PEERS_NEEDED, n_warmup_steps=patient).prune(peers, trial)


def sampler_for(seed: int, finished: int) -> optuna.samplers.TPESampler:
    """Return what chooses the next trial, given how many are finished.

    Seeded for each trial anew, so that a search that was interrupted goes on with the trial it would have made.
    """
    return optuna.samplers.TPESampler(seed=int(np.random.SeedSequence([seed, finished]).generate_state(1)[0]))


def search_figures(study: Study, names: list[str], metric: str) -> dict[str, Any]:
    """Draw how the search went, and which settings mattered where that can be said."""
    shown = optuna.create_study()
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shown.add_trials([trial for trial in complete if trial.params])
    figures = {"optimization_history": optuna.visualization.plot_optimization_history(study, target_name=metric)}
    # From a handful of trials, or from scores that are all alike, nothing is to be said of importance.
    if len(shown.trials) >= 2 * PEERS_NEEDED and len({trial.value for trial in shown.trials}) > 1:
        with warnings.catch_warnings():
            # Optuna warns where all settings come out alike, which the figure shows.
            warnings.simplefilter("ignore")
            importances = optuna.visualization.plot_param_importances(shown, params=names, target_name=metric)
        figures["param_importances"] = importances
    return figures
