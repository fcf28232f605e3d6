"""Scores: how right every issued forecast was, step by step, once what happened is known.

A step is scored against the actual as it is known latest and as it was known first. The former is scored anew
when the actual is revised, and withdrawn with it; the latter never changes. Scores are kept with the forecasts for
as long as those are; then their sums, per model, version, role, series, step and month of the cutoff.

R rows (a step of a forecast each), K cutoffs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection, Engine

from forecasting.conformal import Adjustment
from forecasting.errors import InputError
from forecasting.forecaster import format_level
from ledger import bulk, totals
from ledger.adjustments import Key, read_states, write_states
from ledger.database import reading, writing
from ledger.forecasts import IssuedForecast
from ledger.moments import Clock, stamps_to_microseconds, to_microseconds
from ledger.schema import FALLBACK, adjustments, datasets, forecasts, observations, score_moments, scores, series
from ledger.totals import AGAINST, GROUPS, Against

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Loss = Literal["crps", "mae", "mase", "rmse", "rmsse"]

LEVELS = (80.0, 90.0, 95.0)
AT_ONCE = 1000
"""Forecasts read or written in one transaction."""
LOCK = 7_431_981
SAME = 1e-9
"""Probabilities that differ by less are the same one."""


@dataclass(frozen=True, eq=False)
class StepScores:
    """Scores of some forecasts' steps; errors, CRPS and the naive's error on the modelling scale."""

    forecast_R: IntArray
    """The ledger's number of the forecast."""
    step_R: IntArray
    """Counted from 1."""
    against_R: IntArray
    """A code of AGAINST."""
    actual_R: FloatArray
    """In observed units."""
    error_R: FloatArray
    """The actual less the point forecast."""
    naive_error_R: FloatArray
    """Absolute error of the seasonal naive issued at the same cutoff; NaN where there was none."""
    crps_R: FloatArray
    pit_R: FloatArray
    """The probability at which the actual lies among the issued quantiles; 0 below and 1 above all of them."""


@dataclass(frozen=True, eq=False)
class Actuals:
    """What happened after the cutoffs of some forecasts, a row each and as many steps as the longest has."""

    latest_BH: FloatArray
    first_BH: FloatArray


