"""The secret in the environment of each sandbox, for which it gets its tokens (container contract, section 3.4).

It says which session the sandbox is of, sealed, so nothing is stored and a sandbox that is started again has the same one.
"""

from __future__ import annotations

from cupola.domain.principal import SandboxPrincipal
from cupola.identity.seal import Seal

_PURPOSE = "sandbox"


class SandboxSecrets:
    """Makes and reads the secrets of sandboxes."""

    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def issue(self, sandbox: SandboxPrincipal) -> str:
        """The secret of a session's sandboxes."""
        content = f"{sandbox.project}\0{sandbox.agent_key}\0{sandbox.session_guid}"
        return self._seal.seal(_PURPOSE, content.encode())

    def holder(self, secret: str) -> SandboxPrincipal | None:
        """Whose secret this is; None when it is no sandbox's."""
        content = self._seal.open(_PURPOSE, secret)
        if content is None:
            return None
        project, agent_key, session_guid = content.decode().split("\0")
        return SandboxPrincipal(project, int(agent_key), session_guid)
