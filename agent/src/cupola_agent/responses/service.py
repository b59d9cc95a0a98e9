"""The responses of one agent that run, and the events of those that may be replayed (contract sections 4.7 and 4.13)."""

import asyncio
import logging
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
from cupola_agent.errors import ApiError, shutting_down
from cupola_agent.handlers import Handler
from cupola_agent.randomness import random_bytes
from cupola_agent.responses.history import History
from cupola_agent.responses.input import input_items
from cupola_agent.responses.lanes import Lanes
from cupola_agent.responses.log import EventLog
from cupola_agent.responses.objects import Json, new_response
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

CUT_SECONDS = 5.0
_SCAN_SECONDS = 300.0

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
        self.store.open()
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
        seconds = min(CANCEL_SECONDS, self._environment.grace)
        await asyncio.gather(*(turn.wait(seconds) for turn in turns))
        for turn in turns:
            turn.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CUT_SECONDS)
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
            return random_bytes(32).hex()[:63]
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
                await self._find(turn, history)
            except StoreError as error:
                self._leave_lane(turn)
                raise storage_failed(error) from error
        return turn

    async def _find(self, turn: Turn, history: History) -> None:
        """Finds what came before a turn, and the items that its input refers to. Raises StoreError."""
        await history.find()
        given = turn.context.input_items
        if any(item["type"] == "item_reference" for item in given):
            turn.context.input_items = await history.resolved(given)

    async def _wait_for_lane(self, turn: Turn, history: History) -> None:
        await self._lanes.wait_first(_lane(turn), turn)
        await self._find(turn, history)
        if turn.background:
            await turn.store_begun()

    def _leave_lane(self, turn: Turn) -> None:
        if self.options.steerable:
            self._lanes.leave(_lane(turn), turn)

    def _turn(self, asked: Asked, *, events: bool, persisted: Json | None = None) -> tuple[Turn, History]:
        fields = asked.fields
        background = bool(fields.get("background"))
        log = self._log(asked.response_id, background) if events else None
        append = None if log is None else log.append
        if persisted is None:
            created_at = int(time.time())
            response = new_response(
                fields, response_id=asked.response_id, session_id=asked.session_id, created_at=created_at
            )
            output = Output(response, append)
        else:
            created_at = persisted["created_at"]
            output = Output.restored(persisted, append, 0 if log is None else log.end)
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
        await self._find(turn, history)
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

    def running(self, response_id: str) -> Turn | None:
        """The turn of this id, unless it has ended."""
        return self._running.get(response_id)

    def events(self, response_id: str) -> EventLog | None:
        """The events of a response, while they may be read."""
        turn = self._running.get(response_id)
        if turn is not None:
            return turn.log
        log = self._replays.get(response_id)
        if log is None and self._resilience is not None:
            return self._resilience.journals.read(response_id)
        return log

    def drop_events(self, response_id: str) -> None:
        """Makes the events of a response unreadable."""
        self._replays.drop(response_id)
        if self._resilience is not None:
            self._resilience.journals.remove(response_id)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("response %s failed in the library", task.get_name(), exc_info=error)


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
