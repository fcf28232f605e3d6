"""What the commands do about registered models: models, promote, rollback, trial, decisions."""

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from forecasting.registry import (
    TAG_REASON,
    ModelVersion,
    open_registry,
)
from ledger.ledger import open_ledger
from pipelines.console import out, print_table
from pipelines.override import Override, promote_by_hand, roll_back_by_hand
from pipelines.settings import PipelineSettings
from pipelines.trial import Court, judge_shadow, note_in
from training.job import load_job


def list_models(settings: PipelineSettings) -> None:
    """Print every version of every model."""
    registry = open_registry(settings.registry, create=True)
    rows = [_describe(version) for name in registry.models() for version in registry.versions(name)]
    if not rows:
        out.print("no models yet; `hindcast train JOB` makes one", markup=False)
        return
    print_table("registered models", ["model", "version", "aliases", "created", "decision"], rows)


def _describe(version: ModelVersion) -> list[str]:
    created = f"{version.created_at:%Y-%m-%d %H:%M}" if version.created_at else ""
    reason = version.tags.get(TAG_REASON, "")
    return [version.model, version.version, ", ".join(version.aliases), created, reason]


def promote_model(settings: PipelineSettings, model: str, version: str, override: Override, *, hold: bool) -> None:
    """Make a version the champion, and record who did it and why."""
    champion = promote_by_hand(settings, model, version, override, hold=hold)
    out.print(f"{model} version {champion.version} is the champion", markup=False)


def roll_back(settings: PipelineSettings, model: str, override: Override) -> None:
    """Return to the champion before this one, and record who did it and why."""
    champion = roll_back_by_hand(settings, model, override)
    out.print(f"{model} version {champion.version} is the champion again", markup=False)


def judge_job(settings: PipelineSettings, job: Path) -> None:
    """Judge the version in a job's shadow, and print what came of it."""
    config = load_job(job)
    with closing(open_ledger(settings.ledger)) as ledger:
        note = note_in(settings.tracking, config)
        court = Court(open_registry(settings.registry), ledger.decisions, ledger.scores, note)
        decision = judge_shadow(court, config)
    told = "nobody is in the shadow" if decision is None else f"{decision.action}: {decision.reason}"
    out.print(f"{config.name}: {told}", markup=False)


def list_decisions(settings: PipelineSettings, model: str | None, limit: int, *, as_json: bool) -> None:
    """Print the newest decisions, newest first."""
    with closing(open_ledger(settings.ledger)) as ledger:
        found = ledger.decisions.of_model(model, limit=limit)
    if as_json:
        for one in found:
            out.print(json.dumps(asdict(one), default=str), markup=False)
        return
    if not found:
        out.print("no decisions yet; `hindcast retrain JOB` makes one", markup=False)
        return
    rows = [
        [f"{d.decided_at:%Y-%m-%d %H:%M}", d.model, d.version, d.against or "", d.action, d.by, d.reason]
        for d in found
    ]
    print_table("decisions", ["when (UTC)", "model", "version", "against", "action", "by", "reason"], rows)
