"""What Alembic runs: the migrations, on the connection that `database.upgrade` gives."""

from alembic import context

from phantom_s2v.studio.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table
    compare_type=True,
    user_module_prefix="",
)
with context.begin_transaction():
    context.run_migrations()
