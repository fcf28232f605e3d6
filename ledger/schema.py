"""The tables. Timestamps of series (`ds`, `cutoff`) and moments (`known_at`, `issued_at`, ...) are microseconds.

Both are counted from 1970: a series' timestamp as the panel has it (an instant in UTC, or a date), a moment in
UTC. Integers order and compare alike in SQLite and PostgreSQL, and become numpy arrays without parsing.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

from ledger.rules import make_storable


class Prose(TypeDecorator[str]):
    """Text for people, which may quote anything: what cannot be kept of it is replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the text as it is kept."""
        del dialect
        return None if value is None else make_storable(value)


FALLBACK = "fallback"
"""The status of a forecast that the seasonal naive made in a model's place: kept, and no score of the model's."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Key = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself in a column that is an INTEGER and nothing else."""

datasets = Table(
    "datasets",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("last_known_at", BigInteger, nullable=False),
)

series = Table(
    "series",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("dataset", String(64), nullable=False),
    Column("unique_id", String(256), nullable=False),
    Column("column", String(256), nullable=False),
    UniqueConstraint("dataset", "unique_id", "column"),
)

observations = Table(
    "observations",
    metadata,
    # No foreign key: numbers come from `series` in the transaction that writes them, nothing there is deleted, and
    # asking row by row makes an append in PostgreSQL three times as long.
    Column("series_id", Integer, primary_key=True, autoincrement=False),
    Column("ds", BigInteger, primary_key=True),
    Column("known_at", BigInteger, primary_key=True),
    Column("value", Double, nullable=True),
    # The key is the table: the rows of a series lie together, in the order they are read in.
    sqlite_with_rowid=False,
)

labels = Table(
    "labels",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("unique_id", String(256), primary_key=True),
    Column("name", String(256), primary_key=True),
    Column("known_at", BigInteger, primary_key=True),
    Column("label", String(256), nullable=False),
)

ingested = Table(
    "ingested",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("checksum", String(64), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("known_at", BigInteger, nullable=False),
    Column("new", Integer, nullable=False),
    Column("revised", Integer, nullable=False),
    Column("unchanged", Integer, nullable=False),
    Column("refused", Integer, nullable=False),
)

watermarks = Table(
    "watermarks",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("source", String(64), primary_key=True),
    Column("watermark", String(64), nullable=False),
    Column("known_at", BigInteger, nullable=False),
)

forecasts = Table(
    "forecasts",
    metadata,
    Column("id", Key, primary_key=True),
    Column("forecast_id", String(64), nullable=False),
    Column("position", Integer, nullable=False),
    Column("batch_id", String(64), nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("dataset", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", String(32), nullable=False),
    Column("role", String(16), nullable=False),
    Column("unique_id", String(256), nullable=False),
    Column("cutoff", BigInteger, nullable=False),
    Column("ends", BigInteger, nullable=False),
    Column("horizon", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Prose, nullable=True),
    Column("data_digest", String(64), nullable=False),
    Column("ds", LargeBinary, nullable=False),
    Column("quantiles", LargeBinary, nullable=False),
    Column("issued", LargeBinary, nullable=False),
    Column("adjustment", LargeBinary, nullable=True),
    Column("inputs", LargeBinary, nullable=False),
    Column("target", String(256), nullable=False, server_default="y"),
    Column("freq", String(32), nullable=False, server_default=""),
    Column("season_length", Integer, nullable=False, server_default="1"),
    Column("transform", String(16), nullable=False, server_default="none"),
    # The probability outside the outermost quantiles: a wider interval has no coverage to measure.
    Column("tail", Double, nullable=False, server_default="0"),
    Column("scored", SmallInteger, nullable=False, server_default="0"),
    UniqueConstraint("forecast_id", "position"),
    Index(None, "model", "unique_id", "cutoff"),
    Index(None, "dataset", "target", "unique_id", "cutoff", "ends"),
    Index(None, "scored", "cutoff"),
    Index(None, "issued_at"),
)

scores = Table(
    "scores",
    metadata,
    Column("forecast", BigInteger, ForeignKey("forecasts.id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("against", SmallInteger, primary_key=True),
    Column("actual", Double, nullable=False),
    Column("error", Double, nullable=False),
    Column("naive_error", Double, nullable=True),
    Column("crps", Double, nullable=False),
    Column("pit", Double, nullable=False),
    sqlite_with_rowid=False,
)

score_totals = Table(
    "score_totals",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("role", String(16), primary_key=True),
    Column("unique_id", String(256), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("month", BigInteger, primary_key=True),
    Column("against", SmallInteger, primary_key=True),
    Column("n", Integer, nullable=False),
    Column("absolute_error", Double, nullable=False),
    Column("crps", Double, nullable=False),
    # Sums over the steps whose seasonal naive is known.
    Column("n_naive", Integer, nullable=False),
    Column("naive_error", Double, nullable=False),
    Column("rival_error", Double, nullable=False),
    Column("pit", LargeBinary, nullable=False),
    Column("tail", Double, nullable=False),
)

score_moments = Table(
    "score_moments",
    metadata,
    Column("dataset", String(64), primary_key=True),
    Column("known_at", BigInteger, nullable=False),
)

adjustments = Table(
    "adjustments",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("unique_id", String(256), primary_key=True),
    Column("made_at", BigInteger, primary_key=True),
    Column("quantiles", LargeBinary, nullable=False),
    Column("stretch", LargeBinary, nullable=False),
    Column("cutoffs", LargeBinary, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("key", String(128), primary_key=True),
    Column("job", String(64), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("cause", Prose, nullable=False),
    Column("state", String(16), nullable=False),
    Column("requested_at", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=True),
    Column("ended_at", BigInteger, nullable=True),
    Column("worker", String(128), nullable=True),
    Column("seen_at", BigInteger, nullable=True),
    Column("forced", SmallInteger, nullable=False, server_default="0"),
    Column("data_digest", String(64), nullable=True),
    Column("config_digest", String(64), nullable=True),
    Column("version", String(32), nullable=True),
    Column("decision", String(32), nullable=True),
    Column("reason", Prose, nullable=True),
    Column("error", Prose, nullable=True),
    Index(None, "job", "requested_at"),
    Index(None, "state"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("config_digest", String(64), nullable=False),
    Column("schedule", Text, nullable=True),
    Column("next_tick", BigInteger, nullable=True),
    Column("updated_at", BigInteger, nullable=False),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Key, primary_key=True),
    Column("key", String(256), nullable=False),
    Column("decided_at", BigInteger, nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", String(32), nullable=False),
    Column("against", String(32), nullable=True),
    Column("action", String(16), nullable=False),
    Column("by", String(128), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("reason", Prose, nullable=False),
    Column("numbers", Text, nullable=False),
    UniqueConstraint("key"),
    Index(None, "model", "id"),
)
