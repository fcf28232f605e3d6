"""Run: one training of one job; what to do, where to work, whom to tell."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forecasting.panel import Panel, load_panel
from forecasting.registry import Registry, open_registry
from forecasting.spec import BASELINE_KINDS, CovariatesSpec, ForecasterSpec, NetworkSpec, StaticSpec
from ledger.ledger import Ledger, open_ledger
from ledger.moments import Clock, utc_now
from pipelines.report import LogReporter, Reporter
from pipelines.settings import PipelineSettings
from training.baselines import baseline_specs
from training.fit import pick_device
from training.job import Candidate, JobConfig, load_job, parse_job
from training.tracking import Tracker
from training.walk_forward import plan_folds
from training.windows import PanelTensors, Split

FOLDS = "folds"
"""Where in a run's folder the earlier folds have theirs."""


@dataclass(frozen=True)
class Run:
    """One training of one job: what to do, where to work, whom to tell."""

    job_text: str
    base_dir: Path
    key: str
    settings: PipelineSettings
    reporter: Reporter = field(default_factory=LogReporter)
    as_of: datetime | None = None
    """The run learns what the ledger knew at this moment. Default: when it is first read, and so ever after."""
    clock: Clock = utc_now
    """Tells the time of what is recorded."""
    fold: int | None = None
    """The earlier fold of a walk-forward it works in. Default: the last one, whose model is published."""

    @cached_property
    def job(self) -> JobConfig:
        return parse_job(self.job_text)

    @cached_property
    def folder(self) -> Path:
        folder = self.settings.home / "runs" / self.key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def registry(self) -> Registry:
        return open_registry(self.settings.registry, create=True)

    @cached_property
    def ledger(self) -> Ledger:
        return open_ledger(self.settings.ledger, self.clock)

    @cached_property
    def tracker(self) -> Tracker:
        return Tracker(self.settings.tracking, self.job, self.job_text)

    @cached_property
    def panel(self) -> Panel:
        return load_panel(self.folder / "panel.npz")

    @cached_property
    def networks(self) -> dict[str, NetworkSpec]:
        """Return every forecaster of the comparison by name, baselines first."""
        return {**baseline_specs(self.job), **{c.name: self.job.network_of(c) for c in self.job.candidates}}

    @cached_property
    def covariates(self) -> CovariatesSpec:
        """Return what the networks are told besides the values; names are those of the training data."""
        wanted, known = self.job.covariates, self.panel.before(self.split.test)
        observed_N = np.asarray(np.isfinite(known.y_NT).any(axis=1))
        return CovariatesSpec(
            past=wanted.past_told,
            future=wanted.future,
            static=tuple(
                StaticSpec(name=name, categories=_categories(known.static[name], observed_N))
                for name in wanted.static
            ),
            calendar=wanted.calendar,
            country=wanted.country,
            prices=self.job.prices_told,
        )

    def spec_of(self, name: str) -> ForecasterSpec:
        """Return the whole spec of a forecaster of the comparison; baselines know the history only."""
        network = self.networks[name]
        told = None if network.kind in BASELINE_KINDS else self.covariates
        return self.job.spec_of(network, told)

    @cached_property
    def tensors(self) -> PanelTensors:
        """Return what may be learnt from and calibrated on, on the device: nothing of the test block."""
        known = self.panel.before(self.split.test)
        device = pick_device(self.job.training.device)
        return PanelTensors(known, self.job.target.transform, device, self.covariates)

    @cached_property
    def folds(self) -> tuple[Split, ...]:
        """Return every fold of the evaluation, in the order of time; one, unless the job is refitted in it."""
        return plan_folds(self.panel, self.job)

    @cached_property
    def split(self) -> Split:
        return self.folds[-1 if self.fold is None else self.fold]

    @property
    def by_fold(self) -> "tuple[Run, ...]":
        """Return the run at work in each of its folds; the last is the run itself."""
        return tuple(self.in_fold(fold) for fold in range(len(self.folds)))

    def in_fold(self, fold: int) -> "Run":
        """Return the run at work in a fold, counted from 0; the last is the run itself."""
        if fold == len(self.folds) - 1:
            return self
        part = replace(self, fold=fold)
        vars(part).update(panel=self.panel, folds=self.folds)
        return part

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """Return the test cutoffs of all folds."""
        return tuple(cutoff for split in self.folds for cutoff in split.cutoffs)

    def title(self, name: str) -> str:
        """Return what a forecaster is called while it is at work: with its fold, where there are several."""
        count = len(self.folds)
        return name if count == 1 else f"{name}, fold {count if self.fold is None else self.fold + 1} of {count}"

    @property
    def history_needed(self) -> int:
        """Return the steps of history every forecaster of the comparison can be asked with."""
        return max(network.input_size for network in self.networks.values())

    def training(self, name: str) -> dict[str, Any]:
        """Return the training settings of a candidate as plain data; a baseline has none."""
        candidate = self.candidate(name)
        return {} if candidate is None else self.job.training_of(candidate).model_dump()

    def candidate(self, name: str) -> Candidate | None:
        """Return a candidate by name, None for a baseline."""
        return next((c for c in self.job.candidates if c.name == name), None)

    @property
    def workshop(self) -> Path:
        """Return where lies what is made in its fold: for the last one the run's own folder."""
        return self.folder if self.fold is None else self.folder / FOLDS / str(self.fold + 1)

    def artifact(self, name: str) -> Path:
        """Return where a forecaster's artefact lies in the run's folder."""
        return self.workshop / "artifacts" / name

    @property
    def elsewhere(self) -> "Run":
        """Return the run as it goes to another process: small, and with no task to hand on."""
        return replace(self, settings=self.settings.alone, reporter=LogReporter(), clock=utc_now)

    def told_to(self, reporter: Reporter) -> "Run":
        """Return the run with somebody else listening."""
        return self if reporter is self.reporter else replace(self, reporter=reporter)

    def discard(self) -> None:
        """Delete the run's folder, and close the ledger where it was opened."""
        shutil.rmtree(self.folder, ignore_errors=True)
        opened: Ledger | None = vars(self).pop("ledger", None)
        if opened is not None:
            opened.close()


def _categories(names: Sequence[str], observed_N: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the distinct names of the series that have a value, ascending; an empty name is unknown."""
    found = sorted({name for name, observed in zip(names, observed_N, strict=True) if observed and name})
    return tuple(found) or ("",)


def use_threads(settings: PipelineSettings) -> None:
    """Let torch compute with as many threads as the settings say, from now on in this process."""
    if settings.training_threads:
        torch.set_num_threads(settings.training_threads)


def new_run(job_file: Path, settings: PipelineSettings, reporter: Reporter, key: str | None = None) -> Run:
    """Start a run of a job file, under a key of its own where none is given.

    Raises:
        JobError: the job file is not valid.
    """
    job = load_job(job_file)
    use_threads(settings)
    key = key or f"{job.name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    return Run(job_file.read_text(encoding="utf-8"), job_file.parent.absolute(), key, settings, reporter)
