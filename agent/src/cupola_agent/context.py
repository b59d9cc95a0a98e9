"""What a handler may know about the call it answers (contract sections 3.1 and 6)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

Json = dict[str, Any]


class LeftForRecovery(BaseException):
    """The handler leaves its response for the next process. Not an Exception: code that catches those lets it pass."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What all protocols know.

    `user_id` is the opaque key of the user, `call_id` the capability to send along on calls to the platform
    (both "" outside a platform); `client_headers` are the caller's `x-client-*` headers, in lower case.
    """

    request_id: str
    session_id: str
    user_id: str
    call_id: str
    client_headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class InvocationContext(CallContext):
    """The context of one invocation."""

    invocation_id: str


@dataclass(slots=True)
class Signals:
    """Why a handler should come to its end: what its context shows, and the platform sets."""

    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    shutdown: bool = False
    client_cancelled: bool = False
    watched: bool = False
    waiting_turns: int = 0


async def _no_history() -> list[Json]:
    return []


@dataclass(frozen=True, slots=True)
class ResponseContext(CallContext):
    """The context of one response. `created_at` is in seconds of the Unix epoch.

    `chain_id` is a key for what an agent remembers of a conversation: the same for all responses of one.
    """

    response_id: str
    created_at: int
    conversation_id: str | None = None
    previous_response_id: str | None = None
    query_parameters: Mapping[str, str] = field(default_factory=dict)
    input_items: tuple[Mapping[str, Any], ...] = ()
    chain_id: str = ""
    persisted_response: Mapping[str, Any] | None = None
    is_steered_turn: bool = False
    signals: Signals = field(default_factory=Signals, repr=False)
    fetch_history: Callable[[], Awaitable[Sequence[Json]]] = field(default=_no_history, repr=False)

    @property
    def is_recovery(self) -> bool:
        """Whether another process began this response; `persisted_response` is then the last state it stored."""
        return self.persisted_response is not None

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the handler should end: the response was cancelled, the process stops, or (steering) a newer turn
        waits. A handler that looks at it has ten seconds to end in its own way; any other one is cut off.
        """
        self.signals.watched = True
        return self.signals.cancelled

    @property
    def client_cancelled(self) -> bool:
        """Whether a client cancelled the response, or left."""
        return self.signals.client_cancelled

    @property
    def shutdown(self) -> bool:
        """Whether the process was told to stop."""
        return self.signals.shutdown

    @property
    def pending_input_count(self) -> int:
        """How many newer turns of this conversation wait for this one."""
        return self.signals.waiting_turns

    async def history(self) -> list[Json]:
        """The items of the conversation before this turn, oldest first."""
        return list(await self.fetch_history())

    def exit_for_recovery(self) -> NoReturn:
        """Leaves the response as it is, for the next process to go on with; only where the handler is resilient."""
        raise LeftForRecovery


def call_fields(headers: Mapping[str, str], request_id: str, session_id: str) -> dict[str, Any]:
    """The values of CallContext, from the headers of a call."""
    return {
        "request_id": request_id,
        "session_id": session_id,
        "user_id": headers.get("x-agent-user-id", ""),
        "call_id": headers.get("x-agent-foundry-call-id", ""),
        "client_headers": {name: value for name, value in headers.items() if name.startswith("x-client-")},
    }
