"""What Alembic runs: every migration that is due, on the connection and in the transaction that it is given."""

from alembic import context

from tunneld.server.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
