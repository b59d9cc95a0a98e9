"""Errors of the Responses protocol and who is to blame for them (contract sections 3.2 and 4.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from cupola_agent import jsons
from cupola_agent.asgi import Answer, json_answer

SOURCE_HEADER = "x-platform-error-source"
DETAIL_HEADER = "x-platform-error-detail"

_MAX_DETAIL = 2048
_CUT = "...[truncated]"


class ApiError(Exception):
    """An error to answer. `source` is `user`, `platform` or `upstream` (the developer's handler)."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str = "invalid_request_error",
        source: str = "user",
        details: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind
        self.source = source
        self.details = tuple(details)


def invalid_request(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    return ApiError(400, code, message, param=param)


def handler_failed() -> ApiError:
    """The handler raised before it gave anything. The caller learns no more than that."""
    return ApiError(500, "server_error", "internal server error", kind="server_error", source="upstream")


def error_answer(error: ApiError, request_id: str) -> Answer:
    body: dict[str, Any] = {
        "message": error.message,
        "type": error.kind,
        "code": error.code,
        "param": error.param,
    }
    if error.details:
        body["details"] = list(error.details)
    if error.status == 400:
        body["additionalInfo"] = {"request_id": request_id}
    return json_answer(error.status, jsons.encode({"error": body}), (SOURCE_HEADER, error.source))


def library_failed(error: Exception) -> Answer:
    """The answer to a fault of this library: the platform, not the caller, reads its detail."""
    body = {"message": "internal server error", "type": "server_error", "code": "server_error", "param": None}
    detail = f"{type(error).__name__}: {error}"
    if len(detail) > _MAX_DETAIL:
        detail = detail[: _MAX_DETAIL - len(_CUT)] + _CUT
    printable = "".join(sign if " " <= sign <= "~" else "?" for sign in detail)
    return json_answer(500, jsons.encode({"error": body}), (SOURCE_HEADER, "platform"), (DETAIL_HEADER, printable))
