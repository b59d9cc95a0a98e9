"""Principals, projects, agents, versions, their events, sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "principals",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
        sa.Column("secret_hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("administrator", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
    )
    op.create_table(
        "projects",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("created_at", sa.Integer, nullable=False),
    )
    op.create_table(
        "agents",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("project", sa.String, sa.ForeignKey("projects.name"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("guid", sa.String, nullable=False),
        sa.Column("principal_id", sa.String, nullable=False),
        sa.Column("client_id", sa.String, nullable=False),
        sa.Column("blueprint_id", sa.String, nullable=False),
        sa.Column("next_number", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.UniqueConstraint("project", "name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "versions",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("agent_key", sa.Integer, sa.ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("definition", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("error_code", sa.String),
        sa.Column("error_message", sa.Text),
        sa.Column("digest", sa.String),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.UniqueConstraint("agent_key", "number"),
        sqlite_autoincrement=True,
    )
    op.create_index("versions_by_status", "versions", ["status"])
    op.create_table(
        "version_events",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("version_key", sa.Integer, sa.ForeignKey("versions.key", ondelete="CASCADE"), nullable=False),
        sa.Column("at_milliseconds", sa.Integer, nullable=False),
        sa.Column("step", sa.String, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("duration_milliseconds", sa.Float),
        sa.Column("failed", sa.Boolean, nullable=False),
    )
    op.create_index("ix_version_events_version_key", "version_events", ["version_key"])
    op.create_table(
        "sessions",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("agent_key", sa.Integer, sa.ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
        sa.Column("version_key", sa.Integer, sa.ForeignKey("versions.key", ondelete="CASCADE"), nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("guid", sa.String, nullable=False, unique=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("last_accessed_at", sa.Integer, nullable=False),
        sa.UniqueConstraint("agent_key", "id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sessions_version_key", "sessions", ["version_key"])
    op.create_index("ix_sessions_status", "sessions", ["status"])
