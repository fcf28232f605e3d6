"""Trials in the shadow: what a version forecasts beside the champion decides, cutoff by cutoff.

The alias `shadow` names the one version that forecasts beside the champion. It is either a challenger on trial,
which passed the backtest and lacks evidence, or the champion before this one, beside which a new champion is
watched. `judge_shadow` looks at the scores both have by now; call it whenever there are new ones.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import pandas as pd

from forecasting.calendar import parse_freq, timestamps_after
from forecasting.registry import (
    SHADOW,
    TAG_DECISION,
    TAG_NUMBERS,
    TAG_PREVIOUS,
    TAG_PROMOTED_AT,
    TAG_REASON,
    ModelVersion,
    Registry,
    champion_or_none,
    promote,
    resolve_or_none,
    rollback,
    watch_previous,
)
from ledger.decisions import GATE, TRIAL, DecisionStore, RecordedDecision
from pipelines.promotion import VERDICTS, Action, Decision, Live, judge_trial, judge_watch
from training.job import GateMetric, JobConfig
from training.tracking import Tracker

log = logging.getLogger("hindcast")

TAG_TRACKING_RUN = "hindcast.tracking_run"
"""The training run in MLflow that a version came from."""

LAST_CUTOFF = "last_cutoff"
"""In a decision's numbers: the newest cutoff it has seen."""


class Scores(Protocol):
    """Who knows what forecasts turned out to be worth."""

    def paired_losses(
        self, model: str, one_version: str, other_version: str, metric: GateMetric = "crps"
    ) -> pd.DataFrame:
        """Return the losses of two versions where both forecast: `unique_id`, `cutoff`, `one`, `other`."""


Note = Callable[[ModelVersion, Decision], None]
"""Tells somebody else of a decision about a version: the tracking store."""


def note_nowhere(version: ModelVersion, decision: Decision) -> None:
    """Tell nobody."""
    del version, decision


def note_in(tracking: str, job: JobConfig) -> Note:
    """Return who writes decisions to the training run in MLflow that a version came from."""

    def note(version: ModelVersion, decision: Decision) -> None:
        run_id = version.tags.get(TAG_TRACKING_RUN)
        if run_id:
            Tracker(tracking, job, "").decide(run_id, tags_of(decision))

    return note


@dataclass(frozen=True)
class Court:
    """Whom a trial asks, and where its decision goes."""

    registry: Registry
    decisions: DecisionStore
    scores: Scores
    note: Note = note_nowhere


def judge_shadow(court: Court, job: JobConfig) -> Decision | None:
    """Judge the version in the shadow by the live scores, and carry out what was decided.

    Tags are written first, then the decision is recorded, and the aliases move last: if the ledger or the registry
    does not answer, nothing has moved yet, and the next call, which sees the same scores, does it all again.

    Returns:
        What was decided, be it to go on; None where nobody is in the shadow.
    """
    champion = champion_or_none(court.registry, job.name)
    shadow = resolve_or_none(court.registry, job.name, SHADOW)
    if champion is None or shadow is None:
        return None
    if shadow.version == champion.version:
        _finish(court, job.name)
        return None
    if shadow.version == champion.tags.get(TAG_PREVIOUS):
        return _watch(court, job, champion, shadow)
    return _try(court, job, champion, shadow)


def _finish(court: Court, model: str) -> None:
    """Do what a call that was killed between its two aliases left undone."""
    newest = court.decisions.of_model(model, limit=1)
    if newest and newest[0].action == "rollback":
        court.registry.remove_alias(model, SHADOW)
    else:
        watch_previous(court.registry, model)


def _try(court: Court, job: JobConfig, champion: ModelVersion, shadow: ModelVersion) -> Decision | None:
    opened = court.decisions.last_about(job.name, shadow.version, ["shadow"], by=GATE)
    if opened is None:
        log.warning("%s: version %s is in the shadow, and no gate sent it there", job.name, shadow.version)
        return None

    def judge() -> Decision:
        if opened.against != champion.version:
            gone = f"the champion it was to beat, version {opened.against}, is the champion no more"
            return Decision("keep", gone)
        live = live_losses(court.scores, job, shadow.version, champion.version)
        level, margin = float(opened.numbers["trial_level"]), float(opened.numbers["margin"])
        return live.noted(judge_trial(live.losses, level=level, most=job.gate.trial, margin=margin))

    key = f"{job.name}:trial:{shadow.version}:{champion.version}"
    decision = _decide_once(court, key, shadow, champion.version, opened.kind, judge)
    if decision.action == "promote":
        promote(court.registry, job.name, shadow.version)
        watch_previous(court.registry, job.name)
    elif decision.action == "keep":
        court.registry.remove_alias(job.name, SHADOW)
    return decision


