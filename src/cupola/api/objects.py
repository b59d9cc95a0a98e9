"""The wire forms of agents and versions (wire contract, sections 3.5 and 10): a superset of every generation's."""

from __future__ import annotations

from typing import Any

from cupola.domain.version import Agent, Version, VersionEvent, VersionStatus


def agent_object(agent: Agent, latest: Version | None) -> dict[str, Any]:
    """`object: "agent"`."""
    return {
        "object": "agent",
        "id": agent.name,
        "name": agent.name,
        "created_at": agent.created_at,
        "versions": {"latest": None if latest is None else version_object(latest)},
        "state": "enabled",
        "configuration_state": "enabled",
        "session_upgrade": str(agent.session_upgrade),
        "agent_endpoint": {
            "version_selector": {
                "version_selection_rules": [
                    {"type": "FixedRatio", "agent_version": "@latest", "traffic_percentage": 100}
                ]
            },
            "protocol_configuration": _protocol_configuration(latest),
            "authorization_schemes": [{"type": "Entra"}],
        },
        **_identity(agent),
    }


def version_object(version: Version) -> dict[str, Any]:
    """`object: "agent.version"`. `state` is the name that the first generation's documents read the status by."""
    body: dict[str, Any] = {
        "object": "agent.version",
        "id": version.name,
        "name": version.agent.name,
        "version": str(version.number),
        "metadata": dict(version.metadata),
        "description": version.description,
        "created_at": version.created_at,
        "definition": version.definition.to_wire(),
        "draft": False,
        "status": str(version.status),
        "state": str(version.status),
        "agent_guid": version.agent.guid,
        "image_digest": version.digest,
        **_identity(version.agent),
    }
    if version.status is VersionStatus.FAILED:
        body["error"] = {"code": version.error_code, "message": version.error_message}
    return body


def event_object(event: VersionEvent) -> dict[str, Any]:
    """One line of a version's event log. Times are in milliseconds."""
    return {
        "object": "agent.version.event",
        "at_ms": event.at,
        "step": event.step,
        "message": event.message,
        "duration_ms": None if event.duration is None else round(event.duration, 1),
        "failed": event.failed,
    }


def _identity(agent: Agent) -> dict[str, Any]:
    identity = agent.identity
    return {
        "instance_identity": {
            "principal_id": identity.principal_id, "client_id": identity.client_id, "status": "active",
        },
        "blueprint": {"principal_id": identity.blueprint_id, "client_id": identity.blueprint_id, "status": "active"},
        "blueprint_reference": {"type": "ManagedAgentIdentityBlueprint", "blueprint_id": identity.blueprint_id},
    }  # fmt: skip


def _protocol_configuration(latest: Version | None) -> dict[str, Any]:
    if latest is None:
        return {"responses": {}}
    return {entry.protocol: {} for entry in latest.definition.protocols}
