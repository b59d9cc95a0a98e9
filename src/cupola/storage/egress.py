"""The egress policies of projects in the database."""

from __future__ import annotations

import json

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from cupola.domain.egress import EgressPolicy, parse_egress
from cupola.storage.schema import egress_policies


def set_egress(connection: Connection, project: str, policy: EgressPolicy, now: int) -> None:
    """Give a project a policy in place of the one it had."""
    values = {"policy": json.dumps(policy.to_json()), "changed_at": now}
    statement = insert(egress_policies).values(project=project, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["project"], set_=values))


def find_egress(connection: Connection, project: str) -> EgressPolicy | None:
    """The policy that a project was given; None when it was given none."""
    statement = select(egress_policies.c.policy).where(egress_policies.c.project == project)
    text = connection.execute(statement).scalar()
    return None if text is None else parse_egress(json.loads(text))
