"""Agents, versions and event logs in the database. Every function runs inside the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select, update

from cupola.domain.definition import Definition, parse_definition
from cupola.domain.errors import not_found
from cupola.domain.ids import new_guid
from cupola.domain.principal import SandboxPrincipal
from cupola.domain.session import SessionUpgrade
from cupola.domain.version import Agent, Identity, Version, VersionEvent, VersionStatus, check_move
from cupola.storage.paging import Page, PageRequest, select_page
from cupola.storage.schema import agents, priming_plans, version_events, versions

_VERSION_COLUMNS = [column.label(f"version_{column.name}") for column in versions.c]


def find_agent(connection: Connection, project: str, name: str) -> Agent | None:
    """The agent of that name, or None."""
    row = connection.execute(select(agents).where(agents.c.project == project, agents.c.name == name)).first()
    return None if row is None else _agent(row)


def check_agent_of(connection: Connection, sandbox: SandboxPrincipal) -> None:
    """Raises CupolaError (404) when the agent of a sandbox has been deleted."""
    if connection.execute(select(agents.c.key).where(agents.c.key == sandbox.agent_key)).first() is None:
        raise not_found("The agent of this sandbox")


def require_agent(connection: Connection, project: str, name: str) -> Agent:
    """The agent of that name. Raises CupolaError (404)."""
    agent = find_agent(connection, project, name)
    if agent is None:
        raise not_found(f"Agent {name[:63]}")
    return agent


def create_agent(connection: Connection, project: str, name: str, now: int) -> Agent:
    """A new agent with an identity of its own. Raises IntegrityError when the name is taken."""
    connection.execute(
        insert(agents).values(
            project=project,
            name=name,
            guid=new_guid(),
            principal_id=new_guid(),
            client_id=new_guid(),
            blueprint_id=new_guid(),
            next_number=1,
            created_at=now,
        )
    )
    created = find_agent(connection, project, name)
    if created is None:
        raise RuntimeError(f"agent {name} vanished inside its own transaction")
    return created


def list_agents(connection: Connection, project: str, page: PageRequest) -> Page[Agent]:
    """The agents of a project, in the order they were made."""
    rows, more = select_page(connection, select(agents).where(agents.c.project == project), agents.c.key, page)
    return Page(tuple(_agent(row) for row in rows), more)


def delete_agent(connection: Connection, agent: Agent) -> None:
    """Remove an agent with its versions, their events and sessions."""
    connection.execute(delete(agents).where(agents.c.key == agent.key))


def set_session_upgrade(connection: Connection, agent: Agent, policy: SessionUpgrade) -> None:
    """Change what happens to an agent's sessions when a newer version can serve them."""
    connection.execute(update(agents).where(agents.c.key == agent.key).values(session_upgrade=policy))


def create_version(
    connection: Connection,
    agent: Agent,
    definition: Definition,
    metadata: Mapping[str, str],
    description: str | None,
    now: int,
) -> Version:
    """The agent's next version, with status `creating`. Numbers are never used twice, not even after a deletion."""
    number = connection.execute(
        update(agents)
        .where(agents.c.key == agent.key)
        .values(next_number=agents.c.next_number + 1)
        .returning(agents.c.next_number - 1)
    ).scalar_one()
    connection.execute(
        insert(versions).values(
            agent_key=agent.key,
            number=number,
            definition=json.dumps(definition.to_wire()),
            metadata=json.dumps(dict(metadata)),
            description=description,
            status=VersionStatus.CREATING,
            created_at=now,
        )
    )
    created = find_version(connection, agent.project, agent.name, number)
    if created is None:
        raise RuntimeError(f"version {number} of {agent.name} vanished inside its own transaction")
    return created


def find_version(connection: Connection, project: str, name: str, number: int) -> Version | None:
    """One version by agent name and number, or None."""
    row = connection.execute(
        _versions().where(agents.c.project == project, agents.c.name == name, versions.c.number == number)
    ).first()
    return None if row is None else _version(row)


def version_by_key(connection: Connection, key: int) -> Version | None:
    """One version by its key, or None."""
    row = connection.execute(_versions().where(versions.c.key == key)).first()
    return None if row is None else _version(row)


def version_numbers(connection: Connection, keys: Collection[int]) -> dict[int, int]:
    """The numbers of versions by their keys."""
    query = select(versions.c.key, versions.c.number).where(versions.c.key.in_(keys))
    return {row.key: row.number for row in connection.execute(query)}


def latest_version(connection: Connection, agent: Agent, status: VersionStatus | None = None) -> Version | None:
    """The newest version that is not being deleted; with `status`, the newest that has it."""
    query = _versions().where(versions.c.agent_key == agent.key)
    query = query.where(versions.c.status == status if status else versions.c.status != VersionStatus.DELETING)
    row = connection.execute(query.order_by(versions.c.key.desc()).limit(1)).first()
    return None if row is None else _version(row)


