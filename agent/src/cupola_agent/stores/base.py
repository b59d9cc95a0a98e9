"""What a store of responses does, whichever it is (contract section 4.12)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cupola_agent.call import Caller

__all__ = [
    "AlreadyExistsError",
    "Caller",
    "ConflictError",
    "ItemPage",
    "Json",
    "NotFoundError",
    "PreconditionFailedError",
    "RefusedError",
    "ResponseStore",
    "StoreError",
    "UnavailableError",
]

Json = dict[str, Any]


class StoreError(Exception):
    """A store could not do what it was asked.

    `status`, `code`, `message` and `param` are what a platform said, or what it would have said. `source` is who is
    to blame: the `user` whose request led here, or the `platform`.
    """

    default_status = 500
    default_code = "storage_error"
    source: Literal["user", "platform"] = "user"

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status or self.default_status
        self.code = code or self.default_code
        self.param = param


class NotFoundError(StoreError):
    """There is no such thing, or none that this caller may see."""

    default_status = 404
    default_code = "not_found"


class RefusedError(StoreError):
    """The request itself is wrong: it will be refused again."""

    default_status = 400
    default_code = "invalid_request"


class ConflictError(StoreError):
    """The state of the thing does not allow it; `code` says why."""

    default_status = 409
    default_code = "conflict"


class AlreadyExistsError(ConflictError):
    """The id or name is taken."""

    default_code = "already_exists"


class PreconditionFailedError(StoreError):
    """The thing has been changed since it was read: its ETag is another. `etag` is the current one where known."""

    default_status = 412
    default_code = "etag_mismatch"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        etag: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, param=param)
        self.etag = etag


class UnavailableError(StoreError):
    """The store does not work, is full, or was not reached in time. Whether a write was done is not known."""

    source = "platform"


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some items in the order asked for, and whether more follow."""

    items: tuple[Json, ...]
    has_more: bool


class ResponseStore(Protocol):
    """Where responses that may be read again are kept.

    A response made with a user id exists for that user alone; one made without is open to everyone. Reserved keys
    (`internal_metadata`) are kept. What is given must not be changed afterwards, what is returned may be. Every call
    may take long, and raises subclasses of StoreError only.
    """

    def open(self) -> None:
        """Begins to get ready, in the background, so that the first call finds it so. Never needed."""
        ...

    async def create(
        self, response: Json, input_items: Sequence[Json], history_item_ids: Sequence[str], caller: Caller
    ) -> None:
        """Keeps a response in whatever state with what led to it. Raises AlreadyExistsError when its id is taken."""
        ...

    async def update(self, response: Json, caller: Caller) -> None:
        """Replaces the whole response, output items included. Raises NotFoundError."""
        ...

    async def get(self, response_id: str, caller: Caller) -> Json:
        """Raises NotFoundError, also when the response is another user's."""
        ...

    async def delete(self, response_id: str, caller: Caller) -> None:
        """Deletes the response and its items. Raises NotFoundError."""
        ...

    async def input_items(
        self, response_id: str, caller: Caller, *, limit: int, ascending: bool, after: str | None, before: str | None
    ) -> ItemPage:
        """History and input of a response, oldest first when `ascending`; an unknown cursor is ignored.

        Raises NotFoundError.
        """
        ...

    async def items(self, item_ids: Sequence[str], caller: Caller) -> list[Json | None]:
        """The items in the order asked for, None where there is none."""
        ...

    async def history_item_ids(
        self, caller: Caller, *, previous_response_id: str | None, conversation_id: str | None, limit: int = -1
    ) -> list[str]:
        """Ids of the items before a new turn, oldest first; `limit` keeps the newest, -1 keeps all.

        Those of the previous response are its own history, its input and its output; those of a conversation the
        items of its finished responses. Raises NotFoundError for an unknown previous response.
        """
        ...

    async def close(self) -> None:
        """Ends what the store runs; what was acknowledged is kept."""
        ...
