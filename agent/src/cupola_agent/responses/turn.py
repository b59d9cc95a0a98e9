"""One turn of a conversation: runs the handler, and ends its response exactly once (contract sections 4.6 and 4.9)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

from cupola_agent import items
from cupola_agent.call import Caller, enter_call, leave_call
from cupola_agent.context import LeftForRecovery, ResponseContext
from cupola_agent.handlers import Handler, is_stream
from cupola_agent.responses.arguments import arguments
from cupola_agent.responses.log import EventLog
from cupola_agent.responses.messages import UnseenMessage
from cupola_agent.responses.output import Ending, Json, Output, OutputError
from cupola_agent.responses.raw import RawEvents, is_raw_event
from cupola_agent.responses.storage import STORAGE_ERROR, Record
from cupola_agent.responses.writers import MessageWriter, write_item
from cupola_agent.stores.base import StoreError

if TYPE_CHECKING:
    from cupola_agent.responses.stream import ResponseStream

_SLICE = 0.0005
"""Seconds for which a handler that never waits may keep the loop for itself."""

logger = logging.getLogger("cupola_agent")


class Stop(Enum):
    """Why a turn is told to end before its handler has."""

    CANCELLED = "a client cancelled the response"
    DISCONNECTED = "the client left"
    SHUTDOWN = "the process was told to stop"
    STEERED = "a newer turn waits"
    EVICTED = "another process has taken the response over"


class Turn:
    """One run of the handler. `log` takes its events, where anybody may see them.

    It goes from waiting to handling to ending to ended, and `run` is what moves it. `left` is true when the handler
    left the response to the next process, or was cut off by a shutdown where it is resilient.
    """

    def __init__(
        self,
        handler: Handler,
        fields: Json,
        context: ResponseContext,
        caller: Caller,
        output: Output,
        log: EventLog | None,
        record: Record | None,
    ) -> None:
        self.fields: Json = fields
        self.context: ResponseContext = context
        self.output = output
        self.log = log
        self.caller = caller
        self.left = False
        self.storage_failed: StoreError | None = None
        self._handler = handler
        self._record = record
        self._message: MessageWriter | UnseenMessage | None = None
        self._raw: RawEvents | None = None
        self.stream: ResponseStream | None = None
        self._usage: Json | None = None
        self._raised = False
        self._handling: asyncio.Task[Any] | None = None
        self._stop: Stop | None = None
        self._slice_end = 0.0
        self.ended = False
        self.settled = False
        """Whether it has come to its terminal state, and the store has that."""
        self._waiting: asyncio.Event | None = None
        self.resilient = False
        self.only_reader = False
        self.before: Callable[[], Awaitable[None]] | None = None
        """What the handler has to wait for; the response is queued until then."""

    @property
    def background(self) -> bool:
        return bool(self.fields.get("background"))

    @property
    def stores(self) -> bool:
        return self._record is not None

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end; false after `timeout` seconds."""
        if not self.ended:
            if self._waiting is None:
                self._waiting = asyncio.Event()
            try:
                async with asyncio.timeout(timeout):
                    await self._waiting.wait()
            except TimeoutError:
                return False
        return True

    async def run(self) -> None:
        """Runs the handler to its end, and tells it. Raises only CancelledError, when somebody else cancels it."""
        try:
            self._begin()
            ending = await self._ending()
            if ending is None:
                self.left = True
                return
            await self._settle(ending.now())
            self.output.tell_end()
            if self.log is not None:
                await self.log.written()
        finally:
            self.ended = True
            if self._waiting is not None:
                self._waiting.set()
            if self.log is not None:
                self.log.close()

    def _begin(self) -> None:
        if self.before is not None:
            self.output.change(status="queued")
            self.output.lifecycle("created")
            self.output.lifecycle("queued")
        elif self.context.is_recovery:
            # What a reader has of items that were not finished is void (contract section 4.13).
            self.output.lifecycle("in_progress")
        elif self.output.seen:
            self.output.begin()

    async def _settle(self, ending: Ending) -> None:
        """Stores the response in its last state before anybody sees it there."""
        if ending.status != "cancelled":
            self._interrupt()
        if self._record is not None and (self.log is not None or self.background or not self.failed_at_once):
            try:
                await self._record.keep(self.output.stored_as(ending))
            except StoreError as error:
                logger.error("response %s could not be stored: %s", self.context.response_id, error.message)
                self.storage_failed = error
                ending = Ending.failed(STORAGE_ERROR)
        self.output.settle(ending)
        self.settled = self.storage_failed is None

    @property
    def failed_at_once(self) -> bool:
        """Whether the handler failed before it said anything: the caller gets an error, as if it had never asked."""
        return self._raised and self.output.items_count == 0

    async def store_begun(self) -> None:
        """Stores the response in its first state. Raises StoreError."""
        if self._record is not None:
            await self._record.keep(self.output.stored)

    def stop(self, why: Stop) -> None:
        """Tells the handler to end: by its context when it watches that, else by cancelling it."""
        if self.ended or self._stop in (Stop.CANCELLED, Stop.EVICTED):
            return
        signals = self.context.signals
        signals.client_cancelled = signals.client_cancelled or why in (Stop.CANCELLED, Stop.DISCONNECTED)
        signals.shutdown = signals.shutdown or why is Stop.SHUTDOWN
        self._stop = why
        signals.cancel()
        if why in (Stop.DISCONNECTED, Stop.EVICTED) or not (signals.watched or why is Stop.SHUTDOWN):
            self.cut()

    def cut(self) -> None:
        """Cancels a handler that was told to end and has not."""
        if self._handling is not None:
            self._handling.cancel()

    async def _ending(self) -> Ending | None:
        """How the handler ended; None when the response stays for the next process."""
        if self._told(Stop.CANCELLED, Stop.DISCONNECTED):
            return Ending.cancelled()
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        self._handling = task
        try:
            token = enter_call(self.caller)
            try:
                if self.before is not None:
                    await self.before()
                    self.output.change(status="in_progress")
                    self.output.lifecycle("in_progress")
                await self._handle()
            finally:
                leave_call(token)
        except asyncio.CancelledError:
            self._handling = None
            if self._stop is None or task is None or task.uncancel() > before:
                raise
            return self._cut_off()
        except LeftForRecovery:
            if self.resilient:
                return None
            logger.error("a handler that is not resilient called exit_for_recovery")
            return Ending.failed()
        except OutputError as error:
            logger.error("the responses handler broke the protocol: %s", error)
            self._raised = True
            return Ending.failed()
        except StoreError as error:
            logger.error("a store failed during the responses handler: %s", error.message)
            return Ending.failed(STORAGE_ERROR)
        except Exception:
            logger.exception("the responses handler failed")
            self._raised = True
            if self._told(Stop.CANCELLED, Stop.DISCONNECTED):
                return Ending.cancelled()
            said = self.output.ending
            return said if said is not None and said.status == "failed" else Ending.failed()
        finally:
            self._handling = None
        if self._told(Stop.CANCELLED, Stop.DISCONNECTED):
            return Ending.cancelled()
        return self.output.ending or Ending.completed(self._usage)

    def _told(self, *reasons: Stop) -> bool:
        return self._stop in reasons

    def _cut_off(self) -> Ending | None:
        """How a response ends of which the handler was cancelled."""
        if self._told(Stop.EVICTED) or (self._told(Stop.SHUTDOWN) and self.resilient):
            return None
        if self._told(Stop.SHUTDOWN):
            return Ending.failed()
        return Ending.completed(self._usage) if self._told(Stop.STEERED) else Ending.cancelled()

    async def _handle(self) -> None:
        result = await self._handler.call(await arguments(self._handler.names, self))
        if is_stream(result):
            self._slice_end = monotonic() + _SLICE
            async with aclosing(result) as pieces:
                async for piece in pieces:
                    self._give(piece)
                    if monotonic() > self._slice_end:
                        await self._breathe()
        elif isinstance(result, list | tuple):
            for piece in result:
                self._give(piece)
        elif result is not None:
            self._give(result)
        self._close_message()
        if self._raw is not None:
            self._raw.finish()
        if self.stream is not None:
            self.stream.finish()

    async def _breathe(self) -> None:
        """Lets others have the loop, and a slow reader catch up."""
        await asyncio.sleep(0)
        await self.drained()
        self._slice_end = monotonic() + _SLICE

    async def drained(self) -> None:
        """Waits while the only reader is far behind."""
        log = self.log
        while log is not None and self.only_reader and log.crowded:
            await log.room()

    async def checkpoint(self) -> None:
        """Stores the response as it stands, where another process could go on with it."""
        if self.resilient and self._record is not None:
            await self._record.keep(self.output.stored)

    def _give(self, piece: Any) -> None:
        """Takes one thing that the handler gave."""
        if type(piece) is str:
            message = self._message
            if message is None:
                message = self._message = self._open_message()
            message.text(piece)
            return
        if isinstance(piece, str):
            self._give(str(piece))
            return
        if is_raw_event(piece):
            if self._raw is None:
                if self.output.items_count:
                    raise OutputError("the handler gave a whole event after text or items")
                self._raw = RawEvents(self.output)
            self._raw.apply(piece)
            return
        self._close_message()
        if isinstance(piece, items.Usage):
            self._usage = piece.to_json()
        elif isinstance(piece, items.Failed):
            self.output.end(Ending.failed({"code": piece.code, "message": piece.message}))
        elif isinstance(piece, items.Incomplete):
            self.output.end(Ending.incomplete(piece.reason))
        else:
            write_item(self.output, piece)

    def _open_message(self) -> MessageWriter | UnseenMessage:
        if self._raw is not None:
            raise OutputError("the handler gave text between whole events")
        return MessageWriter(self.output) if self.output.seen else UnseenMessage(self.output)

    def _close_message(self) -> None:
        if self._message is not None:
            self._message.done()
            self._message = None

    def _interrupt(self) -> None:
        """Ends what the handler left open, as incomplete."""
        for writer in (self._message, self._raw, self.stream):
            if writer is not None:
                writer.interrupt()
        self._message = None