def list_versions(connection: Connection, agent: Agent, page: PageRequest) -> Page[Version]:
    """The versions of an agent, in the order they were made."""
    rows, more = select_page(connection, _versions().where(versions.c.agent_key == agent.key), versions.c.key, page)
    return Page(tuple(_version(row) for row in rows), more)


def versions_of_agent(connection: Connection, agent: Agent) -> tuple[Version, ...]:
    """Every version of an agent, oldest first."""
    rows = connection.execute(_versions().where(versions.c.agent_key == agent.key).order_by(versions.c.key))
    return tuple(_version(row) for row in rows)


def versions_with_status(connection: Connection, status: VersionStatus) -> tuple[Version, ...]:
    """Every version with a status, of all projects, oldest first."""
    rows = connection.execute(_versions().where(versions.c.status == status).order_by(versions.c.key))
    return tuple(_version(row) for row in rows)


def used_digests(connection: Connection) -> frozenset[str]:
    """The image digests that some version is pinned to."""
    return frozenset(connection.execute(select(versions.c.digest).where(versions.c.digest.is_not(None))).scalars())


def set_digest(connection: Connection, key: int, digest: str) -> None:
    """Pin a version to the digest its image was resolved to."""
    connection.execute(update(versions).where(versions.c.key == key).values(digest=digest))


def move_version(
    connection: Connection,
    key: int,
    then: VersionStatus,
    error_code: str | None = None,
    error_message: str | None = None,
) -> bool:
    """The one place where a version's status changes; False when the version is gone. Raises IllegalMove."""
    now = connection.execute(select(versions.c.status).where(versions.c.key == key)).scalar()
    if now is None:
        return False
    check_move(VersionStatus(now), then)
    connection.execute(
        update(versions)
        .where(versions.c.key == key)
        .values(status=then, error_code=error_code, error_message=error_message)
    )
    return True


def delete_version(connection: Connection, key: int) -> None:
    """Remove a version with its events and sessions."""
    connection.execute(delete(versions).where(versions.c.key == key))


def add_event(connection: Connection, version_key: int, event: VersionEvent) -> None:
    """Append to a version's event log; nothing happens when the version is gone."""
    if connection.execute(select(versions.c.key).where(versions.c.key == version_key)).first() is None:
        return
    connection.execute(
        insert(version_events).values(
            version_key=version_key,
            at_milliseconds=event.at,
            step=event.step,
            message=event.message,
            duration_milliseconds=event.duration,
            failed=event.failed,
        )
    )


def list_events(connection: Connection, version_key: int) -> tuple[VersionEvent, ...]:
    """The event log of a version, in order."""
    query = select(version_events).where(version_events.c.version_key == version_key).order_by(version_events.c.key)
    return tuple(
        VersionEvent(row.at_milliseconds, row.step, row.message, row.duration_milliseconds, row.failed)
        for row in connection.execute(query)
    )


def set_priming_plan(connection: Connection, version_key: int, plan: bytes) -> None:
    """Keep what interpreters of a version may import ahead; nothing happens when the version is gone."""
    connection.execute(delete(priming_plans).where(priming_plans.c.version_key == version_key))
    if connection.execute(select(versions.c.key).where(versions.c.key == version_key)).first() is not None:
        connection.execute(insert(priming_plans).values(version_key=version_key, plan=plan))


def priming_plan(connection: Connection, version_key: int) -> bytes | None:
    """What interpreters of a version may import ahead, or None where nothing is made ready that way."""
    return connection.execute(select(priming_plans.c.plan).where(priming_plans.c.version_key == version_key)).scalar()


def _versions() -> Select[Any]:
    return select(agents, *_VERSION_COLUMNS).join(versions, versions.c.agent_key == agents.c.key)


def _agent(row: Row[Any]) -> Agent:
    identity = Identity(row.principal_id, row.client_id, row.blueprint_id)
    upgrade = SessionUpgrade(row.session_upgrade)
    return Agent(row.key, row.project, row.name, row.guid, identity, row.created_at, upgrade)


def _version(row: Row[Any]) -> Version:
    return Version(
        key=row.version_key,
        agent=_agent(row),
        number=row.version_number,
        definition=parse_definition(json.loads(row.version_definition)),
        metadata=json.loads(row.version_metadata),
        description=row.version_description,
        status=VersionStatus(row.version_status),
        error_code=row.version_error_code,
        error_message=row.version_error_message,
        digest=row.version_digest,
        created_at=row.version_created_at,
    )
