"""The environment variables of a sandbox (container contract, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cupola.domain.principal import SandboxPrincipal
from cupola.domain.version import Agent, Version
from cupola.sandbox.base import AUTHORITIES

HOME = "/home/session"
FILES = "/files"
PORT = 8088
SESSION_ID, SESSION_GUID = "FOUNDRY_AGENT_SESSION_ID", "FOUNDRY_AGENT_SESSION_GUID"
SESSION_SECRET = "IDENTITY_HEADER"  # noqa: S105 - the name of a variable
SESSION_VARIABLES = (SESSION_ID, SESSION_GUID, SESSION_SECRET)
"""Those that differ between the sessions of a version."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
"""By which programs find the authorities to trust: OpenSSL's own, and that of the library requests."""
_SILENCED = {
    # The official container library reports usage to its vendor unless these are set (container contract, 1.7).
    "MICROSOFT_OTEL_SDKSTATS_DISABLED": "true",
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
}


@dataclass(frozen=True)
class Hosting:
    """How a sandbox calls the platform back: what it is told when it is to keep responses, tasks and state there.

    `token_endpoint` is where it gets tokens, for the secret that `secret` makes of its session; `authority` is the
    certificate by which it knows the platform, in PEM.
    """

    token_endpoint: str
    secret: Callable[[SandboxPrincipal], str]
    authority: str

    def variables(self, agent: Agent, session_guid: str | None) -> dict[str, str | None]:
        """The platform's variables for it (container contract, sections 2.1 and 3.4)."""
        sandbox = None if session_guid is None else SandboxPrincipal(agent.project, agent.key, session_guid)
        return {
            "FOUNDRY_HOSTING_ENVIRONMENT": "cupola",
            "IDENTITY_ENDPOINT": self.token_endpoint,
            SESSION_SECRET: None if sandbox is None else self.secret(sandbox),
        }


def sandbox_environment(
    version: Version,
    image_environment: Iterable[tuple[str, str]],
    *,
    project_endpoint: str,
    tenant: str,
    session_id: str | None,
    session_guid: str | None,
    hosting: Hosting | None = None,
) -> tuple[tuple[str, str], ...]:
    """All variables: the image's, then the definition's, then the platform's, each beating those before it.

    A sandbox whose session is not known yet has all but those of the session. Which authorities a program trusts is for the
    definition to say; what else `hosting` brings is not.
    """
    agent = version.agent
    arm_id = (
        f"/subscriptions/{tenant}/resourceGroups/cupola/providers/Microsoft.CognitiveServices/accounts/cupola"
        f"/projects/{agent.project}"
    )
    merged = {
        "PATH": DEFAULT_PATH,
        **_SILENCED,
        **dict(image_environment),
        **({} if hosting is None else dict.fromkeys(_TRUST, AUTHORITIES)),
        **dict(version.definition.environment),
        "HOME": HOME,
        "PORT": str(PORT),
        "FOUNDRY_PROJECT_ENDPOINT": project_endpoint,
        "FOUNDRY_PROJECT_ARM_ID": arm_id,
        "FOUNDRY_AGENT_NAME": agent.name,
        "FOUNDRY_AGENT_VERSION": str(version.number),
        "FOUNDRY_AGENT_ID": agent.guid,
        "FOUNDRY_AGENT_INSTANCE_CLIENT_ID": agent.identity.client_id,
        "FOUNDRY_AGENT_BLUEPRINT_CLIENT_ID": agent.identity.blueprint_id,
        "FOUNDRY_AGENT_TENANT_ID": tenant,
        SESSION_ID: session_id,
        SESSION_GUID: session_guid,
        **({} if hosting is None else hosting.variables(agent, session_guid)),
    }
    return tuple((name, value) for name, value in merged.items() if value is not None)