class ScoreStore:
    """Keeps scores, and tells what they come to."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def due(self) -> IntArray:
        """Return the numbers of the forecasts to score, oldest cutoff first.

        Those nobody looked at yet, and those of which an actual became known or was revised since the last time.
        """
        with writing(self._engine) as connection:
            _begin_moments(connection)
        with reading(self._engine) as connection:
            unseen = connection.execute(
                sa.select(forecasts.c.id, forecasts.c.cutoff).where(forecasts.c.scored == 0)
            ).all()
            parts = [np.array(unseen, dtype=np.int64).reshape(-1, 2)]
            for dataset, since, until in _new_moments(connection):
                parts.extend(_touched(connection, dataset, since, until))
        found = np.unique(np.concatenate(parts), axis=0)
        numbers: IntArray = found[np.lexsort((found[:, 0], found[:, 1])), 0]
        return numbers

    def seen(self) -> "Moments":
        """Return up to which moment each dataset is known now; to be noted when all that is due is scored."""
        with reading(self._engine) as connection:
            rows = connection.execute(sa.select(datasets.c.dataset, datasets.c.last_known_at))
            return {row.dataset: row.last_known_at for row in rows}

    def note(self, moments: "Moments") -> None:
        """Remember that everything known up to these moments is scored."""
        with writing(self._engine) as connection:
            _lock(connection)
            for dataset, known_at in moments.items():
                connection.execute(
                    sa.update(score_moments)
                    .where(score_moments.c.dataset == dataset, score_moments.c.known_at < known_at)
                    .values(known_at=known_at)
                )

    def actuals(self, issued: Sequence[IssuedForecast]) -> Actuals:
        """Return what is known of the steps of forecasts, NaN where nothing is."""
        longest = max(one.horizon for one in issued)
        found = Actuals(np.full((len(issued), longest), np.nan), np.full((len(issued), longest), np.nan))
        kinds: dict[tuple[str, str], list[int]] = {}
        for b, one in enumerate(issued):
            kinds.setdefault((one.dataset, one.target), []).append(b)
        with reading(self._engine) as connection:
            for (dataset, target), rows in kinds.items():
                _fill(connection, dataset, target, issued, rows, found)
        return found

    def states(self, model: str, version: str, unique_ids: Sequence[str]) -> dict[Key, Adjustment]:
        """Return the newest adjustments of these series."""
        with reading(self._engine) as connection:
            return read_states(connection, model, version, unique_ids)

    def keep(
        self, looked_at: Sequence[int], rows: StepScores, adjusted: Mapping[Key, Adjustment] | None = None
    ) -> int:
        """Replace the scores of forecasts, and the adjustments learned from them, in one step.

        Returns how many rows were kept; none of a forecast that has been retired in the meantime.
        """
        made_at = to_microseconds(self._clock())
        with writing(self._engine) as connection:
            _lock(connection)
            known = _existing(connection, looked_at)
            connection.execute(sa.delete(scores).where(scores.c.forecast.in_(known)))
            kept = np.isin(rows.forecast_R, known)
            _insert(connection, rows, kept)
            connection.execute(
                sa.update(forecasts).where(forecasts.c.id.in_(known), forecasts.c.scored == 0).values(scored=1)
            )
            write_states(connection, adjusted or {}, made_at)
        return int(kept.sum())

    def of_forecast(self, number: int, against: Against = "latest") -> pd.DataFrame:
        """Return the scores of one forecast, a row a matured step."""
        columns = [c for c in scores.c if c.name not in ("forecast", "against")]
        query = (
            sa.select(*columns)
            .where(scores.c.forecast == number, scores.c.against == AGAINST[against])
            .order_by(scores.c.step)
        )
        with reading(self._engine) as connection:
            return pd.DataFrame(connection.execute(query).mappings().all(), columns=[c.name for c in columns])

    def summary(
        self,
        model: str | None = None,
        version: str | None = None,
        role: str | None = None,
        unique_id: str | None = None,
        since: datetime | np.datetime64 | None = None,
        against: Against = "latest",
        by: Sequence[str] = ("model", "version", "role"),
        *,
        level: Sequence[float] = LEVELS,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return how right forecasts were, one mapping a group, ordered by the group.

        What the seasonal naive answered in a model's place is no merit of the model: it does not count.

        Args:
            model: default all.
            version: default all.
            role: champion or shadow; default both.
            unique_id: default all series.
            since: the first cutoff that counts; of forecasts retired, the first whole month.
            against: the actual as it is known latest, or as it was known first.
            by: what makes a group, of model, version, role, unique_id and step.
            level: central intervals in percent whose coverage is wanted.
            limit: how many groups at most.

        Returns:
            The group, and `n` (steps scored), `mae`, `crps`, `mase` (the mean absolute error over that of the
            seasonal naive issued at the same cutoffs), `skill` (one less it) and `coverage_80` and so on, as a
            share. None where a figure cannot be told: no seasonal naive, or a level beyond the trained
            quantiles.

        Raises:
            InputError: no such group.
        """
        unknown = [name for name in by if name not in GROUPS]
        if unknown:
            raise InputError(f"scores are grouped by {', '.join(GROUPS)}, not by {unknown[0]!r}")
        wanted = {"model": model, "version": version, "role": role, "unique_id": unique_id}
        chosen = {name: value for name, value in wanted.items() if value is not None}
        first = None if since is None else _since(since)
        with reading(self._engine) as connection:
            groups = _sum_scores(connection, chosen, first, against, by, level)
            totals.add_totals(connection, groups, chosen, first, against, by, level)
        return [groups[key].told(dict(zip(by, key, strict=True)), level) for key in sorted(groups)][:limit]

    def by_cutoff(
        self,
        model: str,
        version: str,
        *,
        role: str | None = None,
        since: datetime | np.datetime64 | None = None,
        against: Against = "latest",
        level: Sequence[float] = LEVELS,
    ) -> pd.DataFrame:
        """Return one row a cutoff, in time order, over all series and steps of the forecasts still held.

        Columns: `cutoff`, `ends` (the last step's timestamp), `n`, `mae`, `naive` (the seasonal naive's mean
        absolute error), `rival` (the mean absolute error where that is known), `crps`, `coverage_80` and so on;
        NaN where no forecast has quantiles that far out.
        """
        conditions = [forecasts.c.model == model, forecasts.c.version == version, forecasts.c.status != FALLBACK]
        if role is not None:
            conditions.append(forecasts.c.role == role)
        if since is not None:
            conditions.append(forecasts.c.cutoff >= _since(since))
        n = sa.func.count()
        rival = sa.case((scores.c.naive_error.is_not(None), sa.func.abs(scores.c.error)))
        columns = {
            "n": n,
            "mae": sa.func.avg(sa.func.abs(scores.c.error)),
            "naive": sa.func.avg(scores.c.naive_error),
            "rival": sa.func.avg(rival),
            "crps": sa.func.avg(scores.c.crps),
            **{f"coverage_{format_level(lv)}": sa.func.avg(_covered(lv)) for lv in level},
        }
        query = (
            sa.select(
                forecasts.c.cutoff,
                sa.func.max(forecasts.c.ends).label("ends"),
                *(c.label(name) for name, c in columns.items()),
            )
            .join(scores, scores.c.forecast == forecasts.c.id)
            .where(*conditions, scores.c.against == AGAINST[against])
            .group_by(forecasts.c.cutoff)
            .order_by(forecasts.c.cutoff)
        )
        with reading(self._engine) as connection:
            frame = pd.DataFrame(connection.execute(query).all(), columns=["cutoff", "ends", *columns])
        frame = frame.astype({name: float for name in columns if name != "n"} | {"n": int})
        for name in ("cutoff", "ends"):
            frame[name] = frame[name].to_numpy(dtype=np.int64).astype("datetime64[us]")
        return frame

    def paired_losses(
        self,
        model: str,
        one_version: str,
        other_version: str,
        metric: Loss = "crps",
        *,
        against: Against = "latest",
        since: datetime | np.datetime64 | None = None,
    ) -> pd.DataFrame:
        """Return what two versions lost at the same series and cutoffs, the mean over the steps.

        A pair needs both forecasts over the same steps, every one of them matured. Where a version forecast a
        series at a cutoff more than once, the longest horizon both share counts, and of it the first issued.

        Args:
            model: the registered model.
            one_version: one version.
            other_version: another.
            metric: crps; mae and mase; rmse and rmsse (both squared). The scaled ones are in units of what the
                seasonal naive lost on the series, over all the pairs.
            against: the actual as it is known latest, or as it was known first.
            since: the first cutoff that counts.

        Returns:
            `unique_id`, `cutoff`, `one`, `other`, by cutoff and series.
        """
        conditions = [] if since is None else [forecasts.c.cutoff >= _since(since)]
        with reading(self._engine) as connection:
            frames = [
                _losses(connection, model, version, metric, against, conditions)
                for version in (one_version, other_version)
            ]
        keys = ["unique_id", "cutoff", "horizon"]
        both = frames[0].merge(frames[1], on=keys, suffixes=("", "_other"))
        both = both.sort_values(["cutoff", "unique_id", "horizon"], kind="stable")
        both = both.drop_duplicates(["unique_id", "cutoff"], keep="last").reset_index(drop=True)
        if metric in ("mase", "rmsse"):
            scale = both.groupby("unique_id")["naive"].transform("mean").where(lambda mean: mean > 0)
            both = both.assign(loss=both["loss"] / scale, loss_other=both["loss_other"] / scale)
            both = both.dropna(subset=["loss", "loss_other"]).reset_index(drop=True)
        cutoff = both["cutoff"].to_numpy(dtype=np.int64).astype("datetime64[us]")
        return pd.DataFrame(
            {"unique_id": both["unique_id"], "cutoff": cutoff, "one": both["loss"], "other": both["loss_other"]}
        )

    def retain(self, days: float) -> int:
        """Retire the forecasts issued more than so many days ago; the sums of their scores stay.

        Returns how many forecasts were retired.
        """
        limit = to_microseconds(self._clock()) - timedelta(days=days) // timedelta(microseconds=1)
        retired = 0
        while True:
            with writing(self._engine) as connection:
                _lock(connection)
                query = (
                    sa.select(forecasts.c.id)
                    .where(forecasts.c.issued_at < limit)
                    .order_by(forecasts.c.model, forecasts.c.unique_id, forecasts.c.cutoff)
                    .limit(AT_ONCE)
                )
                old = list(connection.scalars(query))
                if not old:
                    connection.execute(sa.delete(adjustments).where(_replaced_before(limit)))
                    return retired
                totals.retire(connection, old)
                connection.execute(sa.delete(scores).where(scores.c.forecast.in_(old)))
                connection.execute(sa.delete(forecasts).where(forecasts.c.id.in_(old)))
            retired += len(old)


