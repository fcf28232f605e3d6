"""Issuing: forecasts from the ledger alone, by the champion and beside it by the version in the shadow.

Every series is forecast at its newest cutoff. What the service issued in the meantime is forecast again by the
version in the shadow, from the inputs on record or from what the ledger knew when the champion was asked: never
with hindsight. A forecast is issued once, however often this is asked.

B forecasts, L input_size, H horizon, Q quantiles, P past and F future columns.
"""

import hashlib
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import Calendar, parse_freq, timestamps_after
from forecasting.conformal import apply
from forecasting.covariates import Covariates
from forecasting.errors import ArtifactError, CalendarError
from forecasting.forecaster import Forecaster
from forecasting.panel import Columns, Panel
from forecasting.price_panel import build_price_panel
from forecasting.registry import (
    CHAMPION,
    SHADOW,
    TAG_DATASET,
    TAG_ONLINE_INTERVALS,
    TAG_PREVIOUS,
    TAG_PROMOTED_AT,
    TAG_TARGET,
    ModelVersion,
    Registry,
    load_version,
    resolve_or_none,
)
from forecasting.spec import CovariatesSpec
from forecasting.transforms import apply_transform
from ledger.forecasts import ForecastInputs, IssuedForecast, Role, inputs_of, restore_covariates
from ledger.ledger import Ledger
from ledger.observations import TARGET, SeriesSummary

log = logging.getLogger("hindcast")

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Told how many series are done, and how many there are."""

AT_ONCE = 500
"""Series read and forecast together."""


@dataclass
class IssueReport:
    """What was issued."""

    champion: int = 0
    shadow: int = 0
    """By the version in the shadow, at the champion's cutoffs."""
    beside: int = 0
    """By the version in the shadow, beside what the service had issued."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a series was not forecast, by its name."""


@dataclass(frozen=True)
class Issuer:
    """A version that issues forecasts."""

    version: ModelVersion
    forecaster: Forecaster
    role: Role

    @property
    def dataset(self) -> str:
        return self.version.tags.get(TAG_DATASET, self.version.model)

    @property
    def target(self) -> str:
        return self.version.tags.get(TAG_TARGET, TARGET)

    @property
    def calendar(self) -> Calendar:
        return parse_freq(self.forecaster.spec.freq)

    @property
    def adjusts(self) -> bool:
        """Return whether its intervals are adjusted by what the scores taught."""
        return self.version.tags.get(TAG_ONLINE_INTERVALS) != "false"


@dataclass(frozen=True, eq=False)
class _Questions:
    """What a version is asked: histories, and where each came from."""

    unique_ids: tuple[str, ...]
    cutoff_B: pd.DatetimeIndex
    y_BL: FloatArray
    covariates: Covariates | None


def issue(ledger: Ledger, registry: Registry, model: str, *, progress: Progress | None = None) -> IssueReport:
    """Forecast every series of a model at its newest cutoff, and let the version in the shadow follow.

    Raises:
        ModelNotFoundError: the model has no champion.
        ArtifactError: the champion cannot be loaded. A version in the shadow that cannot be is left aside.
        LedgerUnavailableError: the ledger does not answer; what was issued is kept.
    """
    version = registry.resolve(model, CHAMPION)
    champion = Issuer(version, load_version(registry, version), "champion")
    shadow = _load_shadow(registry, champion)
    report = IssueReport()
    now = ledger.clock()
    known = [one for one in ledger.observations.series(champion.dataset) if champion.target in one.columns]
    known.sort(key=lambda one: one.last)
    for start in range(0, len(known), AT_ONCE):
        part = known[start : start + AT_ONCE]
        report.champion += _issue_part(ledger, champion, part, now, report)
        if shadow is not None:
            report.shadow += _issue_part(ledger, shadow, part, now, IssueReport())
        if progress is not None:
            progress(start + len(part), len(known))
    if shadow is not None:
        since = _appointed(ledger, champion.version, shadow.version)
        report.beside = follow(ledger, champion, shadow, since)
    return report


