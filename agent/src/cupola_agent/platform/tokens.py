"""Tokens for calls to the platform (contract section 3.4)."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from cupola_agent import jsons
from cupola_agent.platform.client import HttpAnswer, HttpClient, HttpFailed, Origin
from cupola_agent.stores.base import UnavailableError

logger = logging.getLogger("cupola_agent")

RESOURCE = "https://ai.azure.com"
SCOPE = f"{RESOURCE}/.default"
TIMEOUT_SECONDS = 30.0
MAX_MARGIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; `expires_at` is in seconds of the Unix epoch."""

    text: str
    expires_at: float


Fetch = Callable[[], Awaitable[Token]]


class TokenSource:
    """Keeps a token until shortly before it expires; of many who need a new one, one fetches it for all."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._token: Token | None = None
        self._renew_at = 0.0
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """Raises UnavailableError when there is no token to be had."""
        if self._token is not None and self._clock() < self._renew_at:
            return self._token.text
        async with self._lock:
            if self._token is None or self._clock() >= self._renew_at:
                await self._renew()
            assert self._token is not None  # noqa: S101  (what _renew sets)
            return self._token.text

    def refuse(self, text: str) -> None:
        """Says that the platform did not take this token: the next call fetches another."""
        if self._token is not None and self._token.text == text:
            self._token = None

    async def _renew(self) -> None:
        now = self._clock()
        try:
            token = await self._fetch()
        except UnavailableError:
            if self._token is None or self._token.expires_at <= now:
                raise
            logger.warning("the token for the platform could not be renewed; the old one is still good", exc_info=True)
            self._renew_at = min(now + 10, self._token.expires_at)
        else:
            self._token = token
            self._renew_at = token.expires_at - min(MAX_MARGIN_SECONDS, (token.expires_at - now) / 4)


def find_source(variables: Mapping[str, str], http: HttpClient) -> TokenSource:
    """The platform's own token endpoint, a workload identity, or what azure-identity finds, the first there is."""
    if variables.get("IDENTITY_ENDPOINT") and variables.get("IDENTITY_HEADER"):
        return TokenSource(_from_identity_endpoint(variables, http))
    if variables.get("AZURE_FEDERATED_TOKEN_FILE"):
        return TokenSource(_from_workload_identity(variables, http))
    return TokenSource(_from_azure_identity)


def _from_identity_endpoint(variables: Mapping[str, str], http: HttpClient) -> Fetch:
    endpoint = variables["IDENTITY_ENDPOINT"]
    query = urlencode({"api-version": "2019-08-01", "resource": RESOURCE})
    url = f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"
    headers = {"x-identity-header": variables["IDENTITY_HEADER"], "accept": "application/json"}

    async def fetch() -> Token:
        answer = await _ask(http, "GET", url, headers, b"")
        return _token(answer, lambda fields: float(fields["expires_on"]))

    return fetch


def _from_workload_identity(variables: Mapping[str, str], http: HttpClient) -> Fetch:
    authority = variables.get("AZURE_AUTHORITY_HOST") or "https://login.microsoftonline.com"
    url = f"{authority.rstrip('/')}/{quote(variables.get('AZURE_TENANT_ID', ''), safe='')}/oauth2/v2.0/token"
    if not Origin.of(url).confidential:
        raise ValueError("AZURE_AUTHORITY_HOST must be https: an assertion is never sent in the clear")
    headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}

    async def fetch() -> Token:
        form = {
            "grant_type": "client_credentials",
            "client_id": variables.get("AZURE_CLIENT_ID", ""),
            "scope": SCOPE,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": await _read(Path(variables["AZURE_FEDERATED_TOKEN_FILE"])),
        }
        answer = await _ask(http, "POST", url, headers, urlencode(form).encode())
        return _token(answer, lambda fields: time.time() + float(fields["expires_in"]))

    return fetch


async def _from_azure_identity() -> Token:
    try:
        from azure.identity.aio import DefaultAzureCredential
    except ImportError:
        raise UnavailableError(
            "No token for the platform: set IDENTITY_ENDPOINT and IDENTITY_HEADER, or AZURE_FEDERATED_TOKEN_FILE, "
            "or install azure-identity."
        ) from None
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), DefaultAzureCredential() as credential:
            token = await credential.get_token(SCOPE)
    except Exception as error:
        # Each of the sources it tries has errors of its own.
        raise UnavailableError(f"azure-identity gave no token: {error}") from error
    return Token(token.token, float(token.expires_on))


async def _read(path: Path) -> str:
    """The cluster replaces the file now and then, so it is read each time."""
    try:
        return (await asyncio.to_thread(path.read_text)).strip()
    except (OSError, UnicodeError) as error:
        raise UnavailableError(f"AZURE_FEDERATED_TOKEN_FILE cannot be read: {error}") from error


async def _ask(http: HttpClient, method: str, url: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
    try:
        return await http.request(method, url, headers, body, timeout=TIMEOUT_SECONDS)
    except HttpFailed as error:
        raise UnavailableError(f"The token endpoint cannot be reached: {error}") from error


def _token(answer: HttpAnswer, expiry: Callable[[dict[str, Any]], float]) -> Token:
    if answer.status != 200:
        raise UnavailableError(f"The token endpoint answered {answer.status}.")
    try:
        fields = jsons.decode(answer.body)
        return Token(str(fields["access_token"]), expiry(fields))
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"The token endpoint gave no token: {error}") from error
