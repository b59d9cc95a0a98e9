"""The tasks that agents keep, with leases, so that what was under way is taken up again after a crash (container contract,
section 4.14). A sandbox sees the tasks of its own session."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.api.service_calls import limit_of, parse_object, parsed_body, sandbox_of
from cupola.domain.errors import invalid_request
from cupola.domain.service_limits import check_tags
from cupola.domain.task import LeaseRequest, Moment, Task
from cupola.storage import tasks
from cupola.storage.database import Database
from cupola.storage.tasks import TaskFilter

PAGE, LONGEST_PAGE = 20, 100
_LEASE = ("lease_owner", "lease_instance_id", "lease_duration_seconds")


class TasksApi:
    """`/tasks`. `max_body` is in bytes."""

    def __init__(
        self, database: Database, max_body: int, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self._max_body = max_body
        self._clock = clock

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        return [
            Route("/tasks", self.create, methods=["POST"]),
            Route("/tasks", self.list, methods=["GET"]),
            Route("/tasks/{id:any}", self.get, methods=["GET"]),
            Route("/tasks/{id:any}", self.update, methods=["PATCH"]),
            Route("/tasks/{id:any}", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """POST /tasks."""
        sandbox, lease = sandbox_of(request), _lease(request.query_params)
        fields = await parsed_body(request, self._max_body, parse_object)
        spare, moment = f"task-{secrets.token_hex(8)}", self._moment()
        task = await self._database.write(
            lambda connection: tasks.create_task(connection, sandbox, fields, lease, spare, moment)
        )
        return _answer(task, 201)

    async def get(self, request: Request) -> Response:
        """GET /tasks/{id}."""
        sandbox, task_id = sandbox_of(request), request.path_params["id"]
        return _answer(await self._database.read(lambda connection: tasks.get_task(connection, sandbox, task_id)))

    async def update(self, request: Request) -> Response:
        """PATCH /tasks/{id}: a merge patch; an empty one with a lease renews it."""
        sandbox, lease, task_id = sandbox_of(request), _lease(request.query_params), request.path_params["id"]
        patch = await parsed_body(request, self._max_body, parse_object)
        if_match, moment = request.headers.get("if-match"), self._moment()
        task = await self._database.write(
            lambda connection: tasks.update_task(connection, sandbox, task_id, patch, lease, if_match, moment)
        )
        return _answer(task)

    async def delete(self, request: Request) -> Response:
        """DELETE /tasks/{id}."""
        sandbox, task_id = sandbox_of(request), request.path_params["id"]
        if_match, force = request.headers.get("if-match"), _flag(request.query_params, "force") is True
        await self._database.write(
            lambda connection: tasks.delete_task(connection, sandbox, task_id, if_match, force=force)
        )
        return Response(status_code=204)

    async def list(self, request: Request) -> Response:
        """GET /tasks."""
        sandbox, query = sandbox_of(request), request.query_params
        if "before" in query:
            raise invalid_request("before: lists of tasks go by after alone.", "before")
        if query.get("order", "desc") not in ("asc", "desc"):
            raise invalid_request("order: expected asc or desc.", "order")
        wanted, limit, now = _filter(query), limit_of(request, PAGE, LONGEST_PAGE), self._clock()
        page = await self._database.read(
            lambda connection: tasks.list_tasks(
                connection,
                sandbox,
                wanted,
                now,
                limit=limit,
                order="asc" if query.get("order") == "asc" else "desc",
                after=query.get("after"),
                with_attachments=_flag(query, "omit_attachment_values") is not True,
            )
        )
        last = page.items[-1].id if page.items else None
        data = [task.to_wire() for task in page.items]
        return JSONResponse({"object": "list", "data": data, "has_more": page.has_more, "last_id": last})

    def _moment(self) -> Moment:
        return Moment(self._clock(), secrets.token_hex(8))


def _answer(task: Task, status: int = 200) -> Response:
    return JSONResponse(task.to_wire(), status, {"etag": task.etag})


def _lease(query: QueryParams) -> LeaseRequest | None:
    given = [query.get(name, "") for name in _LEASE]
    if not any(given):
        return None
    if not all(given):
        raise invalid_request(f"A lease needs all of {', '.join(_LEASE)}.", _LEASE[0])
    owner, instance, seconds = given
    if not seconds.isascii() or not seconds.isdecimal() or len(seconds) > 9:
        raise invalid_request("lease_duration_seconds: expected a whole number.", "lease_duration_seconds")
    return LeaseRequest(owner, instance, int(seconds))


def _filter(query: QueryParams) -> TaskFilter:
    tags = {name.removeprefix("tag."): text for name, text in query.items() if name.startswith("tag.")}
    check_tags(tags)
    return TaskFilter(
        agent_name=query.get("agent_name"),
        session_id=query.get("session_id"),
        status=query.get("status"),
        lease_owner=query.get("lease_owner"),
        source_type=query.get("source_type"),
        has_error=_flag(query, "has_error"),
        lease_expired=_flag(query, "lease_expired"),
        tags=tags,
    )


def _flag(query: QueryParams, name: str) -> bool | None:
    text = query.get(name)
    if text is None:
        return None
    if text.lower() not in ("true", "false"):
        raise invalid_request(f"{name}: expected true or false.", name)
    return text.lower() == "true"
