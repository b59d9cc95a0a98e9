"""Access tokens: JWTs signed with a key of this installation (ES256).

A caller gets one from the managed-identity endpoint (wire contract, section 2.2) and sends it with every request. A token
is verified once and then remembered until it expires, so that a busy caller costs a dictionary look-up.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal, SandboxPrincipal
from cupola.identity.secret import write_private

AUDIENCE = "https://ai.azure.com"
LIFETIME = 24 * 3600
"""Seconds. Clients ask again some minutes before the end."""
CLOCK_LEEWAY = 30
CACHE_SIZE = 10_000
Caller = Principal | SandboxPrincipal
"""Whom a token can be issued to."""
TOKEN_LIMIT = 16 * 1024
"""Characters of the longest token that is looked at."""


@dataclass(frozen=True)
class IssuedToken:
    """A token and when it ends, in seconds since the epoch."""

    text: str
    expires_on: int


class Tokens:
    """Makes and checks the tokens of one installation. `tenant` is the installation's own id."""

    def __init__(self, key: ECKey, tenant: str, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._tenant = tenant
        self._issuer = f"https://cupola.invalid/{tenant}"
        self._clock = clock
        self._verified: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    def issue(self, caller: Caller, audience: str, lifetime: int = LIFETIME) -> IssuedToken:
        """A token for `caller`, good for one audience."""
        now = int(self._clock())
        claims = {
            "iss": self._issuer,
            "aud": audience,
            "tid": self._tenant,
            **_claims(caller),
            "iat": now,
            "nbf": now,
            "exp": now + lifetime,
        }
        header = {"alg": "ES256", "typ": "JWT", "kid": self._key.kid}
        return IssuedToken(jwt.encode(header, claims, self._key, algorithms=["ES256"]), now + lifetime)

    def verify(self, token: str) -> Caller:
        """Who a token was issued to. Raises CupolaError (401) that says what is wrong with it."""
        if len(token) > TOKEN_LIMIT:
            raise unauthorized("The token is too long.")
        fingerprint = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(fingerprint)
        if known is not None:
            caller, expires = known
            if self._clock() < expires:
                self._verified.move_to_end(fingerprint)
                return caller
            del self._verified[fingerprint]
        caller, expires = self._check(token)
        self._verified[fingerprint] = (caller, expires)
        if len(self._verified) > CACHE_SIZE:
            self._verified.popitem(last=False)
        return caller

    def _check(self, token: str) -> tuple[Caller, float]:
        try:
            claims = jwt.decode(token, self._key, algorithms=["ES256"]).claims
        except Exception as error:
            # The library raises whatever it stumbles over when a part of the token is not what it expects.
            raise unauthorized("The token was not issued by this server, or it was changed.") from error
        now = self._clock()
        expires, begins = claims.get("exp"), claims.get("nbf")
        if not isinstance(expires, int | float) or not isinstance(begins, int | float):
            raise unauthorized("The token has no time limits.")
        if now >= expires + CLOCK_LEEWAY:
            raise unauthorized("The token has expired; ask the token endpoint for a new one.")
        if now < begins - CLOCK_LEEWAY:
            raise unauthorized("The token is not valid yet; check the clocks.")
        if claims.get("iss") != self._issuer:
            raise unauthorized("The token was issued by another installation.")
        if claims.get("aud") != AUDIENCE:
            raise unauthorized(f"The token is for another audience; ask for the scope {AUDIENCE}/.default.")
        return _caller(claims), expires + CLOCK_LEEWAY


def _claims(caller: Caller) -> dict[str, Any]:
    usual = {"sub": caller.id, "oid": caller.id, "appid": caller.id}
    if isinstance(caller, SandboxPrincipal):
        return {**usual, "project": caller.project, "agent": caller.agent_key, "session": caller.session_guid}
    return {**usual, "name": caller.name, "admin": caller.administrator}


def _caller(claims: dict[str, Any]) -> Caller:
    subject, session = claims.get("sub"), claims.get("session")
    if not isinstance(subject, str) or not subject:
        raise unauthorized("The token does not say who it was issued to.")
    if session is not None:
        return SandboxPrincipal(str(claims.get("project")), int(claims.get("agent", 0)), str(session))
    return Principal(subject, str(claims.get("name", "")), claims.get("admin") is True)


def unauthorized(message: str) -> CupolaError:
    """A refusal because of who calls, not of what is asked."""
    return CupolaError("Unauthorized", message, status=401)


def load_or_create_key(path: Path) -> ECKey:
    """The signing key in a file that only the platform's user may read; made at the first call."""
    if not path.exists():
        key = ECKey.generate_key("P-256", private=True, auto_kid=True)
        write_private(path, key.as_pem(private=True).decode())
    key = ECKey.import_key(path.read_bytes())
    key.ensure_kid()
    return key
