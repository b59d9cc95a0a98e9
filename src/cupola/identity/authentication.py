"""Who is calling: every request but a few public ones carries a token of ours (wire contract, section 1.2)."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from cupola.identity.tokens import Tokens, unauthorized

PUBLIC_PATHS = frozenset({"/healthz", "/msi/token"})


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
    """The token of the Authorization header. Raises CupolaError (401)."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        raise unauthorized(
            'There is no token. Run `eval "$(cupola env)"` so that DefaultAzureCredential() finds one, or send the '
            "header `Authorization: Bearer <token>`."
        )
    scheme, _, token = values[0].partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer" or not token.strip().isascii():
        raise unauthorized("The Authorization header must be one `Bearer <token>`.")
    return str(token.strip(), "ascii")
