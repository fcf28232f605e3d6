"""Pull: new rows of another database into the ledger, from the watermark on."""

import hashlib
from collections.abc import Callable
from contextlib import closing
from datetime import datetime

import pandas as pd

from ledger.ingested import IngestedStore
from ledger.ledger import Ledger
from ledger.observations import Appended
from ledger.rules import Checked
from training.sources.sql import Mark, SqlSource, cap_mark, mark_from_text, mark_to_text

Check = Callable[[pd.DataFrame], Checked]
Take = Callable[[Checked, Appended], None]


def pull(ledger: Ledger, source: SqlSource, dataset: str, check: Check, take: Take, static: list[str]) -> None:
    """Append what was written since the last pull; each lot and its watermark in one transaction.

    Stopped in between, the next pull goes on after the last lot. Rows that come again change nothing.

    Args:
        ledger: where the rows go.
        source: has a watermark.
        dataset: the name they are kept under.
        check: turns rows as they come into rows that can be kept.
        take: is told of each lot.
        static: columns of names.

    Raises:
        SourceError: the database did not answer.
        LedgerUnavailableError: the ledger did not; what was appended until then stays.
    """
    name = name_of(source)
    mark = read_mark(ledger.ingested, source, dataset)
    with closing(source.read_from(mark, row_by_row=True)) as lots:
        for rows, reached in lots:
            mark = _advance(mark, reached, ledger.clock())
            checked = check(rows)
            text = mark_to_text(mark)
            take(checked, ledger.ingested.append_until(dataset, checked.rows, name, text, static=static))


def _advance(mark: Mark | None, reached: Mark | None, now: datetime) -> Mark:
    """Return how far a source was read, which never goes back."""
    known = [] if mark is None else [mark]
    return max([*known, *([] if reached is None else [cap_mark(reached, now)])])


def read_mark(store: IngestedStore, source: SqlSource, dataset: str) -> Mark | None:
    """Return how far a source was read into a dataset."""
    text = store.watermark(dataset, name_of(source))
    return None if text is None else mark_from_text(text)


def name_of(source: SqlSource) -> str:
    """Return the name a source's watermark is kept under: another table, query or column begins anew."""
    what = "\0".join([source.url_env, source.table or "", source.query or "", source.watermark or ""])
    return hashlib.sha256(what.encode()).hexdigest()
