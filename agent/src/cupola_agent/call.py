"""Who the current call is made for: what stores and the platform need to know about a caller (contract section 3.1)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """The user and the call behind a request; each is "" where there is none.

    `user_id` is the opaque key of the user, `call_id` the capability that calls to the platform carry, `request_id`
    the id that the request is logged under.
    """

    user_id: str = ""
    call_id: str = ""
    request_id: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str], request_id: str) -> "Caller":
        """Who the headers of a call say it is made for."""
        return cls(headers.get("x-agent-user-id", ""), headers.get("x-agent-foundry-call-id", ""), request_id)


_NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("cupola_agent_caller", default=_NOBODY)


def current_call() -> Caller:
    """The caller of the handler that runs now; an empty one outside of any."""
    return _current.get()


def enter_call(caller: Caller) -> Token[Caller]:
    """Makes the caller the current one, also for tasks started from now on, until `leave_call`."""
    return _current.set(caller)


def leave_call(token: Token[Caller]) -> None:
    _current.reset(token)


@contextmanager
def call_scope(caller: Caller) -> Iterator[None]:
    """Makes the caller the current one for the code inside and for tasks started there."""
    token = enter_call(caller)
    try:
        yield
    finally:
        leave_call(token)
