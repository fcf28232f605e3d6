"""The models the service answers with, and how they follow the registry.

A slot holds one immutable `LoadedModel`, replaced by one assignment: a request takes the reference once and
is answered by that model throughout. All that can block or fail (the registry, the disk, the checks) happens
in one thread of its own, and a version that fails any check never reaches the slot.

Every version that reached one is kept on disk (`service.last_good`). A service that starts while the registry does
not answer serves that copy until it does; what the registry says, once it says something, goes before any copy.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from forecasting.artifact import load_spec
from forecasting.calendar import Calendar, parse_freq
from forecasting.errors import ArtifactError, HindcastError, InputError, ModelNotFoundError
from forecasting.forecaster import Forecaster, interval_bounds
from forecasting.registry import (
    TAG_DATASET,
    TAG_ONLINE_INTERVALS,
    TAG_TARGET,
    ModelVersion,
    Registry,
    load_fetched,
)
from forecasting.spec import ForecasterSpec, NaiveSpec
from ledger.observations import TARGET
from service.failures import next_failure
from service.last_good import LastGood
from service.schemas import Failure
from service.settings import ServiceSettings

log = logging.getLogger("hindcast.models")

Status = Literal["ok", "stale", "loading", "failed"]
SwapListener = Callable[[str, bool], None]
"""Told the model and whether it could be swapped, after every attempt."""

LONGEST_PAUSE = 300.0
"""Most seconds between two attempts at a version that keeps failing."""

PATIENCE = 10.0
"""Most seconds to wait at shutdown for a look at the registry: a thread cut off inside torch aborts Python."""


@dataclass(frozen=True)
class LoadedModel:
    """One version of one model, checked and ready to answer."""

    name: str
    version: str
    alias: str
    digest: str
    loaded_at: datetime
    forecaster: Forecaster
    calendar: Calendar
    dataset: str
    """The ledger's dataset it reads."""
    target: str
    """The column of that dataset it forecasts."""
    adjusts: bool = True
    """Whether its intervals are issued with what the scores taught of them."""
    missing: str | None = None
    """Why its network is not there, and every answer is the seasonal naive's; None where it is."""
    from_disk: bool = False
    """Whether it is the copy that was kept, and the registry has not confirmed it yet."""

    @property
    def spec(self) -> ForecasterSpec:
        return self.forecaster.spec

    @cached_property  # asked for with every series
    def takes_covariates(self) -> bool:
        return self.spec.takes_covariates

    @cached_property
    def known_names(self) -> Mapping[str, frozenset[str]]:
        """The names of each static that were there in training; there may be very many."""
        return {static.name: frozenset(static.categories) for static in self.spec.covariates.static}