def _load_shadow(registry: Registry, champion: Issuer) -> Issuer | None:
    version = resolve_or_none(registry, champion.version.model, SHADOW)
    if version is None or version.version == champion.version.version:
        return None
    try:
        return Issuer(version, load_version(registry, version), "shadow")
    except ArtifactError as error:
        log.warning("%s: version %s cannot forecast in the shadow: %s", version.model, version.version, error)
        return None


def _appointed(ledger: Ledger, champion: ModelVersion, shadow: ModelVersion) -> datetime:
    """Return the moment from which a version in the shadow is to have a forecast beside each of the champion's."""
    if shadow.version == champion.tags.get(TAG_PREVIOUS):
        decision = ledger.decisions.last_about(champion.model, champion.version, ["promote"])
        told = champion.tags.get(TAG_PROMOTED_AT)
    else:
        decision, told = ledger.decisions.last_about(shadow.model, shadow.version, ["shadow"]), None
    if decision is not None and decision.decided_at is not None:
        return decision.decided_at
    return datetime.fromisoformat(told) if told else shadow.created_at or ledger.clock()


def _issue_part(
    ledger: Ledger, issuer: Issuer, part: Sequence[SeriesSummary], now: datetime, report: IssueReport
) -> int:
    """Forecast some series at their newest cutoffs; return how many forecasts are new."""
    names = [one.unique_id for one in part]
    panel = _read_panel(ledger, issuer, names, now, _start_of(issuer, part))
    if panel is None:
        return 0
    report.left_out |= panel.dropped
    first_N, last_N = panel.spans()
    size = issuer.forecaster.spec.input_size
    lengths = last_N - first_N + 1
    report.left_out |= {
        name: f"series {name!r} has {length} points; this model needs {size} (input_size)"
        for name, length in zip(panel.unique_ids, lengths, strict=True)
        if length < size
    }
    series_B = np.flatnonzero(lengths >= size)
    questions = _ask(issuer, panel, series_B, last_N[series_B])
    issued = list(_answer(ledger, issuer, questions, now, now, issuer.forecaster.spec.horizon))
    return ledger.forecasts.append_once(issued)


def _start_of(issuer: Issuer, part: Sequence[SeriesSummary]) -> np.datetime64 | None:
    """Return a timestamp from which the windows of all these series can be read; None for all there is.

    What is known ahead of a future column is no observation to count back from, so there are steps to spare.
    """
    spec = issuer.forecaster.spec
    try:
        ends = pd.Timestamp(min(one.last for one in part))
        return issuer.calendar.ending(ends, spec.input_size + 4 * spec.horizon)[0].to_datetime64()
    except CalendarError:
        return None


def _read_panel(
    ledger: Ledger, issuer: Issuer, names: Sequence[str], as_of: datetime, start: np.datetime64 | None
) -> Panel | None:
    """Return series as they were known at a moment; None where nothing was."""
    told = issuer.forecaster.spec.covariates
    labels = [static.name for static in told.static if static.name != "unique_id"]
    frame = ledger.observations.frame(
        issuer.dataset,
        (issuer.target, *told.past_read, *told.future),
        static=labels,
        unique_ids=list(names),
        as_of=as_of,
        start=start,
    )
    frame = frame.rename(columns={issuer.target: "y"})
    observed = frame.loc[frame["y"].notna(), "unique_id"].unique()
    frame = frame[frame["unique_id"].isin(observed)]
    if frame.empty:
        return None
    statics = tuple(static.name for static in told.static)
    columns = Columns(told.past, told.future, statics)
    freq = issuer.forecaster.spec.freq
    return build_price_panel(frame, freq, bad_series="drop", columns=columns, prices=told.prices)


def _ask(issuer: Issuer, panel: Panel, series_B: NDArray[np.int64], cutoff_B: NDArray[np.int64]) -> _Questions:
    spec = issuer.forecaster.spec
    steps_BL = cutoff_B[:, None] + np.arange(1 - spec.input_size, 1)
    y_BL = np.where(steps_BL >= 0, panel.y_NT[series_B[:, None], np.maximum(steps_BL, 0)], np.nan)
    covariates = None
    if spec.takes_covariates:
        covariates = panel.covariates_at(series_B, cutoff_B, spec.covariates, spec.input_size, spec.horizon)
    names = tuple(panel.unique_ids[n] for n in series_B)
    return _Questions(names, panel.ds[cutoff_B], y_BL, covariates)


