"""Who the current call is made for: what stores and the platform need to know about a caller (contract section 3.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


_NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("cupola_agent_caller", default=_NOBODY)


def current_call() -> Caller:
    """The caller of the handler that runs now; an empty one outside of any."""
    return _current.get()


@contextmanager
def call_scope(caller: Caller) -> Iterator[None]:
    """Makes the caller the current one for the code inside and for tasks started there."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
