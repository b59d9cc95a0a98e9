"""Calls to the platform's stores: address, headers, retries, errors (contract sections 3.3, 4.12 and 4.14)."""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode

from cupola_agent import ids, jsons
from cupola_agent.call import Caller
from cupola_agent.platform.client import HttpAnswer, HttpClient, HttpFailed, Origin
from cupola_agent.platform.tokens import TokenSource, find_source
from cupola_agent.stores.base import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    PreconditionFailedError,
    RefusedError,
    StoreError,
    UnavailableError,
)
from cupola_agent.version import server_identity

logger = logging.getLogger("cupola_agent")

Sleep = Callable[[float], Awaitable[None]]

API_VERSION = "v1"
ATTEMPT_SECONDS = 30.0
PAUSES = (0.0, 1.6, 3.2)
MAX_RETRY_AFTER_SECONDS = 60.0

# What may be sent again without asking whether it was done. Others are, when the status says that nothing was.
_REPEATABLE = frozenset({"GET", "PUT", "DELETE"})
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_RETRIED_POST = frozenset({500, 503, 504})


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful answer. `etag` is its header, "" without one."""

    status: int
    body: Any
    etag: str


class Platform:
    """The project at `endpoint`, `FOUNDRY_PROJECT_ENDPOINT`.

    A bearer token can be used by whoever reads it, so an endpoint that is not https is refused with ValueError,
    unless it is on this machine's loopback.
    """

    def __init__(self, endpoint: str, tokens: TokenSource, http: HttpClient, *, sleep: Sleep = asyncio.sleep) -> None:
        if not Origin.of(endpoint).confidential:
            raise ValueError("FOUNDRY_PROJECT_ENDPOINT must be https: a token is never sent in the clear")
        self._endpoint = endpoint.rstrip("/")
        self._tokens = tokens
        self._http = http
        self._sleep = sleep
        self._user_agent = server_identity()

    @classmethod
    def from_environment(cls, variables: Mapping[str, str], *, sleep: Sleep = asyncio.sleep) -> "Platform":
        """Raises ValueError without a usable FOUNDRY_PROJECT_ENDPOINT."""
        endpoint = variables.get("FOUNDRY_PROJECT_ENDPOINT", "")
        if not endpoint:
            raise ValueError("FOUNDRY_PROJECT_ENDPOINT is not set")
        http = HttpClient()
        return cls(endpoint, find_source(variables, http), http, sleep=sleep)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        caller: Caller | None = None,
        retried: frozenset[int] | None = None,
    ) -> Reply:
        """Asks until there is a final answer; raises the StoreError that stands for anything but success.

        `path` is below the endpoint and already encoded. The call id of `caller` goes along. `retried` replaces the
        statuses after which the method is tried again. A call may thus be done twice: writes must bear with it.
        """
        url = f"{self._endpoint}{path}?{urlencode({**(query or {}), 'api-version': API_VERSION})}"
        encoded = b"" if body is None else _encode(body)
        fields = {
            "accept": "application/json",
            "user-agent": self._user_agent,
            "x-ms-client-request-id": ids.new_uuid(),
            **_trace_context(),
            **(headers or {}),
        }
        if body is not None:
            fields["content-type"] = "application/json"
        if caller is not None and caller.call_id:
            fields["x-agent-foundry-call-id"] = caller.call_id
        if retried is None:
            retried = _RETRIED if method in _REPEATABLE else _RETRIED_POST
        answer = await self._answer(method, url, fields, encoded, retried)
        if not 200 <= answer.status < 300:
            raise error_of(answer)
        return Reply(answer.status, _decode(answer.body), answer.headers.get("etag", ""))

    async def close(self) -> None:
        await self._http.close()

    async def _answer(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, retried: frozenset[int]
    ) -> HttpAnswer:
        renewed = False
        attempt = 0
        while True:
            failure, answer = "", None
            token = await self._tokens.token()
            try:
                answer = await self._http.request(
                    method, url, {**headers, "authorization": f"Bearer {token}"}, body, timeout=ATTEMPT_SECONDS
                )
            except HttpFailed as error:
                failure = str(error)
            except ValueError as error:
                raise RefusedError(f"The request cannot be sent: {error}") from None
            if answer is not None and answer.status == 401 and not renewed:
                renewed = True
                self._tokens.refuse(token)
                continue
            if answer is not None and answer.status not in retried:
                return answer
            pause = _pause(attempt, answer)
            if pause is None:
                if answer is None:
                    raise UnavailableError(f"The platform cannot be reached: {failure}")
                return answer
            attempt += 1
            logger.info("the platform did not answer a %s (%s); trying again", method, failure or answer)
            await self._sleep(pause)


def _pause(attempt: int, answer: HttpAnswer | None) -> float | None:
    """Seconds until the next attempt; None when there is to be none."""
    if attempt >= len(PAUSES):
        return None
    wanted = _retry_after(answer)
    if wanted is None:
        return PAUSES[attempt]
    return wanted if wanted <= MAX_RETRY_AFTER_SECONDS else None


def segment(text: str) -> str:
    """The text as one segment of a path."""
    return quote(text.encode(errors="surrogatepass"), safe="")


def error_of(answer: HttpAnswer) -> StoreError:
    """What an answer that is no success means."""
    code, message, param = _envelope(answer)
    message = message or f"The platform answered {answer.status}."
    status = answer.status
    if status == 404:
        return NotFoundError(message, status=status, code=code, param=param)
    if status == 409:
        exists = "already exists" in message.lower() or (code or "").startswith(("already_exists", "duplicate"))
        kind = AlreadyExistsError if exists or code in ("conflict", "task_already_exists") else ConflictError
        return kind(message, status=status, code=code, param=param)
    if status == 412:
        etag = answer.headers.get("etag")
        return PreconditionFailedError(message, status=status, code=code, param=param, etag=etag)
    if status == 400:
        return RefusedError(message, status=status, code=code, param=param)
    return UnavailableError(message, status=status, code=code, param=param)


def _envelope(answer: HttpAnswer) -> tuple[str | None, str | None, str | None]:
    """Code, message and param of an error, as far as the body has them; a gateway may answer with anything."""
    try:
        error = jsons.decode(answer.body)["error"]
        fields = (error.get("code"), error.get("message"), error.get("param"))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None, None, None
    code, message, param = (field if isinstance(field, str) and field else None for field in fields)
    return code, message, param


def _retry_after(answer: HttpAnswer | None) -> float | None:
    value = answer.headers.get("retry-after", "").strip() if answer is not None else ""
    if not value:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _trace_context() -> Mapping[str, str]:
    """`traceparent`, when the agent has loaded OpenTelemetry and a span is open."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"}


def _encode(body: Any) -> bytes:
    try:
        return jsons.encode(body)
    except (TypeError, ValueError, RecursionError) as error:
        raise RefusedError(f"Not JSON: {error}") from None


def _decode(body: bytes) -> Any:
    if not body:
        return None
    try:
        return jsons.decode(body)
    except ValueError as error:
        raise UnavailableError(f"The platform answered with something else than JSON: {error}") from error
