"""Every right has its project."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this revision's. A row without a project, of a process of the version before that wrote during its
    upgrade, was missing in the list of rights that end.
    """
    op.execute(
        "update rights set project_id = (select project_id from subjects where subjects.id = rights.subject_id) "
        "where project_id is null"
    )
    with op.batch_alter_table("rights", schema=None) as batch_op:
        batch_op.alter_column("project_id", existing_type=sa.String(length=32), nullable=False)
