"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "adjustments",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("unique_id", sa.String(length=256), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("quantiles", sa.LargeBinary(), nullable=False),
        sa.Column("stretch", sa.LargeBinary(), nullable=False),
        sa.Column("cutoffs", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", "unique_id", "made_at", name=op.f("pk_adjustments")),
    )
    op.create_table(
        "datasets",
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("last_known_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_datasets")),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("against", sa.String(length=32), nullable=True),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("numbers", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
        sa.UniqueConstraint("key", name=op.f("uq_decisions_key")),
    )
    op.create_index(op.f("ix_decisions_model_id"), "decisions", ["model", "id"], unique=False)
    op.create_table(
        "forecasts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("forecast_id", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=False),
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("unique_id", sa.String(length=256), nullable=False),
        sa.Column("cutoff", sa.BigInteger(), nullable=False),
        sa.Column("ends", sa.BigInteger(), nullable=False),
        sa.Column("horizon", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("data_digest", sa.String(length=64), nullable=False),
        sa.Column("ds", sa.LargeBinary(), nullable=False),
        sa.Column("quantiles", sa.LargeBinary(), nullable=False),
        sa.Column("issued", sa.LargeBinary(), nullable=False),
        sa.Column("adjustment", sa.LargeBinary(), nullable=True),
        sa.Column("inputs", sa.LargeBinary(), nullable=False),
        sa.Column("target", sa.String(length=256), server_default="y", nullable=False),
        sa.Column("freq", sa.String(length=32), server_default="", nullable=False),
        sa.Column("season_length", sa.Integer(), server_default="1", nullable=False),
        sa.Column("transform", sa.String(length=16), server_default="none", nullable=False),
        sa.Column("tail", sa.Double(), server_default="0", nullable=False),
        sa.Column("scored", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_forecasts")),
        sa.UniqueConstraint("forecast_id", "position", name=op.f("uq_forecasts_forecast_id_position")),
    )
    op.create_index(
        op.f("ix_forecasts_dataset_target_unique_id_cutoff_ends"),
        "forecasts",
        ["dataset", "target", "unique_id", "cutoff", "ends"],
        unique=False,
    )
    op.create_index(op.f("ix_forecasts_issued_at"), "forecasts", ["issued_at"], unique=False)
    op.create_index(
        op.f("ix_forecasts_model_unique_id_cutoff"), "forecasts", ["model", "unique_id", "cutoff"], unique=False
    )
    op.create_index(op.f("ix_forecasts_scored_cutoff"), "forecasts", ["scored", "cutoff"], unique=False)
    op.create_table(
        "ingested",
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("checksum", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("known_at", sa.BigInteger(), nullable=False),
        sa.Column("new", sa.Integer(), nullable=False),
        sa.Column("revised", sa.Integer(), nullable=False),
        sa.Column("unchanged", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "checksum", name=op.f("pk_ingested")),
    )
    op.create_table(
        "jobs",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("config_digest", sa.String(length=64), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=True),
        sa.Column("next_tick", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_jobs")),
    )
    op.create_table(
        "labels",
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("unique_id", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("known_at", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "unique_id", "name", "known_at", name=op.f("pk_labels")),
    )
    op.create_table(
        "observations",
        sa.Column("series_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ds", sa.BigInteger(), nullable=False),
        sa.Column("known_at", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("series_id", "ds", "known_at", name=op.f("pk_observations")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("worker", sa.String(length=128), nullable=True),
        sa.Column("seen_at", sa.BigInteger(), nullable=True),
        sa.Column("forced", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("data_digest", sa.String(length=64), nullable=True),
        sa.Column("config_digest", sa.String(length=64), nullable=True),
        sa.Column("version", sa.String(length=32), nullable=True),
        sa.Column("decision", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_job_requested_at"), "runs", ["job", "requested_at"], unique=False)
    op.create_index(op.f("ix_runs_state"), "runs", ["state"], unique=False)
    op.create_table(
        "score_moments",
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("known_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_score_moments")),
    )
    op.create_table(
        "score_totals",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("unique_id", sa.String(length=256), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("month", sa.BigInteger(), nullable=False),
        sa.Column("against", sa.SmallInteger(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("absolute_error", sa.Double(), nullable=False),
        sa.Column("crps", sa.Double(), nullable=False),
        sa.Column("n_naive", sa.Integer(), nullable=False),
        sa.Column("naive_error", sa.Double(), nullable=False),
        sa.Column("rival_error", sa.Double(), nullable=False),
        sa.Column("pit", sa.LargeBinary(), nullable=False),
        sa.Column("tail", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint(
            "model", "version", "role", "unique_id", "step", "month", "against", name=op.f("pk_score_totals")
        ),
    )
    op.create_table(
        "series",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("unique_id", sa.String(length=256), nullable=False),
        sa.Column("column", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("dataset", "unique_id", "column", name=op.f("uq_series_dataset_unique_id_column")),
    )
    op.create_table(
        "watermarks",
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("watermark", sa.String(length=64), nullable=False),
        sa.Column("known_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "source", name=op.f("pk_watermarks")),
    )
    op.create_table(
        "scores",
        sa.Column("forecast", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("against", sa.SmallInteger(), nullable=False),
        sa.Column("actual", sa.Double(), nullable=False),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("naive_error", sa.Double(), nullable=True),
        sa.Column("crps", sa.Double(), nullable=False),
        sa.Column("pit", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["forecast"], ["forecasts.id"], name=op.f("fk_scores_forecast_forecasts"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("forecast", "step", "against", name=op.f("pk_scores")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("scores")
    op.drop_table("watermarks")
    op.drop_table("series")
    op.drop_table("score_totals")
    op.drop_table("score_moments")
    op.drop_index(op.f("ix_runs_state"), table_name="runs")
    op.drop_index(op.f("ix_runs_job_requested_at"), table_name="runs")
    op.drop_table("runs")
    op.drop_table("observations")
    op.drop_table("labels")
    op.drop_table("jobs")
    op.drop_table("ingested")
    op.drop_index(op.f("ix_forecasts_scored_cutoff"), table_name="forecasts")
    op.drop_index(op.f("ix_forecasts_model_unique_id_cutoff"), table_name="forecasts")
    op.drop_index(op.f("ix_forecasts_issued_at"), table_name="forecasts")
    op.drop_index(op.f("ix_forecasts_dataset_target_unique_id_cutoff_ends"), table_name="forecasts")
    op.drop_table("forecasts")
    op.drop_index(op.f("ix_decisions_model_id"), table_name="decisions")
    op.drop_table("decisions")
    op.drop_table("datasets")
    op.drop_table("adjustments")
