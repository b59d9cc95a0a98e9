"""The environment variables of a sandbox (container contract, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterable

from cupola.domain.version import Version

HOME = "/home/session"
FILES = "/files"
PORT = 8088
SESSION_ID, SESSION_GUID = "FOUNDRY_AGENT_SESSION_ID", "FOUNDRY_AGENT_SESSION_GUID"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SILENCED = {
    # The official container library reports usage to its vendor unless these are set (container contract, 1.7).
    "MICROSOFT_OTEL_SDKSTATS_DISABLED": "true",
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
}


def sandbox_environment(
    version: Version,
    image_environment: Iterable[tuple[str, str]],
    *,
    project_endpoint: str,
    tenant: str,
    session_id: str | None,
    session_guid: str | None,
) -> tuple[tuple[str, str], ...]:
    """All variables: the image's, then the definition's, then the platform's, each beating those before it.

    A sandbox whose session is not known yet has all but those of the session.
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
    }
    return tuple((name, value) for name, value in merged.items() if value is not None)