def _answer(
    ledger: Ledger, issuer: Issuer, questions: _Questions, now: datetime, as_of: datetime, horizon: int
) -> Iterator[IssuedForecast]:
    """Yield the forecasts that have not been issued yet; a series without one that is right has none.

    Args:
        ledger: where adjustments are.
        issuer: who is asked.
        questions: what.
        now: the moment they are issued.
        as_of: the moment whose adjustments count.
        horizon: steps wanted, at most those of the version.
    """
    spec = issuer.forecaster.spec
    steps = min(horizon, spec.horizon)
    usable_B = np.any(np.isfinite(apply_transform(questions.y_BL, spec.transform)), axis=1).tolist()
    keys = [
        _identify(issuer, questions, b, inputs.digest(), steps)
        for b, inputs in enumerate(inputs_of(questions.y_BL, questions.covariates))
    ]
    there = ledger.forecasts.kept(keys)
    chosen = [b for b, key in enumerate(keys) if usable_B[b] and key not in there]
    if not chosen:
        return
    asked = _some(questions, chosen)
    raw_BHQ = issuer.forecaster.predict(asked.y_BL, asked.covariates)
    learned = ledger.adjustments.read(
        issuer.version.model, issuer.version.version, unique_ids=sorted(set(asked.unique_ids)), as_of=as_of
    )
    adjustments = [learned.get(name) if issuer.adjusts else None for name in asked.unique_ids]
    added_BHQ = apply(raw_BHQ, spec.quantiles, adjustments, spec.transform)
    batch = uuid.uuid4().hex
    for i, inputs in enumerate(inputs_of(asked.y_BL, asked.covariates)):
        if not np.isfinite(raw_BHQ[i]).all():
            continue
        cutoff = asked.cutoff_B[i]
        yield IssuedForecast(
            forecast_id=keys[chosen[i]],
            position=i,
            batch_id=batch,
            issued_at=now,
            dataset=issuer.dataset,
            model=issuer.version.model,
            version=issuer.version.version,
            role=issuer.role,
            unique_id=asked.unique_ids[i],
            cutoff=cutoff.to_datetime64(),
            ds_H=timestamps_after(issuer.calendar, cutoff, steps).to_numpy(),
            quantiles=spec.quantiles,
            values_HQ=(raw_BHQ[i] + added_BHQ[i])[:steps],
            adjustment_HQ=added_BHQ[i, :steps] if np.any(added_BHQ[i]) else None,
            inputs=inputs,
            target=issuer.target,
            freq=spec.freq,
            season_length=spec.season_length,
            transform=spec.transform,
        )


def _identify(issuer: Issuer, questions: _Questions, b: int, digest: str, steps: int) -> str:
    """Return the name of a forecast that is issued once: by whom, of what, from what."""
    version = issuer.version
    told = (
        version.model,
        version.version,
        questions.unique_ids[b],
        str(questions.cutoff_B[b]),
        digest,
        str(steps),
    )
    return "issue-" + hashlib.sha256("\n".join(told).encode()).hexdigest()[:48]


def _some(questions: _Questions, chosen: Sequence[int]) -> _Questions:
    told = questions.covariates
    if told is not None:
        told = Covariates(
            told.cutoff_B[list(chosen)],
            None if told.past_BLP is None else told.past_BLP[list(chosen)],
            None if told.future_BTF is None else told.future_BTF[list(chosen)],
            {name: [labels[b] for b in chosen] for name, labels in told.static.items()},
        )
    names = tuple(questions.unique_ids[b] for b in chosen)
    return _Questions(names, questions.cutoff_B[list(chosen)], questions.y_BL[list(chosen)], told)


def follow(ledger: Ledger, champion: Issuer, shadow: Issuer, since: datetime) -> int:
    """Let the version in the shadow forecast what the champion was asked since a moment; return how often."""
    made, after = 0, 0
    while issued := ledger.forecasts.unshadowed(
        shadow.version.model, shadow.version.version, since, after=after, limit=AT_ONCE
    ):
        after = max(one.id or 0 for one in issued)
        wanted = list({(one.unique_id, one.cutoff, one.horizon): one for one in reversed(issued)}.values())
        for together in _alike(champion, shadow, wanted):
            made += _follow_part(ledger, champion, shadow, together)
    return made