Moments = Mapping[str, int]


def _replaced_before(limit: int) -> sa.ColumnElement[bool]:
    """Match adjustments nothing was learned for since: their series or version is forecast no more."""
    return adjustments.c.made_at < limit


def _since(since: datetime | np.datetime64) -> int:
    """Return a first cutoff as the tables hold it; a moment with a time zone counts in UTC."""
    if isinstance(since, datetime):
        moment = pd.Timestamp(since)
        since = (moment if moment.tzinfo is None else moment.tz_convert(None)).to_datetime64()
    return int(since.astype("datetime64[us]").astype(np.int64))


def _lock(connection: Connection) -> None:
    """Let one at a time write scores or retire forecasts; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))


def _begin_moments(connection: Connection) -> None:
    """Enter the datasets that were never scored: all that is known of them is new."""
    _lock(connection)
    begun = sa.select(score_moments.c.dataset)
    fresh = sa.select(datasets.c.dataset, sa.literal(0)).where(datasets.c.dataset.not_in(begun))
    connection.execute(sa.insert(score_moments).from_select(["dataset", "known_at"], fresh))


def _new_moments(connection: Connection) -> list[tuple[str, int, int]]:
    """Return the datasets of which something became known since they were scored: after when, up to when."""
    query = (
        sa.select(datasets.c.dataset, score_moments.c.known_at, datasets.c.last_known_at)
        .join(score_moments, score_moments.c.dataset == datasets.c.dataset)
        .where(score_moments.c.known_at < datasets.c.last_known_at)
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]


def _touched(connection: Connection, dataset: str, since: int, until: int) -> Iterator[IntArray]:
    """Yield number and cutoff of the forecasts of a dataset of which an actual became known in between."""
    oldest = connection.execute(
        sa.select(forecasts.c.target, sa.func.min(forecasts.c.cutoff))
        .where(forecasts.c.dataset == dataset)
        .group_by(forecasts.c.target)
    )
    for target, cutoff in oldest.all():
        names = _series_forecast(connection, dataset, target)
        numbers = sorted(names)
        for i in range(0, len(numbers), bulk.FEW):
            part = {number: names[number] for number in numbers[i : i + bulk.FEW]}
            yield _touched_of(connection, dataset, target, part, _changed(connection, part, cutoff, since, until))


def _series_forecast(connection: Connection, dataset: str, target: str) -> dict[int, str]:
    """Return the series of a dataset there are forecasts of: name by number."""
    known = sa.select(forecasts.c.unique_id).where(forecasts.c.dataset == dataset, forecasts.c.target == target)
    query = sa.select(series.c.id, series.c.unique_id).where(
        series.c.dataset == dataset, series.c.column == target, series.c.unique_id.in_(known)
    )
    return {row.id: row.unique_id for row in connection.execute(query)}


def _changed(
    connection: Connection, numbers: Mapping[int, str], after: int, since: int, until: int
) -> tuple[IntArray, IntArray]:
    """Return series number and timestamp of what became known in between, by both."""
    query = (
        sa.select(observations.c.series_id, observations.c.ds, observations.c.known_at, bulk.value_of(connection))
        .where(observations.c.series_id.in_(list(numbers)), observations.c.ds > after)
        .where(observations.c.known_at > since, observations.c.known_at <= until)
        .order_by(observations.c.series_id, observations.c.ds, observations.c.known_at)
    )
    id_R, ds_R, _, _ = bulk.fetch(connection, [query])
    return id_R, ds_R


def _touched_of(
    connection: Connection,
    dataset: str,
    target: str,
    names: Mapping[int, str],
    changed: tuple[IntArray, IntArray],
) -> IntArray:
    id_R, ds_R = changed
    if not len(id_R):
        return np.empty((0, 2), dtype=np.int64)
    moved = {names[int(number)]: ds_R[id_R == number] for number in np.unique(id_R)}
    query = (
        sa.select(forecasts.c.unique_id, forecasts.c.id, forecasts.c.cutoff, forecasts.c.ends)
        .where(forecasts.c.dataset == dataset, forecasts.c.target == target)
        .where(forecasts.c.unique_id.in_(list(moved)))
        .where(forecasts.c.ends >= int(ds_R.min()), forecasts.c.cutoff < int(ds_R.max()))
    )
    frame = pd.DataFrame(connection.execute(query).all(), columns=["unique_id", "id", "cutoff", "ends"])
    parts = [np.empty((0, 2), dtype=np.int64)]
    for unique_id, rows in frame.groupby("unique_id"):
        stamps = moved[str(unique_id)]
        # The first change after the cutoff lies within the horizon, or none does.
        place = np.searchsorted(stamps, rows["cutoff"].to_numpy(), side="right")
        within = np.append(stamps, np.iinfo(np.int64).max)[place] <= rows["ends"].to_numpy()
        parts.append(rows.loc[within, ["id", "cutoff"]].to_numpy(dtype=np.int64))
    return np.concatenate(parts)


def _fill(
    connection: Connection,
    dataset: str,
    target: str,
    issued: Sequence[IssuedForecast],
    rows: Sequence[int],
    into: Actuals,
) -> None:
    """Fill in the actuals of the forecasts of one column, both kinds."""
    names = {issued[b].unique_id for b in rows}
    numbers = _numbers_of(connection, dataset, target, sorted(names))
    stamps = [stamps_to_microseconds(issued[b].ds_H) for b in rows]
    query = (
        sa.select(observations.c.series_id, observations.c.ds, observations.c.known_at, bulk.value_of(connection))
        .where(observations.c.series_id.in_(list(numbers.values())))
        .where(observations.c.ds >= min(s[0] for s in stamps), observations.c.ds <= max(s[-1] for s in stamps))
        .order_by(observations.c.series_id, observations.c.ds, observations.c.known_at)
    )
    id_R, ds_R, _, value_R = bulk.fetch(connection, [query])
    if not len(id_R):
        return
    grid = np.unique(ds_R)
    code_R = id_R * len(grid) + np.searchsorted(grid, ds_R)
    changes = code_R[1:] != code_R[:-1]
    for values_BH, kept_R in (
        (into.first_BH, np.insert(changes, 0, True)),
        (into.latest_BH, np.append(changes, True)),
    ):
        codes, values = code_R[kept_R], value_R[kept_R]
        for b, ds_H in zip(rows, stamps, strict=True):
            number = numbers.get(issued[b].unique_id)
            if number is not None:
                values_BH[b, : len(ds_H)] = _look_up(codes, values, number * len(grid), grid, ds_H)


def _look_up(codes: IntArray, values: FloatArray, base: int, grid: IntArray, ds_H: IntArray) -> FloatArray:
    """Return the values at timestamps, NaN where there is none."""
    step_H = np.minimum(np.searchsorted(grid, ds_H), len(grid) - 1)
    place_H = np.minimum(np.searchsorted(codes, base + step_H), len(codes) - 1)
    there_H = (grid[step_H] == ds_H) & (codes[place_H] == base + step_H)
    return np.where(there_H, values[place_H], np.nan)


def _numbers_of(connection: Connection, dataset: str, target: str, names: Sequence[str]) -> dict[str, int]:
    """Return the numbers of series, by name; those the ledger has never heard of are left out."""
    found: dict[str, int] = {}
    for i in range(0, len(names), bulk.FEW):
        query = sa.select(series.c.unique_id, series.c.id).where(
            series.c.dataset == dataset,
            series.c.column == target,
            series.c.unique_id.in_(names[i : i + bulk.FEW]),
        )
        found |= {row.unique_id: row.id for row in connection.execute(query)}
    return found


def _existing(connection: Connection, numbers: Sequence[int]) -> list[int]:
    query = sa.select(forecasts.c.id).where(forecasts.c.id.in_([int(number) for number in numbers]))
    return list(connection.scalars(query))


def _insert(connection: Connection, rows: StepScores, kept: NDArray[np.bool_]) -> None:
    columns = (
        rows.forecast_R,
        rows.step_R,
        rows.against_R,
        rows.actual_R,
        rows.error_R,
        rows.naive_error_R,
        rows.crps_R,
        rows.pit_R,
    )
    values = [column[kept].tolist() for column in columns]
    values[5] = [None if math.isnan(value) else value for value in values[5]]
    told = list(zip(*values, strict=True))
    if not told:
        return
    if connection.dialect.name == "postgresql":
        driver = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY scores FROM STDIN") as copy:  # type: ignore[union-attr]
            for row in told:
                copy.write_row(row)
        return
    cursor = connection.connection.cursor()
    cursor.executemany("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?)", told)
    cursor.close()


def _inside(level: float) -> sa.ColumnElement[int]:
    low, high = 0.5 - level / 200 - SAME, 0.5 + level / 200 + SAME
    return sa.case(((scores.c.pit >= low) & (scores.c.pit <= high), 1), else_=0)


def _covered(level: float) -> sa.ColumnElement[float]:
    """Return 1 where the actual lies within the level, else 0; NULL where the forecast has no quantiles for it."""
    measured = forecasts.c.tail <= 0.5 - level / 200 + SAME
    return sa.case((measured, _inside(level) * 1.0))


def _sum_scores(
    connection: Connection,
    chosen: Mapping[str, str],
    since: int | None,
    against: Against,
    by: Sequence[str],
    level: Sequence[float],
) -> dict[tuple[Any, ...], totals.Sums]:
    """Return the sums of the scores still held, by group."""
    where = [forecasts.c.status != FALLBACK, *(forecasts.c[name] == value for name, value in chosen.items())]
    if since is not None:
        where.append(forecasts.c.cutoff >= since)
    groups = [scores.c.step if name == "step" else forecasts.c[name] for name in by]
    absolute, known = sa.func.abs(scores.c.error), scores.c.naive_error.is_not(None)
    query = (
        sa.select(
            *groups,
            sa.func.count(),
            sa.func.sum(absolute),
            sa.func.sum(scores.c.crps),
            sa.func.count(scores.c.naive_error),
            sa.func.coalesce(sa.func.sum(scores.c.naive_error), 0.0),
            sa.func.sum(sa.case((known, absolute), else_=0.0)),
            sa.func.max(forecasts.c.tail),
            *(sa.func.sum(_inside(lv)) for lv in level),
        )
        .join(forecasts, forecasts.c.id == scores.c.forecast)
        .where(*where, scores.c.against == AGAINST[against])
        .group_by(*groups)
    )
    found = {}
    for row in connection.execute(query):
        told: tuple[Any, ...] = tuple(row)
        key, sums = told[: len(by)], told[len(by) :]
        # Without a group there is one row, of nothing where nothing is scored.
        if sums[0]:
            found[key] = totals.Sums(*sums[:7])
            found[key].inside = tuple(map(float, sums[7:]))
    return found


def _losses(
    connection: Connection,
    model: str,
    version: str,
    metric: Loss,
    against: Against,
    conditions: Sequence[sa.ColumnElement[bool]],
) -> pd.DataFrame:
    """Return the forecasts of a version that matured whole; of a series, cutoff and horizon the first issued."""
    squared = metric in ("rmse", "rmsse")
    absolute = sa.func.abs(scores.c.error)
    loss = scores.c.crps if metric == "crps" else absolute * absolute if squared else absolute
    naive = scores.c.naive_error * scores.c.naive_error if squared else scores.c.naive_error
    query = (
        sa.select(
            forecasts.c.unique_id,
            forecasts.c.cutoff,
            forecasts.c.horizon,
            sa.func.avg(loss).label("loss"),
            sa.func.avg(naive).label("naive"),
        )
        .join(scores, scores.c.forecast == forecasts.c.id)
        .where(forecasts.c.model == model, forecasts.c.version == version, *conditions)
        .where(forecasts.c.status != FALLBACK)
        .where(scores.c.against == AGAINST[against])
        .group_by(forecasts.c.id)
        .having(sa.func.count() == forecasts.c.horizon)
        .order_by(forecasts.c.issued_at, forecasts.c.id)
    )
    names = ["unique_id", "cutoff", "horizon", "loss", "naive"]
    frame = pd.DataFrame(connection.execute(query).all(), columns=names)
    frame = frame.astype(
        {"unique_id": "str", "cutoff": "int64", "horizon": "int64", "loss": float, "naive": float}
    )
    return frame.drop_duplicates(["unique_id", "cutoff", "horizon"], keep="first")
