"""Looks of videos by bands and posters of exports."""

import sqlalchemy as sa
from alembic import op

from phantom_s2v.studio.schema import Utc

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables to this revision's."""
    for table in ("fingerprints", "exports", "deliveries"):  # written by no version before
        op.execute(f"delete from {table}")
    op.create_table(
        "fingerprint_bands",
        sa.Column("value", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("video_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["video_id"], ["videos.id"], name=op.f("fk_fingerprint_bands_video_id")),
        sa.PrimaryKeyConstraint("value", "video_id", name=op.f("pk_fingerprint_bands")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("fingerprint_bands", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_fingerprint_bands_video_id"), ["video_id"], unique=False)

    with op.batch_alter_table("exports", schema=None) as batch_op:
        batch_op.add_column(sa.Column("poster", sa.String(length=64), nullable=False))
        batch_op.create_foreign_key(batch_op.f("fk_exports_poster"), "blobs", ["poster"], ["sha256"])

    with op.batch_alter_table("fingerprints", schema=None) as batch_op:
        batch_op.add_column(sa.Column("look", sa.LargeBinary(length=96), nullable=False))
        batch_op.drop_index(batch_op.f("ix_fingerprints_bits"))
        batch_op.drop_column("bits")

    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.add_column(sa.Column("created_at", Utc(), nullable=False))

    with op.batch_alter_table("videos", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_videos_blob"), ["blob"], unique=False)
