"""What the platform tells the container by environment variables (contract section 2)."""

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_PORT = 8088
DEFAULT_GRACE_SECONDS = 30
DEFAULT_KEEP_ALIVE_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Environment:
    """Platform settings. Texts are "" when not set.

    `hosted` is true inside a platform. `session_id` is the session of this sandbox; every request then
    belongs to it unless it names another. `sse_keep_alive` is the longest silence of a stream in seconds, 0 for any.
    `grace` is how many seconds requests in flight have to end after SIGTERM. `history_limit` is how many items of history
    a handler gets at most, -1 for all.
    """

    hosted: bool = False
    agent_name: str = ""
    agent_version: str = ""
    session_id: str = ""
    sse_keep_alive: int = DEFAULT_KEEP_ALIVE_SECONDS
    history_limit: int = -1
    grace: int = DEFAULT_GRACE_SECONDS

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Environment":
        """Raises ValueError for a value that is not what it should be."""
        return cls(
            hosted=bool(variables.get("FOUNDRY_HOSTING_ENVIRONMENT")),
            agent_name=variables.get("FOUNDRY_AGENT_NAME", ""),
            agent_version=variables.get("FOUNDRY_AGENT_VERSION", ""),
            session_id=variables.get("FOUNDRY_AGENT_SESSION_ID", ""),
            sse_keep_alive=_seconds(variables, "SSE_KEEPALIVE_INTERVAL", DEFAULT_KEEP_ALIVE_SECONDS),
            history_limit=_history_limit(variables),
            grace=read_grace_seconds(variables),
        )


def read_port(variables: Mapping[str, str]) -> int:
    """The port to listen on: `PORT`, or 8088. Raises ValueError unless it is 1-65535."""
    return checked_port(variables.get("PORT") or DEFAULT_PORT, "PORT")


def checked_port(value: str | int, name: str) -> int:
    try:
        port = int(value)
    except ValueError:
        port = 0
    if not 1 <= port <= 65535:
        raise ValueError(f"{name} must be an integer from 1 to 65535, not {value!r}")
    return port


def read_grace_seconds(variables: Mapping[str, str]) -> int:
    """Seconds that requests in flight have to end after SIGTERM (contract section 1.4); never negative."""
    return _seconds(variables, "AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS", DEFAULT_GRACE_SECONDS)


def _seconds(variables: Mapping[str, str], name: str, default: int) -> int:
    value = variables.get(name) or default
    try:
        return max(0, int(value))
    except ValueError:
        raise ValueError(f"{name} must be a whole number of seconds, not {value!r}") from None


def _history_limit(variables: Mapping[str, str]) -> int:
    name = "DEFAULT_FETCH_HISTORY_ITEM_COUNT"
    value = variables.get(name) or "-1"
    if value != "-1" and not (value.isdecimal() and int(value) > 0):
        raise ValueError(f"{name} must be -1 or a positive number, not {value!r}")
    return int(value)
