"""The responses of one agent: those that run, those that may be replayed, those in the store (sections 4.7 to 4.11)."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from cupola_agent import ids
from cupola_agent.call import Caller
from cupola_agent.context import ResponseContext
from cupola_agent.environment import Environment
from cupola_agent.errors import ApiError, invalid_request, not_found, shutting_down
from cupola_agent.handlers import Handler
from cupola_agent.responses.compaction import compacted, expanded
from cupola_agent.responses.input import input_items
from cupola_agent.responses.log import EventLog
from cupola_agent.responses.objects import Json, new_response, public
from cupola_agent.responses.options import ResponseOptions
from cupola_agent.responses.output import Output
from cupola_agent.responses.request import checked_response_id
from cupola_agent.responses.replays import Replays
from cupola_agent.responses.storage import Record, storage_failed
from cupola_agent.responses.turn import Stop, Turn
from cupola_agent.stores.base import NotFoundError, ResponseStore, StoreError

CANCEL_SECONDS = 10.0
"""How long a handler that was told to end may take to do so."""

_CUT_SECONDS = 5.0
_IN_TERMINAL_STATE = {"completed": "a completed response", "failed": "a failed response"}

logger = logging.getLogger("cupola_agent")


@dataclass(slots=True)
class Asked:
    """What was asked for, by whom, and under which ids; `chosen` says that somebody else chose the response's id."""

    fields: Json
    response_id: str
    chosen: bool
    session_id: str
    caller: Caller
    headers: Mapping[str, str]
    query: Mapping[str, str]


