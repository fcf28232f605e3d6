"""Triggers: what asks for a retraining besides the clock, each with its cause in a sentence.

K cutoffs, N series, T steps.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd

from forecasting.calendar import parse_freq
from forecasting.errors import CalendarError, InputError
from forecasting.forecaster import format_level
from forecasting.panel import Panel, build_panel
from forecasting.registry import TAG_DATASET, ModelVersion, Registry, champion_or_none
from forecasting.transforms import apply_transform
from ledger.ledger import Ledger
from ledger.runs import RunRecord
from pipelines.trial import overlapping
from training.drift import MOST_SERIES, MOST_WINDOWS, measure_drift
from training.job import JobConfig, TriggersConfig
from training.significance import compare_losses

Kind = Literal["skill", "coverage", "drift", "new_data"]


@dataclass(frozen=True)
class Trigger:
    """A reason to retrain."""

    kind: Kind
    cause: str


def check_triggers(job: JobConfig, ledger: Ledger, registry: Registry) -> list[Trigger]:
    """Return every reason to retrain a job; none for a job without `triggers:` or without a champion."""
    config, champion = job.triggers, champion_or_none(registry, job.name)
    if config is None or champion is None:
        return []
    found: list[Trigger | None] = []
    if config.skill or config.coverage:
        frame = ledger.scores.by_cutoff(job.name, champion.version, level=job.level).tail(config.cutoffs)
        if config.skill:
            found.append(check_skill(frame, job, config))
        if config.coverage:
            found.append(check_coverage(frame, job, config))
    if config.drift:
        found.append(check_drift(job, config, ledger, champion))
    if config.new_data is not None:
        found.append(check_new_data(job, config.new_data, ledger, registry, champion))
    return [trigger for trigger in found if trigger is not None]


def request_retraining(job: JobConfig, ledger: Ledger, triggers: list[Trigger]) -> RunRecord | None:
    """Queue one retraining for all that was found; None for nothing."""
    if not triggers:
        return None
    return ledger.runs.request(job.name, triggers[0].kind, "; ".join(trigger.cause for trigger in triggers))


def check_skill(frame: pd.DataFrame, job: JobConfig, config: TriggersConfig) -> Trigger | None:
    """Tell whether the champion's live skill is below the gate's margin, by more than chance.

    Errors of all series at a cutoff are one observation, and cutoffs whose forecasts overlap are correlated; see
    `compare_losses`.

    Args:
        frame: what `ScoreStore.by_cutoff` returns.
        job: the margin and the horizon.
        config: the level of the test, and how many cutoffs it takes.
    """
    known = frame.dropna(subset=["naive", "rival"])
    if len(known) < config.cutoffs / 3:
        return None
    naive_K1, rival_K1 = known[["naive"]].to_numpy(), known[["rival"]].to_numpy()
    lags = overlapping(pd.DatetimeIndex(known["cutoff"]), job)
    compared = compare_losses((1.0 - job.gate.margin) * naive_K1, rival_K1, lags)
    if not compared.p_value <= config.alpha:
        return None
    skill = 1.0 - rival_K1.mean() / naive_K1.mean()
    return Trigger(
        "skill",
        f"live skill {skill:.3f} on {len(known)} cutoffs is below the margin {job.gate.margin:g} "
        f"(p={compared.p_value:.2g})",
    )


def check_coverage(frame: pd.DataFrame, job: JobConfig, config: TriggersConfig) -> Trigger | None:
    """Tell whether the live coverage of a level is not what it promises, by more than chance.

    Each level is tested on both sides; the levels share alpha (Bonferroni).

    Args:
        frame: what `ScoreStore.by_cutoff` returns.
        job: the levels and the horizon.
        config: the level of the test, and how many cutoffs it takes.
    """
    for level in job.level:
        column = f"coverage_{format_level(level)}"
        known = frame.dropna(subset=[column])
        if len(known) < config.cutoffs / 3:
            continue
        lags = overlapping(pd.DatetimeIndex(known["cutoff"]), job)
        covered_K1 = known[[column]].to_numpy()
        promised_K1 = np.full_like(covered_K1, level / 100)
        below = compare_losses(covered_K1, promised_K1, lags).p_value
        above = compare_losses(promised_K1, covered_K1, lags).p_value
        if min(below, above) <= config.alpha / (2 * len(job.level)):
            return Trigger(
                "coverage",
                f"the live coverage of {level:g} % is {100 * covered_K1.mean():.1f} % on {len(known)} cutoffs "
                f"(p={2 * min(below, above):.2g})",
            )
    return None


def check_drift(job: JobConfig, config: TriggersConfig, ledger: Ledger, champion: ModelVersion) -> Trigger | None:
    """Tell whether what came after the champion's training data moves unlike that; see `measure_drift`."""
    window = config.window or max(2 * job.season, 2 * job.horizon, 48)
    panel = _read_recent(job, ledger, champion, window)
    if panel is None:
        return None
    trained = champion.tags.get("hindcast.data_end")
    since = panel.n_steps if trained is None else int((panel.ds > pd.Timestamp(trained)).sum())
    if since < window:
        return None
    gap = 0 if trained is None else since - window
    drift = measure_drift(apply_transform(panel.y_NT, job.target.transform), window, job.season, gap)
    if not drift.p_value <= config.alpha:
        return None
    return Trigger(
        "drift",
        f"the newest {window} steps move unlike what the champion was trained on: energy distance "
        f"{drift.statistic:.3g}, usual is {drift.usual:.3g} (p={drift.p_value:.2g})",
    )


def _read_recent(job: JobConfig, ledger: Ledger, champion: ModelVersion, window: int) -> Panel | None:
    """Return the newest steps of some series, as many as the test can use; None where there is nothing to use."""
    dataset = champion.tags.get(TAG_DATASET, job.name)
    known = [one for one in ledger.observations.series(dataset) if job.target.column in one.columns]
    if not known:
        return None
    chosen = known[:: max(1, len(known) // MOST_SERIES)]
    last = pd.Timestamp(max(one.last for one in chosen))
    trained = pd.Timestamp(champion.tags.get("hindcast.data_end", last))
    try:
        steps = MOST_WINDOWS * window + job.season + 1
        start: np.datetime64 | None = parse_freq(job.freq).ending(min(trained, last), steps)[0].to_datetime64()
    except CalendarError:
        start = None
    names = [one.unique_id for one in chosen]
    readings = ledger.observations.read(dataset, column=job.target.column, unique_ids=names, start=start)
    try:
        return build_panel(readings.to_frame(), job.freq, bad_series="drop")
    except InputError:
        return None


def check_new_data(
    job: JobConfig, least: int, ledger: Ledger, registry: Registry, champion: ModelVersion
) -> Trigger | None:
    """Tell whether enough became known since the last training began."""
    since = _trained_at(job, ledger, registry)
    if since is None:
        return None
    dataset = champion.tags.get(TAG_DATASET, job.name)
    count = ledger.observations.count_since(dataset, since, column=job.target.column)
    if count < least:
        return None
    return Trigger("new_data", f"{count} values became known since {since:%Y-%m-%d %H:%M} UTC; {least} are enough")


def _trained_at(job: JobConfig, ledger: Ledger, registry: Registry) -> datetime | None:
    """Return when the last training began, or when the newest version was published."""
    done = ledger.runs.last_done(job.name)
    if done is not None and done.started_at is not None:
        return done.started_at
    return registry.versions(job.name)[0].created_at
