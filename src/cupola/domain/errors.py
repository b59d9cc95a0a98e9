"""The one error that may reach a caller.

Everything else that is raised is logged with its context and shown as an opaque id. The body follows section 8.3
of the wire contract, so azure-core, azure-ai-projects and openai all read code and message from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong with one field of a request: where it is, and what to write instead."""

    field: str
    message: str
    code: str = "invalid_value"


class CupolaError(Exception):
    """A failure that the caller can understand.

    `code` is stable and meant for programs; `message` says what happened and how to fix it; `status` is the HTTP
    status; `param` names the field at fault; `problems` lists every field at fault when there are several;
    `retry_after` (seconds) is for refusals that pass; `may_retry` is False once an agent has begun to work, so that
    a client does not make it work twice; `etag` is of the present state where a condition did not hold.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        problems: tuple[FieldProblem, ...] = (),
        retry_after: int | None = None,
        may_retry: bool = True,
        etag: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.param = param
        self.problems = problems
        self.retry_after = retry_after
        self.may_retry = may_retry
        self.etag = etag

    def __repr__(self) -> str:
        return f"CupolaError({self.code!r}, {self.message!r}, status={self.status})"

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "type": "invalid_request_error" if self.status < 500 else "server_error",
                "param": self.param,
                "details": [
                    {
                        "code": problem.code,
                        "message": problem.message,
                        "param": problem.field,
                        "target": problem.field,
                    }
                    for problem in self.problems
                ],
                "additionalInfo": {"request_id": request_id},
            }
        }


def not_found(what: str, code: str = "not_found") -> CupolaError:
    """The answer for an id that does not exist, and for one the caller may not see."""
    return CupolaError(code, f"{what} does not exist.", status=404)


def invalid_request(message: str, param: str | None = None) -> CupolaError:
    """The answer to a call of an agent's that is not as the container contract says."""
    return CupolaError("invalid_request", message, param=param)


def etag_mismatch(what: str, etag: str | None) -> CupolaError:
    """The answer to a write whose `If-Match` is not the present ETag, which is None when there is nothing."""
    return CupolaError("etag_mismatch", f"{what} has changed since it was read.", status=412, etag=etag)
