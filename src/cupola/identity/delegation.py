"""Acting for somebody else: a trusted service names the user that a request is for (wire contract, section 4.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal

IDENTITY_HEADER = "x-ms-user-identity"

_IDENTITY = re.compile(r"[A-Za-z0-9._:@-]{1,256}")


def effective_caller(principal: Principal, header_values: Sequence[str]) -> Principal:
    """Who a request counts as: the user named by the header's values, or the caller itself when there are none.

    The user has no rights but those over what is its own. Raises CupolaError (400 when the header is malformed, 403 when the
    caller may not act for others, which today only administrators may).
    """
    if not header_values:
        return principal
    if len(header_values) > 1 or not _IDENTITY.fullmatch(header_values[0]):
        raise CupolaError(
            "bad_request",
            f"{IDENTITY_HEADER}: expected once 1 to 256 letters, digits, or any of `._:-@`.",
            param=IDENTITY_HEADER,
        )
    if not principal.administrator:
        raise CupolaError(
            "impersonation_not_allowed",
            f"{principal.name} may not act for other users; leave the header {IDENTITY_HEADER} out.",
            status=403,
        )
    identity = header_values[0]
    return Principal(id=f"user:{identity}", name=identity, administrator=False)
