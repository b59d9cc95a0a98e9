"""The events that carry a whole response, and the fields of it that are not a handler's (contract sections 4.4 to 4.6)."""

import re
from collections.abc import Mapping

EVENT_TYPE = re.compile(r"response\.[A-Za-z0-9_.-]{1,200}")
"""What the type of an event may be: it stands in a line of its own, which nothing may break."""

STATUSES: Mapping[str, frozenset[str]] = {
    "response.created": frozenset({"queued", "in_progress"}),
    "response.queued": frozenset({"queued"}),
    "response.in_progress": frozenset({"in_progress"}),
    "response.completed": frozenset({"completed"}),
    "response.incomplete": frozenset({"incomplete"}),
    "response.failed": frozenset({"failed", "cancelled"}),
}
"""What the status of the response may be in each event."""

TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})

OWN_FIELDS = frozenset(
    {
        "agent_reference",
        "agent_session_id",
        "background",
        "completed_at",
        "conversation",
        "created_at",
        "id",
        "object",
        "output",
        "previous_response_id",
        "response_id",
        "status",
        "store",
    }
)
"""Fields of the response that the library keeps right by itself."""
