"""Egress policies of projects."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "egress_policies",
        sa.Column("project", sa.String, sa.ForeignKey("projects.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Integer, nullable=False),
    )
