"""Scoring: every forecast whose truth has arrived, and what that teaches of the intervals to come.

It needs the ledger alone: a forecast's record says on which scale it is scored and how long its season is.

B forecasts, H horizon, Q quantiles, S season, L input_size.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.calendar import parse_freq
from forecasting.conformal import Adjustment, learn, rate_of, unadjusted
from forecasting.errors import CalendarError
from forecasting.forecaster import mean_weights
from forecasting.transforms import Transform, apply_transform
from ledger.adjustments import Key
from ledger.forecasts import IssuedForecast
from ledger.ledger import Ledger
from ledger.scores import AT_ONCE, Actuals, StepScores
from ledger.totals import AGAINST
from training import metrics

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
StampArray = NDArray[np.datetime64]
Progress = Callable[[int, int], None]
"""Told how many forecasts are done, and how many there are."""

WIDEST = 20
"""Horizons the cutoffs of one batch may span: the actuals of all its series are read over all that time."""


@dataclass(frozen=True)
class ScoreReport:
    """What one round of scoring came to."""

    forecasts: int
    """Looked at: new ones, and those of which an actual became known or was revised."""
    scores: int
    """Rows written for them; two a matured step."""
    adjusted: int
    """Times the intervals of a series were adjusted."""
    retired: int = 0


class _Kind(NamedTuple):
    """Forecasts of one kind can be computed with together."""

    quantiles: tuple[float, ...]
    horizon: int
    transform: Transform


def score_matured(ledger: Ledger, *, progress: Progress | None = None, adjust: bool = True) -> ScoreReport:
    """Score every forecast that is due, oldest cutoff first, and learn the adjustments of its series.

    Interrupted, it goes on where it was: a batch is kept whole or not at all, and scoring one again changes
    nothing.
    """
    moments = ledger.scores.seen()
    due = ledger.scores.due()
    written = adjusted = 0
    for start in range(0, len(due), AT_ONCE):
        for issued in _spans(ledger.forecasts.numbered(due[start : start + AT_ONCE].tolist())):
            actuals = ledger.scores.actuals(issued)
            states = _adjust(ledger, issued, actuals) if adjust else {}
            numbers = [one.id for one in issued if one.id is not None]
            written += ledger.scores.keep(numbers, score_batch(ledger, issued, actuals), states)
            adjusted += len(states)
        if progress is not None:
            progress(min(start + AT_ONCE, len(due)), len(due))
    ledger.scores.note(moments)
    return ScoreReport(len(due), written, adjusted)


def score_batch(ledger: Ledger, issued: Sequence[IssuedForecast], actuals: Actuals) -> StepScores:
    """Return the scores of every matured step, against both kinds of actual."""
    parts = []
    for kind, rows in _by_kind(issued).items():
        some = [issued[b] for b in rows]
        naive_BH = seasonal_naive(ledger, some)
        for code, actual_BH in ((AGAINST["latest"], actuals.latest_BH), (AGAINST["first"], actuals.first_BH)):
            parts.append(_score(some, kind, actual_BH[rows, : kind.horizon], naive_BH, code))
    return _join(parts)


def _score(
    issued: Sequence[IssuedForecast], kind: _Kind, actual_BH: FloatArray, naive_BH: FloatArray, against: int
) -> StepScores:
    quantiles_BHQ = apply_transform(np.stack([_finite(one.values_HQ) for one in issued]), kind.transform)
    y_BH = apply_transform(actual_BH, kind.transform)
    error_BH = y_BH - quantiles_BHQ @ mean_weights(kind.quantiles)
    crps_BH = metrics.crps_each(y_BH, quantiles_BHQ, kind.quantiles)
    row_R, step_R = np.nonzero(np.isfinite(error_BH) & np.isfinite(crps_BH))
    cells = (row_R, step_R)
    number_B = np.array([one.id for one in issued], dtype=np.int64)
    return StepScores(
        forecast_R=number_B[row_R],
        step_R=step_R + 1,
        against_R=np.full(len(row_R), against),
        actual_R=actual_BH[cells],
        error_R=error_BH[cells],
        naive_error_R=np.abs(y_BH - apply_transform(naive_BH, kind.transform))[cells],
        crps_R=crps_BH[cells],
        pit_R=metrics.pit(y_BH, quantiles_BHQ, kind.quantiles)[cells],
    )


def _join(parts: Sequence[StepScores]) -> StepScores:
    return StepScores(*(np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])))


def seasonal_naive(ledger: Ledger, issued: Sequence[IssuedForecast]) -> FloatArray:
    """Return what the seasonal naive would have said at the same cutoffs, `(B, H)` in observed units.

    From the inputs of the forecast where they hold a season, else from what the ledger knew when it was issued;
    NaN where neither does. A step whose season is unobserved takes the season before, or the last value.
    """
    horizon = issued[0].horizon
    naive_BH = np.full((len(issued), horizon), np.nan)
    groups: dict[tuple[int, int], list[int]] = {}
    for b, one in enumerate(issued):
        groups.setdefault((one.season_length, len(one.inputs.y_L)), []).append(b)
    for (season, length), rows in groups.items():
        if length >= season:
            naive_BH[rows] = _repeat_season(np.stack([issued[b].inputs.y_L for b in rows]), season, horizon)
        else:
            for b, y_L in _ask_ledger(ledger, issued, rows, season):
                naive_BH[b] = _repeat_season(y_L[None], season, horizon)
    return naive_BH


def _repeat_season(y_BL: FloatArray, season: int, horizon: int) -> FloatArray:
    """Repeat the last value observed at each step of the season."""
    whole = y_BL.shape[1] // season * season
    y_BNS = y_BL[:, y_BL.shape[1] - whole :].reshape(len(y_BL), -1, season)
    latest_BS = _last_known(np.moveaxis(y_BNS, 1, 2))
    latest_BS = np.where(np.isnan(latest_BS), _last_known(y_BL)[:, None], latest_BS)
    return latest_BS[:, np.arange(horizon) % season]


def _last_known(values: FloatArray) -> FloatArray:
    """Return the last value along the last axis that is not NaN; NaN where all are."""
    known = np.isfinite(values)
    place = values.shape[-1] - 1 - known[..., ::-1].argmax(axis=-1)
    return np.take_along_axis(values, place[..., None], axis=-1)[..., 0]


def _ask_ledger(
    ledger: Ledger, issued: Sequence[IssuedForecast], rows: Sequence[int], season: int
) -> Iterator[tuple[int, FloatArray]]:
    """Yield the last season before each cutoff, as it was known when the forecast was issued."""
    asked: dict[tuple[Hashable, ...], list[int]] = {}
    for b in rows:
        one = issued[b]
        asked.setdefault((one.dataset, one.target, one.freq, one.issued_at, one.cutoff), []).append(b)
    for together in asked.values():
        one = issued[together[0]]
        try:
            ds = parse_freq(one.freq).ending(pd.Timestamp(one.cutoff), season)
        except CalendarError:
            continue
        known = ledger.observations.read(
            one.dataset,
            column=one.target,
            unique_ids=[issued[b].unique_id for b in together],
            as_of=one.issued_at,
            start=ds[0].to_datetime64(),
            end=ds[-1].to_datetime64(),
        )
        position_R = ds.get_indexer(pd.DatetimeIndex(known.ds_R))
        for b in together:
            y_S = np.full(season, np.nan)
            if issued[b].unique_id in known.unique_ids:
                own_R = (known.series_R == known.unique_ids.index(issued[b].unique_id)) & (position_R >= 0)
                y_S[position_R[own_R]] = known.value_R[own_R]
            yield b, y_S


def _adjust(ledger: Ledger, issued: Sequence[IssuedForecast], actuals: Actuals) -> dict[Key, Adjustment]:
    """Return the adjustments that what is newly known changes; learned in the order of the cutoffs.

    From the actual as it was known first: what a step taught is not taken back, and not taught again.
    """
    states: dict[Key, Adjustment] = {}
    for (model, version), rows in _by_version(issued).items():
        names = sorted({issued[b].unique_id for b in rows})
        known = ledger.scores.states(model, version, names)
        for together in _rounds(issued, rows):
            learned = _learn(issued, together, actuals.first_BH, known)
            known |= learned
            states |= learned
    return states


def _learn(
    issued: Sequence[IssuedForecast], rows: Sequence[int], first_BH: FloatArray, known: Mapping[Key, Adjustment]
) -> dict[Key, Adjustment]:
    """Learn from one forecast each of some series."""
    kind = _kind_of(issued[rows[0]])
    before = [_state_of(issued[b], known) for b in rows]
    cutoff_B = np.array([issued[b].cutoff for b in rows], dtype="datetime64[us]")
    learned_BH = np.stack([state.cutoff_H[: kind.horizon] for state in before])
    newer_BH = np.isnat(learned_BH) | (cutoff_B[:, None] > learned_BH)
    actual_BH = np.where(newer_BH, first_BH[rows, : kind.horizon], np.nan)
    raw_BHQ = np.stack([_raw(issued[b]) for b in rows])
    stretch_BHQ = learn(
        np.stack([state.stretch_HQ[: kind.horizon] for state in before]),
        raw_BHQ,
        actual_BH,
        kind.quantiles,
        kind.transform,
        rate=rate_of(_ahead(np.stack([issued[b].ds_H for b in rows]), cutoff_B, learned_BH)),
    )
    taught_BH = np.isfinite(actual_BH) & np.isfinite(raw_BHQ).all(axis=2)
    states = {}
    for i, b in enumerate(rows):
        if taught_BH[i].any():
            cutoff_H, stretch_HQ = before[i].cutoff_H.copy(), before[i].stretch_HQ.copy()
            cutoff_H[: kind.horizon][taught_BH[i]] = cutoff_B[i]
            stretch_HQ[: kind.horizon] = stretch_BHQ[i]
            states[_key_of(issued[b])] = replace(before[i], stretch_HQ=stretch_HQ, cutoff_H=cutoff_H)
    return states


def _ahead(ds_BH: StampArray, cutoff_B: StampArray, learned_BH: StampArray) -> FloatArray:
    """Return how many cutoffs each step lies ahead, as they follow one another; one a step where none is known."""
    lead_BH = (ds_BH - cutoff_B[:, None]) / np.timedelta64(1, "us")
    gap_BH = (cutoff_B[:, None] - learned_BH) / np.timedelta64(1, "us")
    steps_H = np.arange(1.0, ds_BH.shape[1] + 1)
    return np.where(gap_BH > 0, lead_BH / np.where(gap_BH > 0, gap_BH, 1.0), steps_H)


def _state_of(one: IssuedForecast, known: Mapping[Key, Adjustment]) -> Adjustment:
    """Return what is known of a series, with room for as many steps as the forecast has."""
    state = known.get(_key_of(one))
    fresh = unadjusted(one.quantiles, one.horizon)
    if state is None or state.quantiles != one.quantiles:
        return fresh
    if state.horizon >= one.horizon:
        return state
    missing = slice(state.horizon, None)
    return Adjustment(
        state.quantiles,
        np.concatenate([state.stretch_HQ, fresh.stretch_HQ[missing]]),
        np.concatenate([state.cutoff_H, fresh.cutoff_H[missing]]),
    )


def _raw(one: IssuedForecast) -> FloatArray:
    values_HQ = _finite(one.values_HQ)
    return values_HQ if one.adjustment_HQ is None else values_HQ - one.adjustment_HQ


def _finite(values_HQ: FloatArray) -> FloatArray:
    """Return quantiles, NaN throughout a step of which one is no number: that step has no score."""
    return np.where(np.isfinite(values_HQ).all(axis=1, keepdims=True), values_HQ, np.nan)


def _key_of(one: IssuedForecast) -> Key:
    return one.model, one.version, one.unique_id


def _kind_of(one: IssuedForecast) -> _Kind:
    return _Kind(one.quantiles, one.horizon, one.transform)


def _by_kind(issued: Sequence[IssuedForecast]) -> dict[_Kind, list[int]]:
    groups: dict[_Kind, list[int]] = {}
    for b, one in enumerate(issued):
        groups.setdefault(_kind_of(one), []).append(b)
    return groups


def _by_version(issued: Sequence[IssuedForecast]) -> dict[tuple[str, str], list[int]]:
    """Group what a network said; an answer the seasonal naive stood in for teaches nothing of it."""
    groups: dict[tuple[str, str], list[int]] = {}
    for b, one in enumerate(issued):
        if one.status != "fallback":
            groups.setdefault((one.model, one.version), []).append(b)
    return groups


def _rounds(issued: Sequence[IssuedForecast], rows: Sequence[int]) -> Iterator[list[int]]:
    """Yield forecasts to learn from together: of one kind, and each series once; those of a series in order."""
    turn: dict[str, int] = {}
    rounds: dict[int, dict[_Kind, list[int]]] = {}
    for b in rows:
        turn[issued[b].unique_id] = turn.get(issued[b].unique_id, -1) + 1
        rounds.setdefault(turn[issued[b].unique_id], {}).setdefault(_kind_of(issued[b]), []).append(b)
    for number in sorted(rounds):
        yield from rounds[number].values()


def _spans(issued: Sequence[IssuedForecast]) -> Iterator[list[IssuedForecast]]:
    """Yield forecasts, sorted by cutoff, in parts that do not span too long a time."""
    part: list[IssuedForecast] = []
    for one in issued:
        if part and one.cutoff - part[0].cutoff > WIDEST * (part[0].ds_H[-1] - part[0].cutoff):
            yield part
            part = []
        part.append(one)
    if part:
        yield part
