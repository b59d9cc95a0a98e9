"""Who is calling: every request but a few public ones carries a token of ours (wire contract, section 1.2).

Browsers cannot set headers on a WebSocket. They offer two subprotocols instead: `cupola.bearer`, then the token. A token in an
address would end up in logs, so there it is not looked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from cupola.identity.tokens import Tokens, unauthorized

PUBLIC_PATHS = frozenset({"/healthz", "/msi/token"})
SUBPROTOCOL = "cupola.bearer"
"""The subprotocol that says that the next one offered is a token."""


class Authentication:
    """Puts the caller of each request into its scope as `cupola.caller`; refuses a request without a valid token."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            scope["cupola.caller"] = self._tokens.verify(bearer_token(scope))
        await self._app(scope, receive, send)


def bearer_token(scope: Scope) -> str:
    """The token of the Authorization header, or of an upgrade's subprotocols. Raises CupolaError (401)."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values and (offered := _offered_token(scope)) is not None:
        return offered
    if not values:
        raise unauthorized(
            'There is no token. Run `eval "$(cupola env)"` so that DefaultAzureCredential() finds one, or send the '
            "header `Authorization: Bearer <token>`."
        )
    scheme, _, token = values[0].partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer" or not token.strip().isascii():
        raise unauthorized("The Authorization header must be one `Bearer <token>`.")
    return str(token.strip(), "ascii")


def offered_subprotocols(headers: Sequence[tuple[bytes, bytes]]) -> list[str]:
    """The WebSocket subprotocols of a request, in order."""
    joined = b",".join(value for name, value in headers if name == b"sec-websocket-protocol").decode("latin-1")
    return [part.strip() for part in joined.split(",") if part.strip()]


def _offered_token(scope: Scope) -> str | None:
    if not any(name == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"]):
        return None
    offered = offered_subprotocols(scope["headers"])
    if SUBPROTOCOL not in offered[:-1]:
        return None
    token = offered[offered.index(SUBPROTOCOL) + 1]
    return token if token.isascii() else None
