"""${message}."""

import sqlalchemy as sa
from alembic import op

from phantom_s2v.studio.schema import Utc  # noqa: F401 - among the types

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this revision's."""
    ${upgrades if upgrades else "pass"}