def _alike(champion: Issuer, shadow: Issuer, issued: Sequence[IssuedForecast]) -> Iterator[list[IssuedForecast]]:
    """Yield forecasts issued at one moment whose inputs come the same way: on record, or from the ledger."""
    groups: dict[tuple[object, ...], list[IssuedForecast]] = {}
    for one in issued:
        on_record = _recorded_suffice(champion, shadow, one)
        where = None if on_record else one.cutoff
        groups.setdefault((one.issued_at, where, one.horizon), []).append(one)
    yield from groups.values()


def _recorded_suffice(champion: Issuer, shadow: Issuer, one: IssuedForecast) -> bool:
    """Return whether the inputs on record hold all that the version in the shadow is to be shown."""
    spec = shadow.forecaster.spec
    if len(one.inputs.y_L) < spec.input_size:
        return False
    if not spec.takes_covariates:
        return True
    known = champion.forecaster.spec
    same = one.version == champion.version.version and _columns(known.covariates) == _columns(spec.covariates)
    return same and one.inputs.has_covariates and known.horizon == spec.horizon


def _columns(told: CovariatesSpec) -> tuple[tuple[str, ...], ...]:
    return told.past, told.future, tuple(static.name for static in told.static)


def _follow_part(ledger: Ledger, champion: Issuer, shadow: Issuer, issued: Sequence[IssuedForecast]) -> int:
    """Forecast beside these forecasts; return how many of the new ones were kept."""
    on_record = _recorded_suffice(champion, shadow, issued[0])
    questions = _restore(shadow, issued) if on_record else _look_back(ledger, shadow, issued)
    if questions is None:
        return 0
    beside = {(one.unique_id, one.cutoff): one.forecast_id for one in issued}
    asked_at, horizon = issued[0].issued_at, issued[0].horizon
    made = _answer(ledger, shadow, questions, ledger.clock(), asked_at, horizon)
    return ledger.forecasts.append_once(
        [replace(one, reason=f"beside {beside[one.unique_id, one.cutoff]}") for one in made]
    )


def _restore(shadow: Issuer, issued: Sequence[IssuedForecast]) -> _Questions:
    """Return the inputs on record, as long as the version in the shadow takes them."""
    spec = shadow.forecaster.spec
    cut = [replace(one, inputs=_last_steps(one, spec.input_size, spec.horizon)) for one in issued]
    covariates = restore_covariates(cut) if spec.takes_covariates else None
    cutoff_B = pd.DatetimeIndex(np.array([one.cutoff for one in issued], dtype="datetime64[us]"))
    y_BL = np.stack([one.inputs.y_L for one in cut])
    return _Questions(tuple(one.unique_id for one in issued), cutoff_B, y_BL, covariates)


def _last_steps(one: IssuedForecast, input_size: int, horizon: int) -> ForecastInputs:
    told = one.inputs
    past_LP = None if told.past_LP is None else told.past_LP[-input_size:]
    future_TF = None if told.future_TF is None else told.future_TF[-(input_size + horizon) :]
    return replace(told, y_L=told.y_L[-input_size:], past_LP=past_LP, future_TF=future_TF)


def _look_back(ledger: Ledger, shadow: Issuer, issued: Sequence[IssuedForecast]) -> _Questions | None:
    """Return what the ledger knew of these series when the champion was asked, all at one moment and cutoff."""
    spec, cutoff = shadow.forecaster.spec, pd.Timestamp(issued[0].cutoff)
    try:
        start = shadow.calendar.ending(cutoff, spec.input_size)[0].to_datetime64()
    except CalendarError:
        return None
    names = sorted({one.unique_id for one in issued})
    panel = _read_panel(ledger, shadow, names, issued[0].issued_at, start)
    place = -1 if panel is None else int(panel.ds.get_indexer(pd.DatetimeIndex([cutoff]))[0])
    if panel is None or place < 0:
        return None
    first_N, _ = panel.spans()
    series_B = np.flatnonzero(place - first_N + 1 >= spec.input_size)
    if not len(series_B):
        return None
    return _ask(shadow, panel, series_B, np.full(len(series_B), place))
