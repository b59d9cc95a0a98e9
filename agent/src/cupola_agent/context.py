"""What a handler may know about the call it answers (contract sections 3.1 and 6)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

Json = dict[str, Any]


class LeftForRecovery(BaseException):
    """The handler leaves its response for the next process. Not an Exception: code that catches those lets it pass."""


@dataclass(slots=True)
class CallContext:
    """What all protocols know of a call. `request_id` is the id it is logged under."""

    request_id: str
    session_id: str
    headers: Mapping[str, str] = field(repr=False)

    @property
    def user_id(self) -> str:
        """The opaque key of the user, "" outside a platform."""
        return self.headers.get("x-agent-user-id", "")

    @property
    def call_id(self) -> str:
        """The capability that calls to the platform carry, "" outside a platform."""
        return self.headers.get("x-agent-foundry-call-id", "")

    @property
    def client_headers(self) -> Mapping[str, str]:
        """The caller's `x-client-*` headers, in lower case."""
        return {name: value for name, value in self.headers.items() if name.startswith("x-client-")}


@dataclass(slots=True)
class InvocationContext(CallContext):
    """The context of one invocation."""

    invocation_id: str


class Signals:
    """Why a handler should come to its end: the turn sets it, and the context shows it."""

    __slots__ = ("_cancelled", "_event", "client_cancelled", "shutdown", "waiting_turns", "watched")

    def __init__(self) -> None:
        self._cancelled = False
        self._event: asyncio.Event | None = None
        self.client_cancelled = False
        self.shutdown = False
        self.waiting_turns = 0
        self.watched = False
        """Whether the handler has looked at `event`: it then ends in its own way."""

    @property
    def event(self) -> asyncio.Event:
        self.watched = True
        if self._event is None:
            self._event = asyncio.Event()
            if self._cancelled:
                self._event.set()
        return self._event

    def cancel(self) -> None:
        self._cancelled = True
        if self._event is not None:
            self._event.set()


async def _no_history() -> list[Json]:
    return []


@dataclass(slots=True)
class ResponseContext(CallContext):
    """The context of one response. `created_at` is in seconds of the Unix epoch.

    `chain_id` is a key for what an agent remembers of a conversation: the same for all its responses, of which it is a
    part. `persisted_response` is the last stored state of a response that another process began.
    """

    response_id: str
    created_at: int
    conversation_id: str | None = None
    previous_response_id: str | None = None
    query_parameters: Mapping[str, str] = field(default_factory=dict)
    input_items: tuple[Json, ...] = ()
    chain_id: str = ""
    persisted_response: Mapping[str, Any] | None = None
    is_steered_turn: bool = False
    signals: Signals = field(default_factory=Signals, repr=False)
    fetch_history: Callable[[], Awaitable[Sequence[Json]]] = field(default=_no_history, repr=False)

    @property
    def is_recovery(self) -> bool:
        """Whether another process began this response."""
        return self.persisted_response is not None

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the handler should end: the response was cancelled, the process stops, or (steering) a newer turn
        waits. A handler that looks at it has ten seconds to end in its own way; any other one is cut off.
        """
        return self.signals.event

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
