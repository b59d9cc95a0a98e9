"""The routes below `/responses` over HTTP (contract sections 4.1 to 4.10)."""

from collections.abc import Awaitable, Callable, Mapping

from cupola_agent import ids, jsons
from cupola_agent.environment import Environment
from cupola_agent.errors import ApiError, handler_failed, invalid_request
from cupola_agent.exchange import ClientDisconnectedError
from cupola_agent.http import Answer, Call, Header
from cupola_agent.logs import add_log_fields
from cupola_agent.responses.log import EventLog, send_events
from cupola_agent.responses.objects import Json, public_item
from cupola_agent.responses.operations import Operations
from cupola_agent.responses.request import parse_request
from cupola_agent.responses.service import Asked, Responses
from cupola_agent.responses.storage import storage_failed
from cupola_agent.responses.turn import Stop, Turn
from cupola_agent.routing import Endpoint, Route

_SSE_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
)
_MAX_ITEMS = 100
_USUAL_ITEMS = 20


class ResponseRoutes:
    """Maps calls to what `Responses` does, and errors to answers."""

    def __init__(self, responses: Responses, environment: Environment) -> None:
        self._responses = responses
        self._operations = Operations(responses)
        self._default_model = responses.options.default_model
        self._keep_alive = float(environment.sse_keep_alive) or None
        self._in_session = _session_headers(environment.session_id)

    def routes(self) -> tuple[Route, ...]:
        by_id = "/responses/{response_id}"
        return (
            Route("POST", "/responses", self._create),
            Route("GET", by_id, self._answered(self._get)),
            Route("DELETE", by_id, self._answered(self._delete)),
            Route("POST", f"{by_id}/cancel", self._answered(self._cancel)),
            Route("GET", f"{by_id}/input_items", self._answered(self._input_items)),
        )

    def _answered(self, endpoint: Callable[[Call, str], Awaitable[Answer | None]]) -> Endpoint:
        """The endpoint with the id of its path checked, its errors answered, and the session's header."""

        async def answered(call: Call) -> Answer | None:
            try:
                answer = await endpoint(call, _response_id(call))
            except ApiError as error:
                answer = error.answer(call.request_id)
            return None if answer is None else answer.with_headers(*self._in_session)

        return answered

    async def _create(self, call: Call) -> Answer | None:
        in_session = self._in_session
        try:
            fields = parse_request(await call.exchange.body())
            if self._default_model and "model" not in fields:
                fields["model"] = self._default_model
            response_id, chosen = self._responses.identify(fields, call.headers)
            session_id = self._responses.session_of(fields)
            in_session = _session_headers(session_id)
            add_log_fields(response_id=response_id, session_id=session_id)
            query = call.query if call.exchange.query_string else {}
            asked = Asked(fields, response_id, chosen, session_id, call.caller, call.headers, query)
            stream = bool(fields.get("stream"))
            turn = await self._responses.begin(asked, events=stream)
            if turn.background:
                return await self._background(call, turn, in_session)
            if stream:
                self._responses.start_turn(turn)
                call.exchange.on_disconnect(lambda: turn.stop(Stop.DISCONNECTED))
                await self._stream(call, turn.log, 0, in_session, only_reader=True)
                return None
            answer = await self._whole(call, turn)
        except ApiError as error:
            answer = error.answer(call.request_id)
        return answer._replace(headers=answer.headers + in_session)

    async def _whole(self, call: Call, turn: Turn) -> Answer:
        """Runs the turn here and answers with all of it. Raises ApiError."""
        call.exchange.on_disconnect(lambda: turn.stop(Stop.DISCONNECTED))
        await self._responses.run(turn)
        if call.exchange.disconnected:
            raise ClientDisconnectedError
        if turn.storage_failed is not None:
            raise storage_failed(turn.storage_failed)
        if turn.failed_at_once:
            raise handler_failed()
        return Answer.json(200, jsons.encode(turn.output.response))

    async def _background(self, call: Call, turn: Turn, in_session: tuple[Header, ...]) -> Answer | None:
        begun = turn.output.response if turn.before is None else {**turn.output.response, "status": "queued"}
        await self._responses.start_background(turn)
        if turn.log is not None:
            await self._stream(call, turn.log, 0, in_session, only_reader=False)
            return None
        return Answer.json(200, jsons.encode(begun), *in_session)

    async def _stream(
        self, call: Call, log: EventLog | None, number: int, headers: tuple[Header, ...], *, only_reader: bool
    ) -> None:
        if log is None:
            raise RuntimeError("a stream without events")
        call.start(200, *_SSE_HEADERS, *headers)
        await send_events(call.exchange, log, number, keep_alive=self._keep_alive, only_reader=only_reader)

    async def _get(self, call: Call, response_id: str) -> Answer | None:
        query = call.query
        if query.get("stream") != "true":
            return Answer.json(200, jsons.encode(await self._operations.get(response_id, call.caller)))
        log = await self._operations.replay(response_id, call.caller)
        number = _starting_number(query.get("starting_after"))
        await self._stream(call, log, number, self._in_session, only_reader=False)
        return None

    async def _delete(self, call: Call, response_id: str) -> Answer:
        await self._operations.delete(response_id, call.caller)
        return Answer.json(200, jsons.encode({"id": response_id, "object": "response", "deleted": True}))

    async def _cancel(self, call: Call, response_id: str) -> Answer:
        return Answer.json(200, jsons.encode(await self._operations.cancel(response_id, call.caller)))

    async def _input_items(self, call: Call, response_id: str) -> Answer:
        query = call.query
        items, has_more = await self._operations.input_items(
            response_id,
            call.caller,
            limit=_limit(query.get("limit")),
            ascending=_ascending(query.get("order")),
            after=query.get("after"),
            before=query.get("before"),
        )
        return Answer.json(200, jsons.encode(_list([public_item(item) for item in items], has_more=has_more)))


def _session_headers(session_id: str) -> tuple[Header, ...]:
    return ((b"x-agent-session-id", session_id.encode("latin-1")),) if session_id else ()


def _response_id(call: Call) -> str:
    response_id = call.parameters["response_id"]
    if not ids.is_response_id(response_id):
        raise invalid_request("Malformed identifier.", f"responseId{{{response_id}}}", "invalid_parameters")
    return response_id


def _starting_number(starting_after: str | None) -> int:
    if starting_after is None:
        return 0
    try:
        return max(0, int(starting_after) + 1)
    except ValueError:
        message = "starting_after must be an integer"
        raise invalid_request(message, "starting_after", "invalid_request_error") from None


def _limit(text: str | None) -> int:
    if text is None:
        return _USUAL_ITEMS
    try:
        limit = int(text)
    except ValueError:
        message = f"limit must be an integer between 1 and {_MAX_ITEMS}"
        raise invalid_request(message, "limit", "invalid_request_error") from None
    if not 1 <= limit <= _MAX_ITEMS:
        raise invalid_request(f"limit must be between 1 and {_MAX_ITEMS}", "limit", "invalid_request_error")
    return limit


def _ascending(order: str | None) -> bool:
    if order not in (None, "asc", "desc"):
        raise invalid_request("order must be 'asc' or 'desc'", "order", "invalid_request_error")
    return order == "asc"


def _list(items: list[Json], *, has_more: bool) -> Mapping[str, object]:
    return {
        "object": "list",
        "data": items,
        "first_id": items[0].get("id") if items else None,
        "last_id": items[-1].get("id") if items else None,
        "has_more": has_more,
    }
