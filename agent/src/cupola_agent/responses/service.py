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
from cupola_agent.responses.history import History
from cupola_agent.responses.input import input_items
from cupola_agent.responses.lanes import Lanes
from cupola_agent.responses.log import EventLog
from cupola_agent.responses.objects import Json, new_response, public
from cupola_agent.responses.options import ResponseOptions
from cupola_agent.responses.output import Output
from cupola_agent.responses.recovery import recover
from cupola_agent.responses.replays import Replays
from cupola_agent.responses.request import checked_response_id
from cupola_agent.responses.resilience import Resilience
from cupola_agent.responses.storage import Record, storage_failed
from cupola_agent.responses.turn import Stop, Turn
from cupola_agent.stores.base import NotFoundError, ResponseStore, StoreError
from cupola_agent.tasks.base import Task as StoredTask

CANCEL_SECONDS = 10.0
"""How long a handler that was told to end may take to do so."""

_CUT_SECONDS = 5.0
_SCAN_SECONDS = 300.0
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
        self,
        handler: Handler,
        environment: Environment,
        options: ResponseOptions,
        store: ResponseStore,
        resilience: Resilience | None = None,
    ) -> None:
        self._handler = handler
        self._environment = environment
        self.options = options
        self.store = store
        self._running: dict[str, Turn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replays = Replays(time.monotonic)
        self._lanes = Lanes()
        self._resilience = resilience
        self._scanning: asyncio.Task[None] | None = None
        self.draining = False

    async def start(self) -> None:
        """Before the first call: goes on with what another process left."""
        if self._resilience is not None:
            await asyncio.to_thread(self._resilience.journals.sweep)
            self._scanning = asyncio.create_task(self._scan(self._resilience))

    async def _scan(self, resilience: Resilience) -> None:
        while not self.draining:
            try:
                await recover(self, resilience)
            except Exception:
                logger.exception("responses that another process left could not be looked for")
            await asyncio.sleep(_SCAN_SECONDS)

    def drain(self) -> None:
        """No new responses; those that run are told to end."""
        self.draining = True
        for turn in list(self._running.values()):
            turn.stop(Stop.SHUTDOWN)

    async def stop(self) -> None:
        """Waits for what runs, cuts off what does not end, and closes the stores."""
        self.drain()
        if self._scanning is not None:
            self._scanning.cancel()
            await asyncio.wait((self._scanning,))
        turns = list(self._running.values())
        await asyncio.gather(*(turn.wait(CANCEL_SECONDS) for turn in turns))
        for turn in turns:
            turn.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CUT_SECONDS)
        await self.store.close()
        if self._resilience is not None:
            await self._resilience.close()

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
        if asked.chosen:
            await self._check_free(asked.response_id, asked.caller)
        turn, history = self._turn(asked, events=events)
        if self.options.steerable:
            self._lanes.enter(_lane(turn), turn)
        if remembered is not None:
            history.remember(remembered)
        elif self.options.steerable and not self._lanes.is_first(_lane(turn), turn):
            turn.before = partial(self._wait_for_lane, turn, history)
        else:
            try:
                await history.find()
            except StoreError as error:
                self._leave_lane(turn)
                raise storage_failed(error) from error
        return turn

    async def _wait_for_lane(self, turn: Turn, history: History) -> None:
        await self._lanes.wait_first(_lane(turn), turn)
        await history.find()
        if turn.background:
            await turn.store_begun()

    def _leave_lane(self, turn: Turn) -> None:
        if self.options.steerable:
            self._lanes.leave(_lane(turn), turn)

    def _turn(self, asked: Asked, *, events: bool, persisted: Json | None = None) -> tuple[Turn, History]:
        fields = asked.fields
        background = bool(fields.get("background"))
        log = self._log(asked.response_id, background) if events else None
        if persisted is None:
            created_at = int(time.time())
            output = Output(
                new_response(fields, response_id=asked.response_id, session_id=asked.session_id, created_at=created_at),
                log,
            )
        else:
            created_at = persisted["created_at"]
            output = Output.restored(persisted, log)
        given = input_items(fields.get("input"), output.partition)
        previous, conversation = fields.get("previous_response_id"), conversation_of(fields)
        history = History(
            self.store,
            asked.caller,
            previous_response_id=previous,
            conversation_id=conversation,
            given=given,
            limit=self.options.history_limit,
        )
        context = ResponseContext(
            asked.caller.request_id,
            asked.session_id,
            asked.headers,
            asked.response_id,
            created_at,
            conversation,
            previous,
            asked.query,
            given,
            chain_id=_chain_id(conversation, output.partition),
            persisted_response=persisted,
            fetch_history=history.items,
        )
        record = None
        if fields.get("store") is not False:
            record = Record(self.store, asked.caller, given, history, begun=persisted is not None)
        turn = Turn(self._handler, fields, context, asked.caller, output, log, record)
        turn.only_reader = log is not None and not background
        turn.resilient = background and self._resilience is not None
        return turn, history

    def _log(self, response_id: str, background: bool) -> EventLog:
        if background and self._resilience is not None:
            return self._resilience.journals.open(response_id)
        return EventLog()

    async def resume(self, asked: Asked, persisted: Json, *, events: bool) -> Turn:
        """A turn that another process began, from the state it stored last. Raises StoreError."""
        turn, history = self._turn(asked, events=events, persisted=persisted)
        if self.options.steerable:
            self._lanes.enter(_lane(turn), turn)
        await history.find()
        return turn

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
            self._leave_lane(turn)

    def start_turn(self, turn: Turn, task: StoredTask | None = None) -> None:
        """Runs a turn in a task of its own; `task` is the stored one of a resilient response."""
        self._running[turn.context.response_id] = turn
        if task is not None and self._resilience is not None:
            work = self._resilience.run(task, partial(self.run, turn), turn)
        else:
            work = self.run(turn)
        running = asyncio.create_task(work, name=turn.context.response_id)
        self._tasks.add(running)
        running.add_done_callback(self._finished)

    async def start_background(self, turn: Turn) -> None:
        """Stores a response that others may ask for from now on, and runs it. Raises ApiError."""
        task = None
        try:
            if self._resilience is not None:
                task = await self._resilience.begin(turn)
            if turn.before is None:
                await turn.store_begun()
        except StoreError as error:
            self._leave_lane(turn)
            if task is not None and self._resilience is not None:
                await self._resilience.drop(task)
            raise storage_failed(error) from error
        self.start_turn(turn, task)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("response %s failed in the library", task.get_name(), exc_info=error)

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
        log = turn.log if turn is not None else self._replays.get(response_id) or self._journal(response_id)
        if log is None:
            ttl = "" if turn is not None else " or the stream TTL has expired"
            raise _not_streamable(f"{cannot} stream=true{ttl}.")
        return log

    def _journal(self, response_id: str) -> EventLog | None:
        return None if self._resilience is None else self._resilience.journals.read(response_id)

    def _drop_events(self, response_id: str) -> None:
        self._replays.drop(response_id)
        if self._resilience is not None:
            self._resilience.journals.remove(response_id)

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
            self._drop_events(response_id)
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
        self._drop_events(response_id)

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


def _lane(turn: Turn) -> str:
    """The key of its conversation: all responses of a chain are in one partition."""
    return turn.context.conversation_id or turn.output.partition


def _chain_id(conversation: str | None, partition: str) -> str:
    return f"cchain_{conversation}" if conversation else f"rchain_{partition}"


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