class Responses:
    """Runs turns and finds them again. It owns their tasks: `stop` waits for all of them."""

    def __init__(
        self, handler: Handler, environment: Environment, options: ResponseOptions, store: ResponseStore
    ) -> None:
        self._handler = handler
        self._environment = environment
        self.options = options
        self.store = store
        self._running: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replays = Replays(time.monotonic)
        self.draining = False

    async def start(self) -> None:
        """Before the first call."""

    def drain(self) -> None:
        """No new responses; those that run are told to end."""
        self.draining = True
        for turn in list(self._running.values()):
            turn.stop(Stop.SHUTDOWN)

    async def stop(self) -> None:
        """Waits for what runs, cuts off what does not end, and closes the store."""
        self.drain()
        turns = list(self._running.values())
        await asyncio.gather(*(turn.wait(CANCEL_SECONDS) for turn in turns))
        for turn in turns:
            turn.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CUT_SECONDS)
        await self.store.close()

    def identify(self, fields: Json, headers: Mapping[str, str]) -> tuple[str, bool]:
        """The id of a new response, and whether somebody else chose it. Raises ApiError (400) for another shape."""
        chosen = headers.get("x-agent-response-id") or fields.get("response_id")
        if chosen:
            return checked_response_id(chosen), True
        return ids.new_id(ids.RESPONSE_PREFIX, _inherited_partition(fields) or ids.new_partition()), False

    def session_of(self, fields: Mapping[str, Any]) -> str:
        """Contract section 4.2: the request's, the sandbox's, the conversation's, or a new one."""
        known = fields.get("agent_session_id") or self._environment.session_id
        if known:
            return str(known)
        anchor = _inherited_partition(fields) or conversation_of(fields)
        if not anchor:
            return os.urandom(32).hex()[:63]
        from hashlib import sha256  # loads OpenSSL: not a price for every cold start

        seed = f"{self._environment.agent_name}:{self._environment.agent_version}:{anchor}"
        return sha256(seed.encode(errors="surrogatepass")).hexdigest()[:63]

    async def begin(self, asked: Asked, *, events: bool, remembered: Sequence[Json] | None = None) -> Turn:
        """A turn that has not run yet, with its history found, which `remembered` stands in for.

        Raises ApiError; 409 when the id is taken.
        """
        if self.draining:
            raise shutting_down()
        fields, caller = asked.fields, asked.caller
        if asked.chosen:
            await self._check_free(asked.response_id, caller)
        previous, conversation = fields.get("previous_response_id"), conversation_of(fields)
        if remembered is not None:
            return self._turn(asked, [item["id"] for item in remembered if "id" in item], remembered, events=events)
        history: Sequence[str] = ()
        if previous or conversation:
            try:
                history = await self.store.history_item_ids(
                    caller,
                    previous_response_id=previous,
                    conversation_id=conversation,
                    limit=self.options.history_limit,
                )
            except StoreError as error:
                raise storage_failed(error) from error
        return self._turn(asked, history, None, events=events)

    def _turn(
        self, asked: Asked, history: Sequence[str], remembered: Sequence[Json] | None, *, events: bool
    ) -> Turn:
        fields = asked.fields
        background, created_at = bool(fields.get("background")), int(time.time())
        log = EventLog() if events else None
        output = Output(
            new_response(fields, response_id=asked.response_id, session_id=asked.session_id, created_at=created_at), log
        )
        given = input_items(fields.get("input"), output.partition)
        context = ResponseContext(
            asked.caller.request_id,
            asked.session_id,
            asked.headers,
            asked.response_id,
            created_at,
            conversation_of(fields),
            fields.get("previous_response_id"),
            asked.query,
            given,
            fetch_history=partial(self._history, history, remembered, given, asked.caller),
        )
        stores = fields.get("store") is not False
        record = Record(self.store, asked.caller, given, history) if stores else None
        turn = Turn(self._handler, fields, context, asked.caller, output, log, record)
        turn.only_reader = log is not None and not background
        return turn

    async def _history(
        self, item_ids: Sequence[str], remembered: Sequence[Json] | None, given: Sequence[Json], caller: Caller
    ) -> Sequence[Json]:
        """The items before a turn, those that its input carries in compacted form among them."""
        if remembered is None:
            found = await self.store.items(item_ids, caller) if item_ids else []
            remembered = [item for item in found if item is not None]
        return [piece for item in (*remembered, *compacted(given)) for piece in expanded(item)]

    async def _check_free(self, response_id: str, caller: Caller) -> None:
        taken = response_id in self._running
        if not taken:
            with suppress(NotFoundError):
                await self.store.get(response_id, caller)
                taken = True
        if taken:
            raise ApiError(409, "conflict", f"Response with id '{response_id}' already exists.", param="response_id")

    async def run(self, turn: Turn) -> None:
        """Runs a turn in the task of its caller."""
        response_id = turn.context.response_id
        self._running[response_id] = turn
        try:
            await turn.run()
        finally:
            if self._running.get(response_id) is turn:
                del self._running[response_id]
            if turn.log is not None and not turn.only_reader:
                self._replays.add(response_id, turn.log)

    def start_turn(self, turn: Turn) -> None:
        """Runs a turn in a task of its own."""
        self._running[turn.context.response_id] = turn
        task = asyncio.create_task(self.run(turn), name=turn.context.response_id)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("response %s failed in the library", task.get_name(), exc_info=error)

    async def keep_begun(self, turn: Turn) -> None:
        """Stores a response that others may ask for while it runs. Raises ApiError."""
        try:
            await turn.store_begun()
        except StoreError as error:
            raise storage_failed(error) from error

    def visible(self, response_id: str, caller: Caller) -> Turn | None:
        """The turn of this id that runs, where this user may know of it."""
        turn = self._running.get(response_id)
        if turn is None:
            return None
        if turn.caller.user_id not in ("", caller.user_id) or not turn.stores:
            raise not_found(response_id)
        return turn

    async def get(self, response_id: str, caller: Caller) -> Json:
        """The response as it stands. Raises ApiError (404), also for one in the foreground that still runs."""
        turn = self.visible(response_id, caller)
        if turn is None:
            return public(await self._stored(response_id, caller))
        if not turn.background:
            raise not_found(response_id)
        return turn.output.response

    async def replay(self, response_id: str, caller: Caller) -> EventLog:
        """The events of a response. Raises ApiError (400) where they cannot be read again (contract section 4.8)."""
        turn = self.visible(response_id, caller)
        response = turn.output.response if turn is not None else await self._stored(response_id, caller)
        cannot = "This response cannot be streamed because it was not created with"
        if not response.get("background"):
            raise _not_streamable(f"{cannot} background=true.")
        log = turn.log if turn is not None else self._replays.get(response_id)
        if log is None:
            ttl = "" if turn is not None else " or the stream TTL has expired"
            raise _not_streamable(f"{cannot} stream=true{ttl}.")
        return log

    async def cancel(self, response_id: str, caller: Caller) -> Json:
        """The response once it has been cancelled. Raises ApiError (contract section 4.9)."""
        turn = self.visible(response_id, caller)
        if turn is not None and not turn.background:
            raise not_found(response_id)
        if turn is not None:
            turn.stop(Stop.CANCELLED)
            if not await turn.wait(CANCEL_SECONDS):
                turn.cut()
                await turn.wait(_CUT_SECONDS)
            response = turn.output.response
            self._replays.drop(response_id)
        else:
            response = public(await self._stored(response_id, caller))
        status = response["status"]
        if not response.get("background"):
            raise _not_cancellable("Cannot cancel a synchronous response.")
        if status == "cancelled":
            return response
        if status in ("queued", "in_progress"):
            return await self._cancel_abandoned(response, caller)
        raise _not_cancellable(f"Cannot cancel {_IN_TERMINAL_STATE.get(status, 'a response in terminal state')}.")

    async def _cancel_abandoned(self, response: Json, caller: Caller) -> Json:
        """Cancels a response whose process ended without ending it."""
        cancelled = {**response, "status": "cancelled", "output": []}
        try:
            await self.store.update(cancelled, caller)
        except StoreError as error:
            raise storage_failed(error) from error
        return cancelled

    async def delete(self, response_id: str, caller: Caller) -> None:
        """Raises ApiError (contract section 4.10)."""
        turn = self.visible(response_id, caller)
        if turn is not None:
            if not turn.background:
                raise not_found(response_id)
            message = "Cannot delete an in-flight response."
            raise invalid_request(message, "response_id", "invalid_request_error")
        try:
            await self.store.delete(response_id, caller)
        except NotFoundError as error:
            raise not_found(response_id) from error
        except StoreError as error:
            raise storage_failed(error) from error
        self._replays.drop(response_id)

    async def input_items(
        self, response_id: str, caller: Caller, *, limit: int, ascending: bool, after: str | None, before: str | None
    ) -> tuple[tuple[Json, ...], bool]:
        """Some of the items that led to a response, and whether there are more. Raises ApiError."""
        turn = self.visible(response_id, caller)
        if turn is not None and not turn.background:
            raise not_found(response_id)
        try:
            page = await self.store.input_items(
                response_id, caller, limit=limit, ascending=ascending, after=after, before=before
            )
        except NotFoundError as error:
            raise not_found(response_id) from error
        except StoreError as error:
            raise storage_failed(error) from error
        return page.items, page.has_more

    async def _stored(self, response_id: str, caller: Caller) -> Json:
        try:
            return await self.store.get(response_id, caller)
        except NotFoundError as error:
            raise not_found(response_id) from error
        except StoreError as error:
            raise storage_failed(error) from error


def conversation_of(fields: Mapping[str, Any]) -> str | None:
    conversation = fields.get("conversation")
    return conversation["id"] if isinstance(conversation, dict) else conversation


def _inherited_partition(fields: Mapping[str, Any]) -> str | None:
    """The partition of the previous response, else of the conversation: a chain stays in one partition."""
    for ancestor in (fields.get("previous_response_id"), conversation_of(fields)):
        partition = ids.partition_of(ancestor) if ancestor else None
        if partition:
            return partition
    return None


def _not_streamable(message: str) -> ApiError:
    return invalid_request(message, "stream", "invalid_request_error")


def _not_cancellable(message: str) -> ApiError:
    return invalid_request(message, "response_id", "invalid_request_error")
