"""Rows for tests of the repositories."""

from __future__ import annotations

from sqlalchemy import Connection

from cupola.domain.definition import parse_definition
from cupola.domain.version import Agent, Version
from cupola.storage import agents

DEFINITION = parse_definition({"kind": "hosted", "image": "registry.example.com/echo:1", "cpu": "0.5"})


def add_agent(connection: Connection, name: str = "echo", project: str = "default") -> Agent:
    return agents.create_agent(connection, project, name, 1000)


def add_version(connection: Connection, agent: Agent) -> Version:
    return agents.create_version(connection, agent, DEFINITION, {"team": "a"}, "A description.", 2000)
