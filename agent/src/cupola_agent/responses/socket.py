"""The WebSocket mode of `/responses`: one turn after the other on one connection (contract section 8).

The client sends `{"type": "response.create", …}` and gets the events as text. Responses of this connection can be
continued on it even when they are not stored.
"""

import asyncio
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from cupola_agent import jsons
from cupola_agent.call import Caller
from cupola_agent.errors import ApiError, invalid_request
from cupola_agent.exchange import Socket, SocketClosedError
from cupola_agent.http import parsed_query
from cupola_agent.logs import add_log_fields
from cupola_agent.responses.log import event_data
from cupola_agent.responses.objects import Json
from cupola_agent.responses.request import check_request
from cupola_agent.responses.service import Asked, Responses
from cupola_agent.responses.turn import Stop, Turn

_WAITING_MESSAGES = 16
_REMEMBERED = 16


class ResponseSocket:
    """Holds one connection."""

    def __init__(self, responses: Responses, socket: Socket, request_id: str) -> None:
        self._responses = responses
        self._socket = socket
        self._request_id = request_id
        self._messages: asyncio.Queue[str | bytes] = asyncio.Queue(_WAITING_MESSAGES)
        self._turn: Turn | None = None
        self._remembered: OrderedDict[str, list[Json]] = OrderedDict()

    async def serve(self) -> None:
        """Until either side closes; a turn that runs when the client leaves is cancelled."""
        await self._socket.accept(((b"x-request-id", self._request_id.encode("latin-1")),))
        answering = asyncio.create_task(self._answer_all())
        try:
            while True:
                await self._messages.put(await self._socket.receive())
        except SocketClosedError:
            if self._turn is not None:
                self._turn.stop(Stop.DISCONNECTED)
        finally:
            answering.cancel()
            with suppress(asyncio.CancelledError, SocketClosedError):
                await answering

    async def _answer_all(self) -> None:
        while True:
            message = await self._messages.get()
            previous = None
            try:
                fields = _decoded(message)
                previous = fields.get("previous_response_id")
                turn = await self._begin(fields)
            except ApiError as error:
                # Whoever continues from a turn and fails has to begin again from what is stored.
                self._remembered.pop(previous or "", None)
                await self._refuse(error)
                continue
            self._turn = turn
            await self._send_events(turn)
            await turn.wait()
            self._turn = None
            await self._remember(turn, previous)

    async def _begin(self, fields: Json) -> Turn:
        """The turn, which runs. Raises ApiError."""
        headers, query = self._socket.headers, parsed_query(self._socket.query_string)
        response_id, chosen = self._responses.identify(fields, {})
        session_id = self._responses.session_of(fields)
        add_log_fields(response_id=response_id, session_id=session_id)
        caller = Caller.of(headers, self._request_id)
        asked = Asked(fields, response_id, chosen, session_id, caller, headers, query)
        previous = fields.get("previous_response_id")
        try:
            turn = await self._responses.begin(asked, events=True, remembered=self._remembered.get(previous or ""))
        except ApiError as error:
            if previous and error.status == 404:
                raise _unknown_previous(previous) from error
            raise
        if turn.background:
            await self._responses.start_background(turn)
        else:
            self._responses.start_turn(turn)
        return turn

    async def _send_events(self, turn: Turn) -> None:
        log, number = turn.log, 0
        if log is None:
            raise RuntimeError("a stream without events")
        while True:
            for frame in log.read(number):
                await self._socket.send(event_data(frame).decode())
                number += 1
            if turn.only_reader:
                log.forget(number)
            if log.closed and number >= log.end:
                return
            await log.more(number, None)

    async def _remember(self, turn: Turn, previous: str | None) -> None:
        if turn.output.status != "completed":
            self._remembered.pop(previous or "", None)
            return
        items = [*await turn.context.history(), *turn.context.input_items, *turn.output.response["output"]]
        self._remembered[turn.context.response_id] = items
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)

    async def _refuse(self, error: ApiError) -> None:
        body = error.body(self._request_id)
        event = {"type": "error", "status": error.status, "sequence_number": 0, "error": body, **_flat(body)}
        await self._socket.send(jsons.encode(event).decode())


def _flat(body: Json) -> Json:
    """The fields of an error where OpenAI's clients look for them; others look into `error`."""
    return {name: body[name] for name in ("code", "message", "param")}


def _decoded(message: str | bytes) -> dict[str, Any]:
    try:
        given = jsons.decode(message if isinstance(message, bytes) else message.encode(errors="surrogatepass"))
    except ValueError as error:
        raise invalid_request(str(error), code="invalid_request_error") from error
    if not isinstance(given, dict) or given.get("type") != "response.create":
        raise invalid_request("the messages of a client are of type 'response.create'", "type")
    nested = given.get("response")
    body = nested if isinstance(nested, dict) else given
    try:
        return check_request(body)
    except ApiError as error:
        if error.param == "previous_response_id":
            raise _unknown_previous(body["previous_response_id"]) from error
        raise


def _unknown_previous(response_id: str) -> ApiError:
    message = f"Previous response with id '{response_id}' not found."
    return invalid_request(message, "previous_response_id", "previous_response_not_found")
