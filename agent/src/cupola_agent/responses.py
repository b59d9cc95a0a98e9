"""The Responses protocol on the container side (contract section 4)."""

import os
import time
from collections.abc import Mapping
from typing import Any

from cupola_agent import ids, jsons
from cupola_agent.asgi import Answer, json_answer
from cupola_agent.context import ResponseContext, common_fields
from cupola_agent.environment import Environment
from cupola_agent.errors import ApiError, error_answer, invalid_request
from cupola_agent.handlers import Handler
from cupola_agent.http import Request
from cupola_agent.responses.input import input_items
from cupola_agent.logs import add_log_fields
from cupola_agent.objects import Json
from cupola_agent.routing import Endpoint, Route
from cupola_agent.store import MemoryStore, StoredResponse
from cupola_agent.turn import Turn, sse_frames
from cupola_agent.validation import checked_response_id, parse_request

ARGUMENTS = ("input", "context", "request")
SESSION_HEADER = "x-agent-session-id"

_SSE_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("connection", "keep-alive"),
    ("x-accel-buffering", "no"),
)


class Responses:
    """The routes below `/responses`."""

    def __init__(self, handler: Handler, environment: Environment, store: MemoryStore) -> None:
        self._handler = handler
        self._environment = environment
        self._store = store

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", "/responses", self._with_errors(self._create)),
            Route("GET", "/responses/{response_id}", self._with_errors(self._get)),
            Route("DELETE", "/responses/{response_id}", self._with_errors(self._delete)),
        )

    def _with_errors(self, endpoint: Endpoint) -> Endpoint:
        async def answered(request: Request) -> Answer:
            try:
                return _in_session(await endpoint(request), self._environment.session_id)
            except ApiError as error:
                answer = error_answer(error, request.request_id)
                return _in_session(answer, self._environment.session_id)

        return answered

    async def _create(self, request: Request) -> Answer:
        fields = parse_request(request.body)
        response_id = self._response_id(request, fields)
        session_id = self._session_id(fields)
        add_log_fields(response_id=response_id, session_id=session_id)
        try:
            if response_id in self._store:
                raise ApiError(409, "conflict", f"Response with id '{response_id}' already exists.")
            turn = self._turn(request, fields, response_id, session_id)
            if fields.get("stream"):
                answer = Answer(200, _SSE_HEADERS, sse_frames(turn))
            else:
                answer = json_answer(200, jsons.encode(await turn.response()))
        except ApiError as error:
            answer = error_answer(error, request.request_id)
        return _in_session(answer, session_id)

    def _turn(self, request: Request, fields: Json, response_id: str, session_id: str) -> Turn:
        items = input_items(fields.get("input"), ids.partition_of(response_id) or ids.new_partition())
        context = ResponseContext(
            **common_fields(request, session_id),
            response_id=response_id,
            created_at=int(time.time()),
            conversation_id=_conversation_id(fields),
            previous_response_id=fields.get("previous_response_id"),
            query_parameters=request.query,
            input_items=items,
        )

        def keep(response: Json) -> None:
            if response["store"]:
                self._store.put(StoredResponse(response, items, context.user_id))

        return Turn(self._handler, context, fields, keep)

    def _response_id(self, request: Request, fields: Mapping[str, Any]) -> str:
        chosen = request.headers.get("x-agent-response-id") or fields.get("response_id")
        if chosen:
            return checked_response_id(chosen)
        return ids.new_id(ids.RESPONSE_PREFIX, _inherited_partition(fields) or ids.new_partition())

    def _session_id(self, fields: Mapping[str, Any]) -> str:
        """Contract section 4.2: the request's, the sandbox's, the conversation's, or a new one."""
        known = fields.get("agent_session_id") or self._environment.session_id
        if known:
            return str(known)
        anchor = _inherited_partition(fields) or _conversation_id(fields)
        if not anchor:
            return os.urandom(32).hex()[:63]
        from hashlib import sha256  # loads OpenSSL: not a price for every cold start

        seed = f"{self._environment.agent_name}:{self._environment.agent_version}:{anchor}"
        return sha256(seed.encode(errors="surrogatepass")).hexdigest()[:63]

    async def _get(self, request: Request) -> Answer:
        stored = self._stored(request)
        if request.query.get("stream") == "true":
            raise invalid_request(
                "This response cannot be streamed because it was not created with background=true.",
                "stream",
                "invalid_request_error",
            )
        return json_answer(200, jsons.encode(stored.response))

    async def _delete(self, request: Request) -> Answer:
        response_id = self._stored(request).response_id
        self._store.delete(response_id)
        return json_answer(200, jsons.encode({"id": response_id, "object": "response", "deleted": True}))

    def _stored(self, request: Request) -> StoredResponse:
        response_id = request.path_parameters["response_id"]
        if not ids.is_response_id(response_id):
            raise invalid_request("Malformed identifier.", f"responseId{{{response_id}}}", "invalid_parameters")
        stored = self._store.get(response_id, request.headers.get("x-agent-user-id", ""))
        if stored is None:
            message = f"Response with id '{response_id}' not found."
            raise ApiError(404, "invalid_request_error", message, param="response_id")
        return stored


def _in_session(answer: Answer, session_id: str) -> Answer:
    """The answer with the header of its session, unless it has one already or there is none."""
    named = any(name == SESSION_HEADER for name, _ in answer.headers)
    return answer if named or not session_id else answer.with_headers((SESSION_HEADER, session_id))


def _conversation_id(fields: Mapping[str, Any]) -> str | None:
    conversation = fields.get("conversation")
    return conversation["id"] if isinstance(conversation, dict) else conversation


def _inherited_partition(fields: Mapping[str, Any]) -> str | None:
    """The partition of the previous response, else of the conversation: a chain stays in one partition."""
    for ancestor in (fields.get("previous_response_id"), _conversation_id(fields)):
        partition = ids.partition_of(ancestor) if ancestor else None
        if partition:
            return partition
    return None
