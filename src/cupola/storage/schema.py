"""The tables. Times are whole seconds since the epoch unless a name says otherwise."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

principals = Table(
    "principals",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("secret_hash", LargeBinary, nullable=False, unique=True),
    Column("administrator", Boolean, nullable=False),
    Column("created_at", Integer, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("name", String, primary_key=True),
    Column("created_at", Integer, nullable=False),
)

egress_policies = Table(
    "egress_policies",
    metadata,
    Column("project", String, ForeignKey("projects.name", ondelete="CASCADE"), primary_key=True),
    Column("policy", Text, nullable=False),
    Column("changed_at", Integer, nullable=False),
)

agents = Table(
    "agents",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("project", String, ForeignKey("projects.name"), nullable=False),
    Column("name", String, nullable=False),
    Column("guid", String, nullable=False),
    Column("principal_id", String, nullable=False),
    Column("client_id", String, nullable=False),
    Column("blueprint_id", String, nullable=False),
    Column("next_number", Integer, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("session_upgrade", String, nullable=False, server_default="on_idle"),
    UniqueConstraint("project", "name"),
    sqlite_autoincrement=True,
)

versions = Table(
    "versions",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("agent_key", Integer, ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("definition", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("description", Text),
    Column("status", String, nullable=False),
    Column("error_code", String),
    Column("error_message", Text),
    Column("digest", String),
    Column("created_at", Integer, nullable=False),
    UniqueConstraint("agent_key", "number"),
    Index("versions_by_status", "status"),
    sqlite_autoincrement=True,
)

version_events = Table(
    "version_events",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("version_key", Integer, ForeignKey("versions.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("at_milliseconds", Integer, nullable=False),
    Column("step", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("duration_milliseconds", Float),
    Column("failed", Boolean, nullable=False),
)

priming_plans = Table(
    "priming_plans",
    metadata,
    Column("version_key", Integer, ForeignKey("versions.key", ondelete="CASCADE"), primary_key=True),
    Column("plan", LargeBinary, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("agent_key", Integer, ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
    Column("version_key", Integer, ForeignKey("versions.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("id", String, nullable=False),
    Column("guid", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("last_accessed_at", Integer, nullable=False, index=True),
    Column("pinned", Boolean, nullable=False, server_default=text("0")),
    Column("stopped_at", Integer),
    UniqueConstraint("agent_key", "id"),
    sqlite_autoincrement=True,
)

session_references = Table(
    "session_references",
    metadata,
    Column("kind", String, primary_key=True),
    Column("id", String, primary_key=True),
    Column("owner", String, primary_key=True),
    Column("agent_key", Integer, ForeignKey("agents.key", ondelete="CASCADE"), primary_key=True, index=True),
    Column("session_key", Integer, ForeignKey("sessions.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Integer, nullable=False, index=True),
)

responses = Table(
    "responses",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("project", String, nullable=False),
    Column("id", String, nullable=False),
    Column("agent_key", Integer, ForeignKey("agents.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("session_guid", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("conversation_id", String),
    Column("status", String, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("history", LargeBinary, nullable=False),
    Column("request_id", String, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("updated_at", Integer, nullable=False, index=True),
    UniqueConstraint("project", "id"),
    sqlite_autoincrement=True,
)

conversation_entries = Table(
    # What was added to conversations, in this order: each entry is a response or some items of its own.
    "conversation_entries",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("owner", String, nullable=False),
    Column("conversation_id", String, nullable=False),
    Column("response_key", Integer, ForeignKey("responses.key", ondelete="CASCADE"), unique=True),
    Index("conversation_entries_by_conversation", "conversation_id", "owner"),
    sqlite_autoincrement=True,
)

items = Table(
    "items",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("response_key", Integer, ForeignKey("responses.key", ondelete="CASCADE"), index=True),
    Column("entry_key", Integer, ForeignKey("conversation_entries.key", ondelete="CASCADE"), index=True),
    Column("is_output", Boolean, nullable=False),
    Column("owner", String, nullable=False),
    Column("id", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("items_by_id", "id", "owner"),
    sqlite_autoincrement=True,
)

tasks = Table(
    "tasks",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("agent_key", Integer, ForeignKey("agents.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("session_guid", String, nullable=False),
    Column("id", String, nullable=False),
    Column("agent_name", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("status", String, nullable=False),
    Column("lease_owner", String),
    Column("lease_expires_at", Float),
    Column("source_type", String),
    Column("has_error", Boolean, nullable=False),
    Column("tags", JSON),
    Column("body", LargeBinary, nullable=False),
    Column("updated_at", Integer, nullable=False),
    UniqueConstraint("session_guid", "id"),
    Index("tasks_by_age", "status", "updated_at"),
    sqlite_autoincrement=True,
)

task_attachments = Table(
    # Apart from the task, so that renewing a lease does not write them again.
    "task_attachments",
    metadata,
    Column("task_key", Integer, ForeignKey("tasks.key", ondelete="CASCADE"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

state_stores = Table(
    "state_stores",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("agent_key", Integer, ForeignKey("agents.key", ondelete="CASCADE"), nullable=False),
    Column("name", String, nullable=False),
    Column("user_isolation", Boolean, nullable=False),
    Column("item_ttl_seconds", Integer, nullable=False),
    Column("description", Text),
    Column("tags", JSON, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("updated_at", Integer, nullable=False),
    UniqueConstraint("agent_key", "name"),
    sqlite_autoincrement=True,
)

state_items = Table(
    "state_items",
    metadata,
    Column("key", Integer, primary_key=True),
    Column("store_key", Integer, ForeignKey("state_stores.key", ondelete="CASCADE"), nullable=False),
    Column("owner", String, nullable=False),
    Column("name", String, nullable=False),
    Column("value", LargeBinary, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("etag", String, nullable=False),
    Column("created_at", Integer, nullable=False),
    Column("updated_at", Integer, nullable=False),
    Column("expires_at", Float, index=True),
    UniqueConstraint("store_key", "owner", "name"),
    sqlite_autoincrement=True,
)
