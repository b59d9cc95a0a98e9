"""What agents keep with the platform: responses and their items, tasks, state."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("agent_key", sa.Integer, sa.ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
        sa.Column("session_guid", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("conversation_id", sa.String),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("history", sa.LargeBinary, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("updated_at", sa.Integer, nullable=False),
        sa.UniqueConstraint("project", "id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_responses_agent_key", "responses", ["agent_key"])
    op.create_index("ix_responses_updated_at", "responses", ["updated_at"])
    op.create_table(
        "conversation_entries",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("conversation_id", sa.String, nullable=False),
        sa.Column("response_key", sa.Integer, sa.ForeignKey("responses.key", ondelete="CASCADE"), unique=True),
        sqlite_autoincrement=True,
    )
    op.create_index("conversation_entries_by_conversation", "conversation_entries", ["conversation_id", "owner"])
    op.create_table(
        "items",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("response_key", sa.Integer, sa.ForeignKey("responses.key", ondelete="CASCADE")),
        sa.Column("entry_key", sa.Integer, sa.ForeignKey("conversation_entries.key", ondelete="CASCADE")),
        sa.Column("is_output", sa.Boolean, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_items_response_key", "items", ["response_key"])
    op.create_index("ix_items_entry_key", "items", ["entry_key"])
    op.create_index("items_by_id", "items", ["id", "owner"])
    op.create_table(
        "tasks",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("agent_key", sa.Integer, sa.ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
        sa.Column("session_guid", sa.String, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("agent_name", sa.String, nullable=False),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_expires_at", sa.Float),
        sa.Column("source_type", sa.String),
        sa.Column("has_error", sa.Boolean, nullable=False),
        sa.Column("tags", sa.JSON),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("updated_at", sa.Integer, nullable=False),
        sa.UniqueConstraint("session_guid", "id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tasks_agent_key", "tasks", ["agent_key"])
    op.create_index("tasks_by_age", "tasks", ["status", "updated_at"])
    op.create_table(
        "task_attachments",
        sa.Column("task_key", sa.Integer, sa.ForeignKey("tasks.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "state_stores",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("agent_key", sa.Integer, sa.ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("user_isolation", sa.Boolean, nullable=False),
        sa.Column("item_ttl_seconds", sa.Integer, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("updated_at", sa.Integer, nullable=False),
        sa.UniqueConstraint("agent_key", "name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "state_items",
        sa.Column("key", sa.Integer, primary_key=True),
        sa.Column("store_key", sa.Integer, sa.ForeignKey("state_stores.key", ondelete="CASCADE"), nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("etag", sa.String, nullable=False),
        sa.Column("created_at", sa.Integer, nullable=False),
        sa.Column("updated_at", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.UniqueConstraint("store_key", "owner", "name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_state_items_expires_at", "state_items", ["expires_at"])
