"""How sessions follow new versions, which are pinned to one, when they were stopped; what versions import ahead."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("agents", sa.Column("session_upgrade", sa.String, nullable=False, server_default="on_idle"))
    op.add_column("sessions", sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.text("0")))
    op.add_column("sessions", sa.Column("stopped_at", sa.Integer))
    # Whether a session has a sandbox is known to the server that runs it, and to nobody after its end.
    op.drop_index("ix_sessions_status", "sessions")
    op.drop_column("sessions", "status")
    op.create_index("ix_sessions_last_accessed_at", "sessions", ["last_accessed_at"])
    op.create_table(
        "priming_plans",
        sa.Column("version_key", sa.Integer, sa.ForeignKey("versions.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("plan", sa.LargeBinary, nullable=False),
    )