class ModelSlot:
    """The place of one model: what answers now, and what went wrong since."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.current: LoadedModel | None = None
        self.stand_in: LoadedModel | None = None
        """What can be answered for without a network, where the newest version has none that can be loaded."""
        self.failure: Failure | None = None
        self._rejected: tuple[str, str | None] | None = None
        self._retry_at = 0.0

    @property
    def status(self) -> Status:
        if self.failure is not None:
            return "failed" if self.current is None else "stale"
        return "loading" if self.current is None else "ok"

    @property
    def source(self) -> Literal["registry", "disk"] | None:
        """Return where what answers came from."""
        if self.current is None:
            return None
        return "disk" if self.current.from_disk else "registry"

    def holds(self, version: ModelVersion) -> bool:
        """Return whether this very artefact answers already."""
        current = self.current
        return current is not None and (current.version, current.digest) == (version.version, version.digest)

    def must_wait(self, version: ModelVersion) -> bool:
        """Return whether this version failed so recently that it is left alone for now."""
        return self._rejected == (version.version, version.digest) and time.monotonic() < self._retry_at

    def swap(self, model: LoadedModel) -> None:
        """Answer with another model from now on."""
        self.current, self.stand_in = model, None
        self.recover()

    def swap_from_disk(self, copy: LoadedModel, failure: Failure | None) -> None:
        """Answer with the copy that was kept, and say why."""
        self.current, self.failure = copy, self.failure or failure

    def confirm(self) -> None:
        """Note that what answers is what the registry has."""
        if self.current is not None and self.current.from_disk:
            self.current = replace(self.current, from_disk=False)
        self.recover()

    def recover(self) -> None:
        """Forget the last failure: the registry is followed again."""
        self.failure, self._rejected = None, None

    def note(self, error: Exception, version: ModelVersion | None, pause: float) -> None:
        """Remember a failure, and leave a version that failed alone for a time that grows."""
        self.failure = next_failure(self.failure, error, version.version if version else None)
        if version is not None:
            self._rejected = (version.version, version.digest)
            self._retry_at = time.monotonic() + min(pause * 2.0 ** min(self.failure.attempts, 20), LONGEST_PAUSE)


class ModelSlots:
    """Every slot of the service, kept up to date with the registry."""

    def __init__(
        self,
        settings: ServiceSettings,
        open_registry: Callable[[], Registry],
        device: str,
        on_swap: SwapListener,
    ) -> None:
        self.settings = settings
        self.registry_failure: Failure | None = None
        self._open_registry = open_registry
        self._registry: Registry | None = None
        self._device = device
        self._on_swap = on_swap
        self._slots = {name: ModelSlot(name) for name in settings.models or ()}
        self._required = frozenset(settings.models or ())
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._last_good = LastGood(settings.home, settings.registry_uri, settings.alias)
        self._swapping = threading.Lock()
        self._looked = threading.Event()
        self._listed = False
        self._names: list[str] | None = None
        self._absent: set[str] = set()
        self._pass_began: float | None = None

    def start(self) -> None:
        """Begin to follow the registry, in a thread of its own."""
        self._stop, self._looked = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("registry", self._follow), ("last-good", self._restore_late))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Follow the registry no longer; a look that hangs is left behind after a while."""
        self._stop.set()
        self._looked.set()
        for thread in self._threads:
            thread.join(timeout=PATIENCE)

    def all(self) -> list[ModelSlot]:
        """Return every slot, by name."""
        return [slot for _, slot in sorted(self._slots.items())]

    def loaded(self) -> list[LoadedModel]:
        """Return every model that answers, by name."""
        return [slot.current for slot in self.all() if slot.current is not None]

    def get(self, name: str) -> ModelSlot | None:
        """Return the slot of a model."""
        return self._slots.get(name)

    def missing(self) -> list[str]:
        """Return why the service is not ready: nothing when every required model answers.

        Required are the models named in the settings, or else those that were there when any was first
        found: a new model that fails to load is shown, and takes nothing away from the others.
        """
        waiting = [self._slots[name] for name in sorted(self._required) if self._slots[name].current is None]
        if self._required:
            return [f"model {slot.name!r} is not loaded: {_reason(slot)}" for slot in waiting]
        if any(model.from_disk for model in self.loaded()):
            return []  # as long as the registry says nothing, the copies are all there is
        if self.registry_trouble is not None:
            return [f"the registry cannot be followed: {self.registry_trouble.detail}"]
        if not self._listed:
            return ["the registry is being read"]
        return [f"no model in the registry has the alias {self.settings.alias!r} yet"]

    @property
    def registry_trouble(self) -> Failure | None:
        """Return why the registry cannot be followed, a look that hangs included."""
        began, limit = self._pass_began, self.settings.poll_timeout_seconds
        if began is None or time.monotonic() - began < limit:
            return self.registry_failure
        error = TimeoutError(f"the registry has not answered for {limit:g} seconds")
        return next_failure(None, error, None, trusted=True)

    def refresh(self) -> None:
        """Look at the registry once, and follow it as far as it can be followed."""
        self._pass_began = time.monotonic()
        try:
            registry = self._registry = self._registry or self._open_registry()
            names = self._find_names(registry)
        except Exception as error:  # noqa: BLE001  (whatever a registry does, the models here go on answering)
            self._note_registry(error)
            self._restore_all(self.registry_failure)
        else:
            self.registry_failure, self._names = None, names
            for name in names:
                if not self._stop.is_set():
                    self._refresh_slot(registry, name)
            self._required = self._required or frozenset(self._slots)
            self._listed = True
        finally:
            self._pass_began = None
            self._looked.set()

    def _follow(self) -> None:
        while not self._stop.is_set():
            self.refresh()
            self._stop.wait(self.settings.poll_seconds)

    def _find_names(self, registry: Registry) -> list[str]:
        if self.settings.models is not None:
            return list(self.settings.models)
        return sorted({*registry.models(), *self._slots})

    def _note_registry(self, error: Exception) -> None:
        if self.registry_failure is None:
            log.warning("the registry cannot be followed", exc_info=error)
        self.registry_failure = next_failure(self.registry_failure, error, None)

    def _refresh_slot(self, registry: Registry, name: str) -> None:
        version: ModelVersion | None = None
        try:
            version = registry.resolve(name, self.settings.alias)
            self._absent.discard(name)
            slot = self._slots.get(name) or ModelSlot(name)
            if slot.holds(version):
                with self._swapping:
                    slot.confirm()
            elif not slot.must_wait(version):
                self._follow_to(registry, slot, version)
        except ModelNotFoundError as error:
            self._note_absent(name, error)
        except Exception as error:  # noqa: BLE001  (whatever a version does, the one before it goes on answering)
            slot = self._slots.get(name) or ModelSlot(name)
            self._note(slot, error, version)
            self._put(slot)
            self._restore(name, slot.failure)

    def _follow_to(self, registry: Registry, slot: ModelSlot, version: ModelVersion) -> None:
        """Load a version, answer with it, and keep it for the day on which the registry does not answer."""
        with tempfile.TemporaryDirectory(prefix="hindcast-") as private:
            artifact = registry.fetch(version, Path(private))
            try:
                model = self._load(artifact, version)
            except ArtifactError:
                slot.stand_in = _stand_in_for(artifact, version, self.settings.alias)
                raise
            with self._swapping:
                slot.swap(model)
            self._put(slot)
            self._announce(slot, version)
            self._keep(version, artifact)

    def _put(self, slot: ModelSlot) -> None:
        # Slots are replaced as a whole, so that no reader meets a dictionary that changes under it.
        with self._swapping:
            self._slots = {**self._slots, slot.name: slot}

    def _note_absent(self, name: str, error: ModelNotFoundError) -> None:
        """Note that the registry answers and has no such model, and take a copy of it out of its slot.

        A model nobody promoted yet is no failure; one that was served, or asked for by name, is.
        """
        self._absent.add(name)
        slot = self._slots.get(name)
        if slot is None:
            return
        with self._swapping:
            if slot.current is not None and slot.current.from_disk:
                slot.current = None
                if self.settings.models is None:
                    self._slots = {other: kept for other, kept in self._slots.items() if other != name}
                    return
        self._note(slot, error, None)

    def _keep(self, version: ModelVersion, artifact: Path) -> None:
        self._pass_began = None  # a slow disk is not a slow registry
        try:
            self._last_good.keep(version, artifact)
        except OSError as error:
            log.warning("version %s of %s could not be kept on disk: %s", version.version, version.model, error)
        self._pass_began = time.monotonic()

    def _restore_late(self) -> None:
        """Answer from disk when the first look at the registry takes too long."""
        seconds = self.settings.last_good_seconds
        if not self._looked.wait(seconds):
            error = TimeoutError(f"the registry has not answered for {seconds:g} seconds")
            self._restore_all(next_failure(None, error, None, trusted=True))

    def _restore_all(self, failure: Failure | None) -> None:
        names = self._names or self.settings.models or self._last_good.models()
        for name in names:
            if name not in self._absent and not self._stop.is_set():
                self._restore(name, failure)

    def _restore(self, name: str, failure: Failure | None) -> None:
        """Answer with the copy on disk where nothing else answers; one that fails its checks is set aside."""
        slot = self._slots.get(name)
        if slot is not None and slot.current is not None:
            return
        for copy in self._last_good.copies(name):
            try:
                model = replace(self._load(copy.path, copy.version), from_disk=True)
            except (HindcastError, OSError) as error:
                if copy.path.exists():  # else another process has a newer one
                    log.warning("the copy of %s on disk cannot be used", name, exc_info=error)
                    self._last_good.set_aside(copy)
                continue
            self._answer_from_disk(model, failure)
            return

    def _answer_from_disk(self, model: LoadedModel, failure: Failure | None) -> None:
        with self._swapping:
            slot = self._slots.get(model.name) or ModelSlot(model.name)
            if slot.current is not None or model.name in self._absent:
                return
            slot.swap_from_disk(model, failure)
            self._slots = {**self._slots, model.name: slot}
        log.warning("model %s answers with version %s, as it was kept on disk", model.name, model.version)

    def _load(self, artifact: Path, version: ModelVersion) -> LoadedModel:
        forecaster = load_fetched(artifact, version, self._device)
        calendar = _check_spec(forecaster.spec, version.model)
        return _describe(version, forecaster, calendar, self.settings.alias)

    def _announce(self, slot: ModelSlot, version: ModelVersion) -> None:
        log.info("model %s answers with version %s", slot.name, version.version)
        self._on_swap(slot.name, True)

    def _note(self, slot: ModelSlot, error: Exception, version: ModelVersion | None) -> None:
        if slot.failure is None or slot.failure.version != (version.version if version else None):
            wanted = f"version {version.version}" if version else f"the alias {self.settings.alias!r}"
            log.warning("model %s cannot follow %s", slot.name, wanted, exc_info=error)
        slot.note(error, version, self.settings.poll_seconds)
        if version is not None:
            self._on_swap(slot.name, False)


