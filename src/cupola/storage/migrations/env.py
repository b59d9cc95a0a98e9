"""What Alembic runs: the caller passes the connection."""

from alembic import context

from cupola.storage.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
