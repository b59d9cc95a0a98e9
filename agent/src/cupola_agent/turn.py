"""One turn of a conversation: runs the handler and tells it as events (contract sections 4.5 to 4.7)."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from cupola_agent.context import ResponseContext
from cupola_agent.errors import handler_failed
from cupola_agent.events import Event, ResponseEvents, sse_frame
from cupola_agent.handlers import Handler, is_stream
from cupola_agent.responses.input import user_text
from cupola_agent.objects import Json, new_response

logger = logging.getLogger("cupola_agent")


class Turn:
    """One run of the handler: its events, and the response object they end in."""

    def __init__(self, handler: Handler, context: ResponseContext, fields: Json, keep: Callable[[Json], None]) -> None:
        response = new_response(
            fields,
            response_id=context.response_id,
            session_id=context.session_id,
            created_at=context.created_at,
        )
        self._handler = handler
        self._context = context
        self._fields = fields
        self._keep = keep
        self._events = ResponseEvents(response, fields.get("agent_reference"))

    async def response(self) -> Json:
        """Runs to the end. Raises ApiError (500) when the handler fails before it gave anything."""
        gave = False
        last: Event = {}
        async with aclosing(self._run()) as events:
            async for last in events:
                gave = gave or last["type"] == "response.output_item.added"
        response: Json = last["response"]
        if response["status"] == "failed" and not gave:
            # As if the request had never been: the caller may send it again under the same id.
            raise handler_failed()
        self._keep(response)
        return response

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events up to the terminal one. The response can be read again before that one is out."""
        async with aclosing(self._run()) as events:
            async for event in events:
                if event["type"] in ("response.completed", "response.failed"):
                    self._keep(event["response"])
                yield event

    async def _run(self) -> AsyncGenerator[Event, None]:
        try:
            yield self._events.created()
            yield self._events.in_progress()
            async with aclosing(self._pieces()) as pieces:
                message = None
                async for piece in pieces:
                    if message is None:
                        message = self._events.message()
                        for event in message.added():
                            yield event
                    if piece:
                        yield message.delta(piece)
            if message is not None:
                for event in message.done():
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self._keep(self._events.cancelled())
            raise
        except Exception:
            logger.exception("the responses handler failed")
            terminal = self._events.failed()
        else:
            terminal = self._events.completed()
        yield terminal

    async def _pieces(self) -> AsyncGenerator[str, None]:
        """The text the handler gives, as it gives it; nothing when it returns None."""
        result = await self._handler.call(
            input=user_text(self._context.input_items), context=self._context, request=self._fields
        )
        if result is None:
            return
        if not is_stream(result):
            yield _text(result)
            return
        async with aclosing(result) as pieces:
            async for piece in pieces:
                yield _text(piece)


async def sse_frames(turn: Turn) -> AsyncGenerator[bytes, None]:
    """The turn as server-sent events, one frame per piece."""
    async with aclosing(turn.events()) as events:
        async for event in events:
            yield sse_frame(event)


def _text(piece: Any) -> str:
    if not isinstance(piece, str):
        raise TypeError(f"a responses handler gives str, not {type(piece).__name__}")
    return piece