def _describe(version: ModelVersion, forecaster: Forecaster, calendar: Calendar, alias: str) -> LoadedModel:
    return LoadedModel(
        name=version.model,
        version=version.version,
        alias=alias,
        digest=version.digest or "",
        loaded_at=datetime.now(UTC),
        forecaster=forecaster,
        calendar=calendar,
        dataset=version.tags.get(TAG_DATASET, version.model),
        target=version.tags.get(TAG_TARGET, TARGET),
        adjusts=version.tags.get(TAG_ONLINE_INTERVALS) != "false",
    )


def _stand_in_for(artifact: Path, version: ModelVersion, alias: str) -> LoadedModel | None:
    """Return a model that the seasonal naive can answer for: all but its network, where so much can be read."""
    try:
        spec = load_spec(artifact)
        calendar = _check_spec(spec, version.model)
    except HindcastError:
        return None
    # Nobody asks this network; it is there because every model has one, and takes no memory.
    none = spec.model_copy(update={"network": NaiveSpec(input_size=spec.input_size)})
    model = _describe(version, Forecaster.untrained(none), calendar, alias)
    return replace(model, missing=f"version {version.version} cannot be loaded")


def _check_spec(spec: ForecasterSpec, model: str) -> Calendar:
    """Refuse an artefact that loads and yet could not answer, and return its calendar."""
    if spec.name != model:
        raise ArtifactError(f"the artefact is of model {spec.name!r}, and was published as {model!r}")
    try:
        for level in spec.level:
            interval_bounds(spec.quantiles, level)
        return parse_freq(spec.freq)
    except InputError as error:
        raise ArtifactError(f"the artefact cannot answer: {error}") from error


def _reason(slot: ModelSlot) -> str:
    return "not looked at yet" if slot.failure is None else slot.failure.detail
