"""Alembic's entry: run the migrations on the connection `ledger.database` hands over."""

from alembic import context

from ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
