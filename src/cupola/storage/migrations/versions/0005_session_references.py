"""Ids by which callers mean a session without naming it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "session_references",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner", sa.String, primary_key=True),
        sa.Column("agent_key", sa.Integer, sa.ForeignKey("agents.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("session_key", sa.Integer, sa.ForeignKey("sessions.key", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
    )
    op.create_index("ix_session_references_agent_key", "session_references", ["agent_key"])
    op.create_index("ix_session_references_session_key", "session_references", ["session_key"])
    op.create_index("ix_session_references_created_at", "session_references", ["created_at"])
