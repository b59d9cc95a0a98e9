"""What may be done with a response by its id: while it runs, and from the store (contract sections 4.7 to 4.10)."""

from cupola_agent.call import Caller
from cupola_agent.errors import ApiError, invalid_request, not_found
from cupola_agent.responses.log import EventLog
from cupola_agent.responses.objects import Json, public
from cupola_agent.responses.service import CANCEL_SECONDS, CUT_SECONDS, Responses
from cupola_agent.responses.storage import storage_failed
from cupola_agent.responses.turn import Stop, Turn
from cupola_agent.stores.base import NotFoundError, StoreError

_IN_TERMINAL_STATE = {"completed": "a completed response", "failed": "a failed response"}


class Operations:
    """Get, replay, cancel, delete and the items of the input."""

    def __init__(self, responses: Responses) -> None:
        self._responses = responses
        self._store = responses.store

    def _visible(self, response_id: str, caller: Caller) -> Turn | None:
        """The turn of this id that runs, where this user may know of it."""
        turn = self._responses.running(response_id)
        if turn is None or turn.settled:
            return None
        if turn.caller.user_id not in ("", caller.user_id) or not turn.stores:
            raise not_found(response_id)
        return turn

    async def get(self, response_id: str, caller: Caller) -> Json:
        """The response as it stands. Raises ApiError (404), also for one in the foreground that still runs."""
        turn = self._visible(response_id, caller)
        if turn is None:
            return public(await self._stored(response_id, caller))
        if not turn.background:
            raise not_found(response_id)
        return turn.output.response

    async def replay(self, response_id: str, caller: Caller) -> EventLog:
        """The events of a response. Raises ApiError (400) where they cannot be read again (contract section 4.8)."""
        turn = self._visible(response_id, caller)
        response = turn.output.response if turn is not None else await self._stored(response_id, caller)
        cannot = "This response cannot be streamed because it was not created with"
        if not response.get("background"):
            raise _not_streamable(f"{cannot} background=true.")
        log = self._responses.events(response_id)
        if log is None:
            ttl = "" if turn is not None else " or the stream TTL has expired"
            raise _not_streamable(f"{cannot} stream=true{ttl}.")
        return log

    async def cancel(self, response_id: str, caller: Caller) -> Json:
        """The response once it has been cancelled. Raises ApiError (contract section 4.9)."""
        turn = self._visible(response_id, caller)
        if turn is not None and not turn.background:
            raise not_found(response_id)
        if turn is not None:
            turn.stop(Stop.CANCELLED)
            if not await turn.wait(CANCEL_SECONDS):
                turn.cut()
                await turn.wait(CUT_SECONDS)
            response = turn.output.response
            self._responses.drop_events(response_id)
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
            await self._store.update(cancelled, caller)
        except StoreError as error:
            raise storage_failed(error) from error
        return cancelled

    async def delete(self, response_id: str, caller: Caller) -> None:
        """Raises ApiError (contract section 4.10)."""
        turn = self._visible(response_id, caller)
        if turn is not None:
            if not turn.background:
                raise not_found(response_id)
            message = "Cannot delete an in-flight response."
            raise invalid_request(message, "response_id", "invalid_request_error")
        try:
            await self._store.delete(response_id, caller)
        except NotFoundError as error:
            raise not_found(response_id) from error
        except StoreError as error:
            raise storage_failed(error) from error
        self._responses.drop_events(response_id)

    async def input_items(
        self, response_id: str, caller: Caller, *, limit: int, ascending: bool, after: str | None, before: str | None
    ) -> tuple[tuple[Json, ...], bool]:
        """Some of the items that led to a response, and whether there are more. Raises ApiError."""
        turn = self._visible(response_id, caller)
        if turn is not None and not turn.background:
            raise not_found(response_id)
        try:
            page = await self._store.input_items(
                response_id, caller, limit=limit, ascending=ascending, after=after, before=before
            )
        except NotFoundError as error:
            raise not_found(response_id) from error
        except StoreError as error:
            raise storage_failed(error) from error
        return page.items, page.has_more

    async def _stored(self, response_id: str, caller: Caller) -> Json:
        try:
            return await self._store.get(response_id, caller)
        except NotFoundError as error:
            raise not_found(response_id) from error
        except StoreError as error:
            raise storage_failed(error) from error


def _not_streamable(message: str) -> ApiError:
    return invalid_request(message, "stream", "invalid_request_error")


def _not_cancellable(message: str) -> ApiError:
    return invalid_request(message, "response_id", "invalid_request_error")
