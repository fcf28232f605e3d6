"""Decisions: what was decided about the versions of a model, by whom, and why; append-only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, Row

from ledger.database import reading, writing
from ledger.moments import Clock, to_microseconds, to_moment
from ledger.schema import decisions

GATE, TRIAL = "gate", "trial"
"""Who decides besides people: the gate after a backtest, the trial after live forecasts."""


@dataclass(frozen=True)
class RecordedDecision:
    """One decision about a version."""

    key: str
    """Names the decision: recorded once, however often a step is repeated."""
    model: str
    version: str
    against: str | None
    """The version it was compared with, or took the place of."""
    action: str
    """promote, shadow, keep or rollback."""
    by: str
    """`gate`, `trial`, or the name of a person."""
    kind: str
    """What was asked: first, new, refresh (the gate and its trials), watch, or override."""
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    decided_at: datetime | None = None
    """When it was recorded; the ledger fills it in."""


class DecisionStore:
    """Keeps decisions."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def record(self, decision: RecordedDecision) -> RecordedDecision:
        """Keep a decision; where one with its key is kept already, leave that, and return it."""
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(decisions).on_conflict_do_nothing(index_elements=["key"])
        with writing(self._engine) as connection:
            connection.execute(insert, [_to_row(decision, self._clock())])
            query = sa.select(decisions).where(decisions.c.key == decision.key)
            return _from_row(connection.execute(query).one())

    def find(self, key: str) -> RecordedDecision | None:
        """Return the decision of a key."""
        found = self._select(decisions.c.key == key)
        return found[0] if found else None

    def of_model(self, model: str | None = None, *, limit: int | None = None) -> list[RecordedDecision]:
        """Return the decisions about a model, or about every one, newest first."""
        wanted = () if model is None else (decisions.c.model == model,)
        return self._select(*wanted, limit=limit)

    def last_about(
        self, model: str, version: str, actions: Sequence[str], by: str | None = None
    ) -> RecordedDecision | None:
        """Return the newest decision about a version that is one of the actions."""
        wanted = [
            decisions.c.model == model,
            decisions.c.version == version,
            decisions.c.action.in_(list(actions)),
        ]
        if by is not None:
            wanted.append(decisions.c.by == by)
        found = self._select(*wanted, limit=1)
        return found[0] if found else None

    def looks(self, model: str, kind: str) -> list[RecordedDecision]:
        """Return the gate's decisions of a kind about a model, oldest first."""
        wanted = (decisions.c.model == model, decisions.c.by == GATE, decisions.c.kind == kind)
        return self._select(*wanted)[::-1]

    def promoted(self, model: str) -> set[str]:
        """Return the versions that were promoted on evidence: by the gate or after a trial."""
        wanted = (
            decisions.c.model == model,
            decisions.c.action == "promote",
            decisions.c.by.in_([GATE, TRIAL]),
        )
        with reading(self._engine) as connection:
            return set(connection.scalars(sa.select(decisions.c.version).where(*wanted)))

    def _select(self, *conditions: sa.ColumnElement[bool], limit: int | None = None) -> list[RecordedDecision]:
        query = sa.select(decisions).where(*conditions).order_by(decisions.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [_from_row(row) for row in connection.execute(query)]


def _to_row(one: RecordedDecision, moment: datetime) -> dict[str, Any]:
    return {
        "key": one.key,
        "decided_at": to_microseconds(one.decided_at or moment),
        "model": one.model,
        "version": one.version,
        "against": one.against,
        "action": one.action,
        "by": one.by,
        "kind": one.kind,
        "reason": one.reason,
        # NaN and infinity are no JSON: other readers of the table would stop at them.
        "numbers": json.dumps(dict(one.numbers), allow_nan=False, sort_keys=True),
    }


def _from_row(row: Row[Any]) -> RecordedDecision:
    return RecordedDecision(
        key=row.key,
        model=row.model,
        version=row.version,
        against=row.against,
        action=row.action,
        by=row.by,
        kind=row.kind,
        reason=row.reason,
        numbers=json.loads(row.numbers),
        decided_at=to_moment(row.decided_at),
    )
