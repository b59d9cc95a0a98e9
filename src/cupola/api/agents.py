"""Agents and their versions (wire contract, sections 3.2 and 3.3)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.api.http import caller, json_object, page_body, page_request
from cupola.api.objects import agent_object, event_object, version_object
from cupola.domain.definition import Definition, parse_definition, parse_metadata
from cupola.domain.errors import CupolaError, not_found
from cupola.domain.ids import AGENT_NAME
from cupola.domain.principal import Principal
from cupola.domain.session import SessionUpgrade
from cupola.domain.version import Agent, Version, VersionStatus
from cupola.images.reference import Reference, parse_reference
from cupola.images.store import ImageStore
from cupola.sessions.manager import SessionManager
from cupola.sessions.provisioner import Provisioner
from cupola.storage import agents
from cupola.storage.database import Database
from cupola.storage.paging import Page

FIRST_GENERATION = "2025-11-15-preview"
"""The API version of the clients before 2.0.0."""
RESOLVE_DEADLINE = 5.0
"""Seconds for asking whether a tag still means the same image."""
DESCRIPTION_LIMIT = 4096


@dataclass(frozen=True)
class _Posted:
    definition: Definition
    metadata: dict[str, str]
    description: str | None
    reference: Reference

    def equals(self, version: Version) -> bool:
        mine = (self.definition, self.metadata, self.description)
        return mine == (version.definition, dict(version.metadata), version.description)


class AgentsApi:
    """The routes below `/api/projects/{project}/agents`."""

    def __init__(
        self,
        database: Database,
        images: ImageStore,
        provisioner: Provisioner,
        manager: SessionManager,
        *,
        local_images: bool,
    ) -> None:
        self._database = database
        self._images = images
        self._provisioner = provisioner
        self._manager = manager
        self._local_images = local_images

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        return [
            Route("/agents", self.list_agents, methods=["GET"]),
            Route("/agents", self.create_agent, methods=["POST"]),
            Route("/agents/{name}", self.get_agent, methods=["GET"]),
            Route("/agents/{name}", self.update_agent, methods=["POST"]),
            Route("/agents/{name}", self.patch_agent, methods=["PATCH"]),
            Route("/agents/{name}", self.delete_agent, methods=["DELETE"]),
            Route("/agents/{name}/versions", self.list_versions, methods=["GET"]),
            Route("/agents/{name}/versions", self.create_version, methods=["POST"]),
            Route("/agents/{name}/versions/{version}", self.get_version, methods=["GET"]),
            Route("/agents/{name}/versions/{version}", self.delete_version, methods=["DELETE"]),
            Route("/agents/{name}/versions/{version}/events", self.list_events, methods=["GET"]),
        ]

    async def list_agents(self, request: Request) -> Response:
        """GET /agents: newest first unless `order=asc`; `kind` other than hosted gives an empty list."""
        project = request.path_params["project"]

        async def key_of(name: str) -> int | None:
            found = await self._database.read(lambda connection: agents.find_agent(connection, project, name))
            return None if found is None else found.key

        wanted = await page_request(request.query_params, key_of)

        def read(connection: Connection) -> tuple[Page[Agent], dict[int, Version | None]]:
            page = agents.list_agents(connection, project, wanted)
            return page, {agent.key: agents.latest_version(connection, agent) for agent in page.items}

        if request.query_params.get("kind", "hosted") != "hosted":
            return JSONResponse(page_body(Page[Agent]((), False), lambda _: {}, lambda agent: agent.name))
        page, latest = await self._database.read(read)
        return JSONResponse(
            page_body(page, lambda agent: agent_object(agent, latest[agent.key]), lambda agent: agent.name)
        )

    async def create_agent(self, request: Request) -> Response:
        """POST /agents, of the first client generation: the agent must be new."""
        body = await json_object(request)
        name = body.get("name")
        posted = self._parse(body, caller(request))
        version = await self._create(request.path_params["project"], _agent_name(name), posted, must_be_new=True)
        return JSONResponse(agent_object(version.agent, version))

    async def update_agent(self, request: Request) -> Response:
        """POST /agents/{name}, of the first client generation: a new version of an agent that exists."""
        posted = self._parse(await json_object(request), caller(request))
        agent = await self._agent(request)
        version = await self._create(agent.project, agent.name, posted)
        return JSONResponse(agent_object(version.agent, version))

    async def get_agent(self, request: Request) -> Response:
        """GET /agents/{name}."""
        agent = await self._agent(request)
        latest = await self._database.read(lambda connection: agents.latest_version(connection, agent))
        return JSONResponse(agent_object(agent, latest))

    async def patch_agent(self, request: Request) -> Response:
        """PATCH /agents/{name}: `session_upgrade`, which is this platform's own."""
        body = await json_object(request)
        unknown = sorted(set(body) - {"session_upgrade"})
        if unknown:
            text = f"{unknown[0][:64]}: cannot be changed; only session_upgrade can."
            raise CupolaError("bad_request", text, param=unknown[0][:64])
        if "session_upgrade" in body:
            policy = _session_upgrade(body["session_upgrade"])
            agent = await self._agent(request)
            await self._database.write(lambda connection: agents.set_session_upgrade(connection, agent, policy))
        return await self.get_agent(request)

    async def delete_agent(self, request: Request) -> Response:
        """DELETE /agents/{name}: 409 while sessions run, unless `force=true`."""
        agent = await self._agent(request)
        versions = await self._database.read(lambda connection: agents.versions_of_agent(connection, agent))
        if not _forced(request) and any(self._manager.has_live_sessions(version.key) for version in versions):
            raise _live_sessions(f"Agent {agent.name}")
        for version in versions:
            await self._remove(version)
        await self._database.write(lambda connection: agents.delete_agent(connection, agent))
        return JSONResponse({"object": "agent.deleted", "name": agent.name, "deleted": True})

    async def list_versions(self, request: Request) -> Response:
        """GET /agents/{name}/versions: newest first unless `order=asc`."""
        agent = await self._agent(request)

        async def key_of(version_id: str) -> int | None:
            found = await self._find_version(agent.project, agent.name, version_id.rpartition(":")[2])
            return None if found is None else found.key

        wanted = await page_request(request.query_params, key_of)
        page = await self._database.read(lambda connection: agents.list_versions(connection, agent, wanted))
        return JSONResponse(page_body(page, version_object, lambda version: version.name))

    async def create_version(self, request: Request) -> Response:
        """POST /agents/{name}/versions: answers at once with status `creating`; the agent is made when it is new."""
        name = _agent_name(request.path_params["name"])
        posted = self._parse(await json_object(request), caller(request))
        return JSONResponse(version_object(await self._create(request.path_params["project"], name, posted)))

    async def get_version(self, request: Request) -> Response:
        """GET /agents/{name}/versions/{version}."""
        return JSONResponse(version_object(await self._version(request)))

    async def delete_version(self, request: Request) -> Response:
        """DELETE /agents/{name}/versions/{version}: 409 while sessions of it run, unless `force=true`."""
        version = await self._version(request)
        if not _forced(request) and self._manager.has_live_sessions(version.key):
            raise _live_sessions(f"Version {version.name}")
        await self._remove(version)
        return JSONResponse(
            {
                "object": "agent.version.deleted",
                "name": version.agent.name,
                "version": str(version.number),
                "deleted": True,
            }
        )

    async def list_events(self, request: Request) -> Response:
        """GET /agents/{name}/versions/{version}/events: the event log, oldest first."""
        version = await self._version(request)
        events = await self._database.read(lambda connection: agents.list_events(connection, version.key))
        return JSONResponse({"object": "list", "data": [event_object(event) for event in events], "has_more": False})

    async def finish_deletions(self) -> None:
        """Remove what a previous process was deleting when it ended."""
        for version in await self._database.read(
            lambda connection: agents.versions_with_status(connection, VersionStatus.DELETING)
        ):
            await self._remove(version)

    def _parse(self, body: dict[str, Any], caller: Principal) -> _Posted:
        definition = parse_definition(body.get("definition"))
        reference = parse_reference(definition.image)
        if reference.is_local and not (self._local_images and caller.administrator):
            reason = "only administrators may use them" if self._local_images else "the setting local_images is off"
            raise CupolaError(
                "InvalidContainerImage",
                f"definition.image: {definition.image!r} names an image on the server's own machine, and {reason}; "
                "push it to a registry and use that name.",
                param="definition.image",
            )
        if reference.path and not reference.path.startswith("/"):
            raise CupolaError(
                "InvalidContainerImage",
                f"definition.image: {definition.image!r} has a relative path; the server runs elsewhere, so write the full "
                "path, such as oci:/srv/images/agent:1.",
                param="definition.image",
            )
        description = body.get("description")
        if description is not None and (not isinstance(description, str) or len(description) > DESCRIPTION_LIMIT):
            raise CupolaError(
                "bad_request",
                f"description: expected text of at most {DESCRIPTION_LIMIT} characters.",
                param="description",
            )
        return _Posted(definition, parse_metadata(body.get("metadata")), description, reference)

    async def _create(self, project: str, name: str, posted: _Posted, *, must_be_new: bool = False) -> Version:
        same = None if must_be_new else await self._same_as_latest(project, name, posted)
        if same is not None:
            return same

        def write(connection: Connection) -> Version:
            now = int(time.time())
            agent = agents.find_agent(connection, project, name)
            if agent is None or must_be_new:
                agent = agents.create_agent(connection, project, name, now)
            latest = agents.latest_version(connection, agent)
            if latest is not None and latest.status is VersionStatus.CREATING and posted.equals(latest):
                return latest
            return agents.create_version(connection, agent, posted.definition, posted.metadata, posted.description, now)

        try:
            version = await self._database.write(write)
        except IntegrityError as error:
            raise CupolaError(
                "conflict",
                f"Agent {name} exists already; post to /agents/{name}/versions for a new version.",
                status=409,
            ) from error
        self._provisioner.submit(version)
        return version

    async def _same_as_latest(self, project: str, name: str, posted: _Posted) -> Version | None:
        """The agent's latest version, if it is active and posting this again would make the very same thing."""

        def read(connection: Connection) -> Version | None:
            agent = agents.find_agent(connection, project, name)
            return None if agent is None else agents.latest_version(connection, agent)

        latest = await self._database.read(read)
        if latest is None or latest.status is not VersionStatus.ACTIVE or not posted.equals(latest):
            return None
        try:
            async with asyncio.timeout(RESOLVE_DEADLINE):
                digest = await self._images.resolve(posted.reference)
        except (CupolaError, TimeoutError):
            # Let the new version fail with the reason in its event log.
            return None
        return latest if digest == latest.digest else None

    async def _remove(self, version: Version) -> None:
        await self._provisioner.cancel(version.key)
        if version.status is not VersionStatus.DELETING:

            def mark(connection: Connection) -> None:
                now = agents.version_by_key(connection, version.key)
                if now is not None and now.status is not VersionStatus.DELETING:
                    agents.move_version(connection, version.key, VersionStatus.DELETING)

            await self._database.write(mark)
        await self._manager.delete_of_version(version.key)
        await self._database.write(lambda connection: agents.delete_version(connection, version.key))
        self._provisioner.remove_unused_images()

    async def _agent(self, request: Request) -> Agent:
        project, name = request.path_params["project"], request.path_params["name"]
        return await self._database.read(lambda connection: agents.require_agent(connection, project, name))

    async def _version(self, request: Request) -> Version:
        project, name, number = (request.path_params[key] for key in ("project", "name", "version"))
        version = await self._find_version(project, name, number)
        if version is None:
            raise not_found(f"Version {number[:16]} of agent {name[:63]}")
        return version

    async def _find_version(self, project: str, name: str, number: str) -> Version | None:
        if not number.isascii() or not number.isdecimal() or len(number) > 9:
            return None
        return await self._database.read(lambda connection: agents.find_version(connection, project, name, int(number)))


def _agent_name(name: object) -> str:
    if isinstance(name, str) and AGENT_NAME.fullmatch(name):
        return name
    raise CupolaError(
        "bad_request",
        f"name: {str(name)[:80]!r} is not an agent name; use 1 to 63 letters, digits and hyphens, with a letter or "
        "digit at both ends.",
        param="name",
    )


def _session_upgrade(value: object) -> SessionUpgrade:
    try:
        return SessionUpgrade(str(value))
    except ValueError:
        expected = ", ".join(SessionUpgrade)
        text = f"session_upgrade: {str(value)[:64]!r} is unknown; use one of {expected}."
        raise CupolaError("bad_request", text, param="session_upgrade") from None


def _forced(request: Request) -> bool:
    if request.query_params.get("api-version") == FIRST_GENERATION:
        # Its clients know neither sessions nor `force`, so they could not do what a refusal asks of them.
        return True
    return request.query_params.get("force", "").lower() == "true"


def _live_sessions(what: str) -> CupolaError:
    return CupolaError(
        "conflict",
        f"{what} has running sessions; wait until they are idle, or pass force=true to end them.",
        status=409,
    )
