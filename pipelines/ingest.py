"""Ingest: from a job's source into the ledger; bad rows are left out and told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from forecasting.calendar import parse_freq
from forecasting.errors import InputError, JobError
from ledger.ledger import Ledger
from ledger.observations import Appended
from ledger.rules import MOST_REPORTED, Checked, Refusal, check_rows
from pipelines.load import name_columns, require_columns, universe_of, value_columns
from pipelines.pull import pull
from pipelines.report import Reporter
from training.job import JobConfig
from training.sources import Feed
from training.sources.base import SourceContext
from training.sources.ledger import LedgerSource
from training.sources.sql import SqlSource
from training.sources.wall_clock import split_unread


@dataclass
class Ingested:
    """What became of the rows that were offered to a dataset."""

    dataset: str
    rows: int = 0
    new: int = 0
    revised: int = 0
    unchanged: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    """The first of them; their rows are counted from the first row of all."""

    def take(self, checked: Checked, appended: Appended) -> None:
        """Count rows that were taken in."""
        for refusal in checked.refusals[: MOST_REPORTED - len(self.refusals)]:
            row = self.rows + refusal.row
            self.refusals.append(Refusal(row, refusal.unique_id, refusal.column, refusal.reason))
        self.rows += len(checked.good_R)
        self.refused += checked.refused
        self.new += appended.new
        self.revised += appended.revised
        self.unchanged += appended.unchanged

    def describe(self) -> str:
        """Say it in one line."""
        values = f"{self.new:,} values new, {self.revised:,} revised, {self.unchanged:,} unchanged"
        return f"{self.dataset}: {self.rows:,} rows; {values}; {self.refused:,} rows refused"


def ingest_job(job: JobConfig, base_dir: Path, cache_dir: Path, ledger: Ledger, reporter: Reporter) -> Ingested:
    """Load a job's source, and append to the ledger what is not known yet.

    Columns keep the names they have in the source, so that a job that reads the ledger needs no other target. What
    is of no member of the job's universe is left aside.

    Raises:
        JobError: the job reads the ledger, and names nothing that feeds it.
        SourceError: the source did not deliver, or lacks a column of the job.
        InputError: no row at all could be kept.
        LedgerUnavailableError: the ledger's database does not answer.
    """
    source, dataset = feed_of(job)
    static = name_columns(job)
    columns = [*value_columns(job), *static]
    dated = parse_freq(job.freq).dated
    universe = universe_of(job, base_dir)

    def check(rows: pd.DataFrame) -> Checked:
        require_columns(job, rows, columns)
        ds, unread = split_unread(rows["ds"])
        checked = check_rows(rows[["unique_id", "ds", *columns]].assign(ds=ds), static=static, dated=dated)
        kept = checked.rows
        if universe is not None:
            kept = kept[universe.are_members(kept["unique_id"], pd.DatetimeIndex(kept["ds"]))]
        return replace(checked, rows=kept, refusals=tuple(_with_reason(one, unread) for one in checked.refusals))

    done = Ingested(dataset)
    if isinstance(source, SqlSource) and source.watermark is not None:
        pull(ledger, source, dataset, check, done.take, static)
    else:
        context = SourceContext(
            base_dir, cache_dir, reporter.say, job.covariates.static, freq=job.freq, row_by_row=True
        )
        checked = check(source.load(context))
        done.take(checked, ledger.observations.append(dataset, checked.rows, static=static))
    if done.rows and done.refused == done.rows:
        raise InputError(f"{done.dataset}: none of {done.rows:,} rows can be kept; the first, {done.refusals[0]}")
    return done


def _with_reason(refusal: Refusal, unread: Mapping[int, str]) -> Refusal:
    """Return a refusal with the reason why the row's timestamp could not be read, where that is what is wrong."""
    if refusal.column != "ds" or refusal.row not in unread:
        return refusal
    return replace(refusal, reason=f"cannot be read: {unread[refusal.row]}")


def feed_of(job: JobConfig) -> tuple[Feed, str]:
    """Return where a job's rows come from outside, and the dataset they are kept under.

    Raises:
        JobError: the job reads the ledger, and names nothing that feeds it.
    """
    if not isinstance(job.source, LedgerSource):
        return job.source, job.name
    if job.source.feed is None:
        raise JobError(
            f"job {job.name!r} reads dataset {job.source.dataset!r} from the ledger: there is nothing to ingest; "
            "say where its rows come from with source.feed, or send them by another way in"
        )
    return job.source.feed, job.source.dataset


def tell_refusals(refusals: Sequence[Refusal], refused: int, reporter: Reporter) -> None:
    """Say which rows were refused and why."""
    for refusal in refusals:
        reporter.say(f"refused row {refusal.row + 1}, {refusal}")
    if refused > len(refusals):
        reporter.say(f"refused {refused:,} rows in all")
