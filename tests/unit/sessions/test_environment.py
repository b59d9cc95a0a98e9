from __future__ import annotations

from cupola.domain.definition import parse_definition
from cupola.domain.version import Agent, Identity, Version, VersionStatus
from cupola.sessions.environment import DEFAULT_PATH, Hosting, sandbox_environment

AGENT = Agent(1, "default", "echo", "agent-guid", Identity("principal", "client", "blueprint"), 0)


HOSTING = Hosting(
    "https://localhost:8443/msi/token", lambda sandbox: f"secret of {sandbox.session_guid}", "a certificate"
)


def variables(
    *image: tuple[str, str], hosting: Hosting | None = None, guid: str | None = "session-guid", **definition: str
) -> dict[str, str]:
    parsed = parse_definition({"kind": "hosted", "image": "a:1", "environment_variables": definition})
    version = Version(1, AGENT, 3, parsed, {}, None, VersionStatus.ACTIVE, None, None, None, 0)
    pairs = sandbox_environment(
        version,
        image,
        project_endpoint="https://localhost:8443/api/projects/default",
        tenant="tenant",
        session_id="sess_1",
        session_guid=guid,
        hosting=hosting,
    )
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_the_platform_tells_the_agent_who_and_where_it_is() -> None:
    found = variables()
    assert {name: value for name, value in found.items() if name.startswith("FOUNDRY_")} == {
        "FOUNDRY_PROJECT_ENDPOINT": "https://localhost:8443/api/projects/default",
        "FOUNDRY_PROJECT_ARM_ID": "/subscriptions/tenant/resourceGroups/cupola/providers/Microsoft.CognitiveServices"
        "/accounts/cupola/projects/default",
        "FOUNDRY_AGENT_NAME": "echo",
        "FOUNDRY_AGENT_VERSION": "3",
        "FOUNDRY_AGENT_ID": "agent-guid",
        "FOUNDRY_AGENT_INSTANCE_CLIENT_ID": "client",
        "FOUNDRY_AGENT_BLUEPRINT_CLIENT_ID": "blueprint",
        "FOUNDRY_AGENT_TENANT_ID": "tenant",
        "FOUNDRY_AGENT_SESSION_ID": "sess_1",
        "FOUNDRY_AGENT_SESSION_GUID": "session-guid",
    }
    assert (found["HOME"], found["PORT"], found["PATH"]) == ("/home/session", "8088", DEFAULT_PATH)


def test_the_definition_beats_the_image() -> None:
    found = variables(("A", "image"), ("B", "image"), A="definition", C="definition")
    assert (found["A"], found["B"], found["C"]) == ("definition", "image", "definition")


def test_the_image_beats_the_defaults() -> None:
    assert variables(("PATH", "/opt/bin"))["PATH"] == "/opt/bin"
    assert variables(("PATH", "/opt/bin"), PATH="/mine")["PATH"] == "/mine"


def test_the_platform_beats_both() -> None:
    found = variables(("HOME", "/root"), ("FOUNDRY_AGENT_NAME", "forged"), ("PORT", "1"), PORT="2", HOME="/elsewhere")
    assert (found["HOME"], found["PORT"], found["FOUNDRY_AGENT_NAME"]) == ("/home/session", "8088", "echo")


def test_reports_to_a_vendor_are_off_unless_asked_for() -> None:
    name = "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL"
    assert variables()[name] == "true"
    assert variables(APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL="false")[name] == "false"


def test_a_hosted_agent_is_told_how_to_call_the_platform() -> None:
    added = variables(hosting=HOSTING).items() - variables().items()
    assert dict(added) == {
        "FOUNDRY_HOSTING_ENVIRONMENT": "cupola",
        "IDENTITY_ENDPOINT": "https://localhost:8443/msi/token",
        "IDENTITY_HEADER": "secret of session-guid",
        "SSL_CERT_FILE": "/etc/cupola-authorities.pem",
        "REQUESTS_CA_BUNDLE": "/etc/cupola-authorities.pem",
    }


def test_a_sandbox_made_ahead_has_no_secret_of_a_session() -> None:
    found = variables(hosting=HOSTING, guid=None)
    assert "IDENTITY_HEADER" not in found
    assert found["IDENTITY_ENDPOINT"] == HOSTING.token_endpoint


def test_whom_a_hosted_agent_trusts_is_for_its_definition_to_say() -> None:
    image = (("SSL_CERT_FILE", "/image.pem"), ("IDENTITY_HEADER", "mine"))
    assert variables(*image, hosting=HOSTING)["SSL_CERT_FILE"] == "/etc/cupola-authorities.pem"
    own = variables(*image, hosting=HOSTING, SSL_CERT_FILE="/mine.pem")
    assert (own["SSL_CERT_FILE"], own["IDENTITY_HEADER"]) == ("/mine.pem", "secret of session-guid")
