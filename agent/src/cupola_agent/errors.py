"""Errors of the Responses protocol and who is to blame for them (contract sections 3.2 and 4.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from cupola_agent import jsons
from cupola_agent.http import Answer

SOURCE_HEADER = b"x-platform-error-source"
DETAIL_HEADER = b"x-platform-error-detail"

_MAX_DETAIL = 2048
_CUT = "...[truncated]"


class ApiError(Exception):
    """An error to answer. `source` is `user`, `platform` or `upstream` (the developer's handler).

    `detail` is for the platform alone: which exception of the library or of a store it was.
    """

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
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind
        self.source = source
        self.details = tuple(details)
        self.detail = detail

    def body(self, request_id: str) -> dict[str, Any]:
        """The `error` object of the answer."""
        body: dict[str, Any] = {
            "message": self.message,
            "type": self.kind,
            "code": self.code,
            "param": self.param,
        }
        if self.details:
            body["details"] = list(self.details)
        if self.status == 400:
            body["additionalInfo"] = {"request_id": request_id}
        return body

    def answer(self, request_id: str) -> Answer:
        headers = [(SOURCE_HEADER, self.source.encode())]
        if self.detail:
            headers.append((DETAIL_HEADER, _printable(self.detail)))
        return Answer.json(self.status, jsons.encode({"error": self.body(request_id)}), *headers)


def invalid_request(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    return ApiError(400, code, message, param=param)


def not_found(response_id: str) -> ApiError:
    message = f"Response with id '{response_id}' not found."
    return ApiError(404, "invalid_request_error", message, param="response_id")


def handler_failed() -> ApiError:
    """The handler raised before it gave anything. The caller learns no more than that."""
    return ApiError(500, "server_error", "internal server error", kind="server_error", source="upstream")


def shutting_down() -> ApiError:
    """Contract section 1.4."""
    return ApiError(503, "service_unavailable", "Server is shutting down.", kind="server_error", source="platform")


def library_failed(error: Exception) -> ApiError:
    """A fault of this library or of the platform: the platform, not the caller, reads its detail."""
    return ApiError(
        500,
        "server_error",
        "internal server error",
        kind="server_error",
        source="platform",
        detail=f"{type(error).__name__}: {error}",
    )


def _printable(detail: str) -> bytes:
    if len(detail) > _MAX_DETAIL:
        detail = detail[: _MAX_DETAIL - len(_CUT)] + _CUT
    return "".join(sign if " " <= sign <= "~" else "?" for sign in detail).encode()
