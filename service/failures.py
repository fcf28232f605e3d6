"""Something outside that keeps failing: since when, how often, and what of it may be shown."""

import re
from datetime import UTC, datetime

from forecasting.errors import HindcastError
from service.schemas import Failure

_ADDRESS = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\",;)]+|(?<![\w.])(?:[A-Za-z]:)?[/\\][^\s'\",;:)]+")


def next_failure(
    before: Failure | None, error: Exception, version: str | None = None, *, trusted: bool = False
) -> Failure:
    """Return the failure to show, counting on from the one before when it is of the same version."""
    same = before is not None and before.version == version
    return Failure(
        version=version,
        error=type(error).__name__,
        detail=_public_message(error, trusted=trusted),
        since=before.since if before is not None and same else datetime.now(UTC),
        attempts=before.attempts + 1 if before is not None and same else 1,
    )


def _public_message(error: Exception, *, trusted: bool = False) -> str:
    """Return what may be shown: our own messages without paths, and nothing of anybody else's."""
    if not trusted and not isinstance(error, HindcastError):
        return "unexpected error; the service's log has it"
    return _ADDRESS.sub("<address>", str(error))[:500]
