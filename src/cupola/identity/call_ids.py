"""Whom a sandbox works for: what it is told with each request, and by which it names its user when it calls back.

A call id is a sealed text with the session, the user and its end, so nothing is stored. It is good for longer than the
request, because a task that is taken up again after a crash shows the id that it was started with (container contract,
sections 3.1, 3.3 and 4.13).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal
from cupola.identity.seal import Seal

CALL_ID_HEADER = "x-agent-foundry-call-id"
LIFETIME = 60 * 24 * 3600
"""Seconds. A session is kept for 30 days after its last use."""

_CALL, _USER = "call", "user"
_END = struct.Struct(">Q")


class CallIds:
    """Makes and reads call ids and the keys of users."""

    def __init__(self, seal: Seal, clock: Callable[[], float] = time.time) -> None:
        self._seal = seal
        self._clock = clock

    def user_key(self, project: str, principal: Principal) -> str:
        """Stands for a user towards agents: stable within a project, and it tells nothing about the user."""
        return self._seal.digest(_USER, f"{project}\0{principal.id}".encode()).hex()[:32]

    def issue(self, session_guid: str, user: str) -> str:
        """A call id for a request of a user, by its key, to a session."""
        end = _END.pack(int(self._clock()) + LIFETIME)
        return self._seal.seal(_CALL, end + f"{session_guid}\0{user}".encode())

    def user(self, session_guid: str, call_id: str) -> str:
        """The key of the user that a session's call is for. Raises CupolaError (401)."""
        content = self._seal.open(_CALL, call_id)
        if content is not None:
            guid, _, user = content[_END.size :].decode().partition("\0")
            if guid == session_guid and self._clock() < _END.unpack_from(content)[0]:
                return user
        raise CupolaError(
            "invalid_call_id",
            f"{CALL_ID_HEADER}: this call id was not made for this session, or it has expired; send the one of the "
            "request that is being answered, or none.",
            status=401,
            param=CALL_ID_HEADER,
        )

    def headers(self, project: str, principal: Principal, session_guid: str) -> list[tuple[bytes, bytes]]:
        """What an agent is told about a request's user."""
        user = self.user_key(project, principal)
        return [
            (b"x-agent-user-id", user.encode()),
            (CALL_ID_HEADER.encode(), self.issue(session_guid, user).encode()),
        ]
