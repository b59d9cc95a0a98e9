"""Responses and their store: what is kept of a turn, and what the caller is told when that fails (section 4.12)."""

from collections.abc import Sequence

from cupola_agent.call import Caller
from cupola_agent.errors import ApiError
from cupola_agent.responses.history import History
from cupola_agent.responses.objects import Json
from cupola_agent.stores.base import AlreadyExistsError, NotFoundError, RefusedError, ResponseStore, StoreError

STORAGE_ERROR = {
    "code": "storage_error",
    "message": "An internal error occurred while storing the response. Subsequent retrieval is not guaranteed. "
    "Please retry the request.",
}


class Record:
    """What a store keeps of one response: made once, then replaced. `begun` says that it was made before."""

    def __init__(
        self, store: ResponseStore, caller: Caller, given: Sequence[Json], history: History, *, begun: bool = False
    ) -> None:
        self._store = store
        self._caller = caller
        self._given = given
        self._history = history
        self._begun = begun

    async def keep(self, response: Json) -> None:
        """Raises StoreError."""
        if self._begun:
            await self._store.update(response, self._caller)
            return
        await self._store.create(response, self._given, self._history.item_ids, self._caller)
        self._begun = True


def storage_failed(error: StoreError) -> ApiError:
    """What the caller is told when a store does not do what it should."""
    if isinstance(error, NotFoundError):
        return ApiError(404, "invalid_request_error", error.message, param=error.param)
    if isinstance(error, RefusedError):
        return ApiError(400, error.code, error.message, param=error.param)
    if isinstance(error, AlreadyExistsError):
        return ApiError(409, "conflict", error.message, param="response_id")
    return ApiError(
        500,
        STORAGE_ERROR["code"],
        STORAGE_ERROR["message"],
        kind="server_error",
        source="platform",
        detail=f"{type(error).__name__}: {error.message}",
    )
