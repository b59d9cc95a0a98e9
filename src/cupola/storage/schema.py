"""The tables. Times are whole seconds since the epoch unless a name says otherwise."""

from __future__ import annotations

from sqlalchemy import (
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
