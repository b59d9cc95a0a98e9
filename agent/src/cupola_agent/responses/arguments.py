"""What a responses handler may take, by name, and how each is made when its turn begins."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from cupola_agent.context import ResponseContext
from cupola_agent.responses.input import user_text
from cupola_agent.responses.objects import ResponseRequest

if TYPE_CHECKING:
    from cupola_agent.responses.turn import Turn


def _input(turn: "Turn") -> str:
    return user_text(turn.context.input_items)


def _context(turn: "Turn") -> ResponseContext:
    return turn.context


def _request(turn: "Turn") -> ResponseRequest:
    return ResponseRequest(turn.fields)


def _history(turn: "Turn") -> Awaitable[Any]:
    return turn.context.history()


def _client(turn: "Turn") -> Any:
    from cupola_agent.client import client

    return client()


def _stream(turn: "Turn") -> Any:
    from cupola_agent.responses.stream import ResponseStream

    turn.stream = ResponseStream(turn.output, drained=turn.drained, checkpoint=turn.checkpoint)
    return turn.stream


_MADE: Mapping[str, Callable[["Turn"], Any]] = {
    "input": _input,
    "request": _request,
    "context": _context,
    "client": _client,
    "stream": _stream,
}
_FETCHED: Mapping[str, Callable[["Turn"], Awaitable[Any]]] = {
    "history": _history,
}

ARGUMENTS = (*_MADE, *_FETCHED)


async def arguments(names: tuple[str, ...], turn: "Turn") -> dict[str, Any]:
    """The values of the arguments with these names."""
    return {name: _MADE[name](turn) if name in _MADE else await _FETCHED[name](turn) for name in names}
