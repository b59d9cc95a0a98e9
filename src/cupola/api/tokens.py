"""The managed-identity token endpoint (wire contract, section 2.2), by which DefaultAzureCredential() gets its tokens."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.identity.sandbox_secrets import SandboxSecrets
from cupola.identity.secret import hash_secret
from cupola.identity.tokens import Caller, Tokens
from cupola.storage import principals
from cupola.storage.database import Database

_RESOURCE = re.compile(r"[\x21-\x7e]{1,256}")


class TokensApi:
    """GET /msi/token: a token for the holder of a secret. Its errors have the shape that azure-identity reads."""

    def __init__(self, database: Database, tokens: Tokens, sandboxes: SandboxSecrets) -> None:
        self._database = database
        self._tokens = tokens
        self._sandboxes = sandboxes

    def routes(self) -> list[Route]:
        """Paths are relative to the server."""
        return [Route("/msi/token", self.get_token, methods=["GET"])]

    async def get_token(self, request: Request) -> Response:
        """Headers: X-IDENTITY-HEADER, the secret. Query: `resource`, the audience."""
        secret = request.headers.get("x-identity-header")
        if not secret:
            return _refusal(401, "The header X-IDENTITY-HEADER is missing; `cupola env` prints IDENTITY_HEADER.")
        caller = await self._holder(secret)
        if caller is None:
            return _refusal(401, "The secret in X-IDENTITY-HEADER is unknown; run `cupola env` again.")
        resource = request.query_params.get("resource", "")
        if not _RESOURCE.fullmatch(resource):
            return _refusal(400, "The query parameter resource is missing; it is the audience of the token.")
        audience = resource.removesuffix("/.default").rstrip("/")
        token = self._tokens.issue(caller, audience)
        return JSONResponse(
            {
                "access_token": token.text,
                "expires_on": str(token.expires_on),
                "resource": resource,
                "token_type": "Bearer",
                "client_id": caller.id,
            },
            headers={"cache-control": "no-store"},
        )

    async def _holder(self, secret: str) -> Caller | None:
        sandbox = self._sandboxes.holder(secret)
        if sandbox is not None:
            return sandbox
        hashed = hash_secret(secret)
        return await self._database.read(lambda connection: principals.principal_by_secret(connection, hashed))


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"statusCode": status, "message": message}, status)
