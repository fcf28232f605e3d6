"""Overrides: what a person decided about a version, whatever the gate said, and who it was.

A decision is recorded first and carried out then. Where the ledger does not answer, nothing is done, unless the
person says that it cannot wait.
"""

import getpass
import logging
import secrets
from contextlib import closing
from dataclasses import dataclass

from forecasting.errors import LedgerUnavailableError
from forecasting.registry import (
    SHADOW,
    TAG_DECISION,
    TAG_REASON,
    ModelVersion,
    champion_or_none,
    open_registry,
    previous_champion,
    promote,
    rollback,
    watch_previous,
)
from ledger.decisions import RecordedDecision
from ledger.ledger import open_ledger
from pipelines.promotion import VERDICTS, Action
from pipelines.settings import PipelineSettings
from pipelines.trial import LAST_CUTOFF

log = logging.getLogger("hindcast")

TAG_BY = "hindcast.decided_by"


@dataclass(frozen=True)
class Override:
    """Why a person decides, and who it is."""

    reason: str
    user: str | None = None
    """Default: the user of this process."""
    unrecorded: bool = False
    """Whether it is done even if the ledger does not answer."""

    @property
    def by(self) -> str:
        """Return the name as it is recorded: no person passes for the gate."""
        return f"person {self.user or _user()}"


def promote_by_hand(
    settings: PipelineSettings, model: str, version: str, override: Override, *, hold: bool
) -> ModelVersion:
    """Record a promotion and carry it out; the champion before it stays in the shadow, unless it is to `hold`."""
    registry = open_registry(settings.registry)
    target, champion = registry.version(model, version), champion_or_none(registry, model)
    changes = champion is None or champion.version != target.version
    _record(settings, target, champion, "promote", override)
    tags = {TAG_DECISION: VERDICTS["promote"], TAG_REASON: override.reason, TAG_BY: override.by}
    promoted = promote(registry, model, target.version, tags)
    if hold:
        registry.remove_alias(model, SHADOW)
    elif changes:
        watch_previous(registry, model)
    return promoted


def roll_back_by_hand(settings: PipelineSettings, model: str, override: Override) -> ModelVersion:
    """Record a rollback and carry it out."""
    registry = open_registry(settings.registry)
    champion, previous = registry.resolve(model), previous_champion(registry, model)
    _record(settings, champion, previous, "rollback", override)
    registry.annotate(model, champion.version, {TAG_BY: override.by})
    return rollback(registry, model, override.reason)


def _record(
    settings: PipelineSettings,
    version: ModelVersion,
    against: ModelVersion | None,
    action: Action,
    override: Override,
) -> None:
    log.info(
        "%s version %s %s by %s: %s",
        version.model,
        version.version,
        VERDICTS[action],
        override.by,
        override.reason,
    )
    try:
        with closing(open_ledger(settings.ledger)) as ledger:
            newest = ledger.forecasts.newest_cutoff(version.model)
            ledger.decisions.record(
                RecordedDecision(
                    key=f"{version.model}:{action}:{version.version}:{secrets.token_hex(8)}",
                    model=version.model,
                    version=version.version,
                    against=None if against is None else against.version,
                    action=action,
                    by=override.by,
                    kind="override",
                    reason=override.reason,
                    numbers={} if newest is None else {LAST_CUTOFF: str(newest)},
                )
            )
    except LedgerUnavailableError as error:
        if not override.unrecorded:
            raise LedgerUnavailableError(
                f"nothing was done, because it cannot be recorded: {error}; --unrecorded does it all the same"
            ) from error
        log.warning("not recorded in the ledger: %s", error)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