def _watch(court: Court, job: JobConfig, champion: ModelVersion, previous: ModelVersion) -> Decision:
    def judge() -> Decision:
        since = _watched_since(court.decisions, champion)
        live = live_losses(court.scores, job, previous.version, champion.version, since)
        return live.noted(judge_watch(live.losses, level=job.gate.alpha, most=job.gate.watch))

    promoted_at = champion.tags.get(TAG_PROMOTED_AT, "")
    key = f"{job.name}:watch:{champion.version}:{previous.version}:{promoted_at}"
    decision = _decide_once(court, key, champion, previous.version, "watch", judge)
    if decision.action == "rollback":
        rollback(court.registry, job.name, decision.reason)
    elif decision.action == "keep":
        court.registry.remove_alias(job.name, SHADOW)
    return decision


def _watched_since(decisions: DecisionStore, champion: ModelVersion) -> str | None:
    """Return the newest cutoff that had a part in the promotion: what made it champion cannot confirm it too."""
    made = decisions.last_about(champion.model, champion.version, ["promote"])
    return None if made is None else made.numbers.get(LAST_CUTOFF)


def _decide_once(
    court: Court, key: str, version: ModelVersion, against: str, kind: str, judge: Callable[[], Decision]
) -> Decision:
    """Judge, and write what was decided to the version's tags, the ledger, the tracking store and the log.

    What an earlier call recorded and could not carry out is what is decided, whatever the scores say by now.
    """
    recorded = court.decisions.find(key)
    decision = judge() if recorded is None else as_decision(recorded)
    if decision.action == "shadow":
        return decision
    if (decision.action, kind) != ("keep", "watch"):
        court.registry.annotate(version.model, version.version, tags_of(decision))
    court.decisions.record(
        RecordedDecision(
            key=key,
            model=version.model,
            version=version.version,
            against=against,
            action=decision.action,
            by=TRIAL,
            kind=kind,
            reason=decision.reason,
            numbers=decision.numbers,
        )
    )
    court.note(version, decision)
    log.info("%s version %s %s: %s", version.model, version.version, VERDICTS[decision.action], decision.reason)
    return decision


def as_decision(recorded: RecordedDecision) -> Decision:
    """Return a decision on record as it was made."""
    return Decision(cast("Action", recorded.action), recorded.reason, dict(recorded.numbers))


def tags_of(decision: Decision) -> dict[str, str]:
    """Return a decision as tags of the version it is about."""
    return {
        TAG_DECISION: VERDICTS[decision.action],
        TAG_REASON: decision.reason,
        TAG_NUMBERS: json.dumps(decision.numbers, sort_keys=True),
    }


@dataclass(frozen=True)
class LiveLosses:
    """Live losses, and the newest cutoff among them."""

    losses: Live
    last_cutoff: str | None

    def noted(self, decision: Decision) -> Decision:
        """Return the decision with the newest cutoff among its numbers."""
        return Decision(decision.action, decision.reason, {**decision.numbers, LAST_CUTOFF: self.last_cutoff})


def live_losses(
    scores: Scores, job: JobConfig, challenger: str, champion: str, since: str | None = None
) -> LiveLosses:
    """Return both versions' mean loss at each cutoff where both forecast, after `since`."""
    rows = scores.paired_losses(job.name, challenger, champion, job.gate.metric)
    if since is not None:
        rows = rows[rows["cutoff"] > pd.Timestamp(since)]
    by_cutoff = rows.groupby("cutoff", sort=True)[["one", "other"]].mean()
    cutoffs = pd.DatetimeIndex(by_cutoff.index)
    live = Live(
        f"v{challenger}",
        f"v{champion}",
        by_cutoff["one"].to_numpy(dtype=np.float64),
        by_cutoff["other"].to_numpy(dtype=np.float64),
        overlapping(cutoffs, job),
    )
    return LiveLosses(live, None if cutoffs.empty else cutoffs[-1].isoformat())


def overlapping(cutoffs: pd.DatetimeIndex, job: JobConfig) -> int:
    """Return how many cutoffs lie within the horizon of one before them, at most."""
    calendar = parse_freq(job.freq)
    most = 0
    for k, cutoff in enumerate(cutoffs):
        ends = timestamps_after(calendar, cutoff, job.horizon)[-1]
        most = max(most, int(cutoffs.searchsorted(ends)) - k - 1)
    return most
