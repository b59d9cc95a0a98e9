"""Tasks kept by the platform (contract section 4.14)."""

from typing import Any

from cupola_agent.platform.api import Platform, segment
from cupola_agent.stores.base import Json, UnavailableError
from cupola_agent.tasks.base import LeaseRequest, Task, TaskFilter, TaskPage

_HEADERS = {"foundry-features": "Routines=V2Preview"}
# Whatever the method, but never after a 409.
_RETRIED = frozenset({408, 429, *range(500, 600)})


class PlatformTaskStore:
    """A TaskStore on the platform. Closing it closes the connections of `platform`.

    A write whose answer was lost is sent again. It may then find its own work: a task that exists, or a stale ETag;
    read the task to know.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def create(self, fields: Json, lease: LeaseRequest | None = None) -> Task:
        return _task(await self._call("POST", "", _lease_query(lease), fields))

    async def get(self, task_id: str) -> Task:
        return _task(await self._call("GET", f"/{segment(task_id)}"))

    async def update(
        self, task_id: str, patch: Json, lease: LeaseRequest | None = None, *, if_match: str | None = None
    ) -> Task:
        path = f"/{segment(task_id)}"
        return _task(await self._call("PATCH", path, _lease_query(lease), patch, if_match=if_match))

    async def delete(self, task_id: str, *, force: bool = False, if_match: str | None = None) -> None:
        query = {"force": "true"} if force else {}
        await self._call("DELETE", f"/{segment(task_id)}", query, if_match=if_match)

    async def list(
        self,
        wanted: TaskFilter,
        *,
        limit: int = 100,
        after: str | None = None,
        newest_first: bool = True,
        omit_attachment_values: bool = False,
    ) -> TaskPage:
        query = {"limit": str(limit), "order": "desc" if newest_first else "asc", **_filter_query(wanted)}
        if after is not None:
            query["after"] = after
        if omit_attachment_values:
            query["omit_attachment_values"] = "true"
        body = await self._call("GET", "", query)
        if not isinstance(body, dict) or not isinstance(body.get("data"), list):
            raise UnavailableError("The platform answered with something else than a list of tasks.")
        return TaskPage(tuple(_task(fields) for fields in body["data"]), bool(body.get("has_more")))

    async def close(self) -> None:
        await self._platform.close()

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Json | None = None,
        *,
        if_match: str | None = None,
    ) -> Any:
        headers = _HEADERS if if_match is None else {**_HEADERS, "if-match": if_match}
        reply = await self._platform.call(
            method, f"/tasks{path}", query=query, body=body, headers=headers, retried=_RETRIED
        )
        return reply.body


def _task(fields: Any) -> Task:
    try:
        return Task.from_json(fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise UnavailableError(f"The platform answered with something else than a task: {error!r}") from error


def _lease_query(lease: LeaseRequest | None) -> dict[str, str]:
    if lease is None:
        return {}
    return {
        "lease_owner": lease.owner,
        "lease_instance_id": lease.instance_id,
        "lease_duration_seconds": str(lease.duration_seconds),
    }


def _filter_query(wanted: TaskFilter) -> dict[str, str]:
    texts = {
        "agent_name": wanted.agent_name,
        "session_id": wanted.session_id,
        "status": wanted.status,
        "lease_owner": wanted.lease_owner,
        "source_type": wanted.source_type,
        "has_error": None if wanted.has_error is None else str(wanted.has_error).lower(),
        "lease_expired": None if wanted.lease_expired is None else str(wanted.lease_expired).lower(),
        **{f"tag.{key}": value for key, value in wanted.tags.items()},
    }
    return {name: text for name, text in texts.items() if text is not None}
