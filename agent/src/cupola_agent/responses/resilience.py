"""Responses that outlive the process: each has a task, and the next process goes on with it (contract section 4.13).

Order is what makes it safe. The task is made before the response is stored, and deleted after its terminal state is
stored. So a task without a response was never accepted, and one with an ended response is done.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from cupola_agent.environment import Environment
from cupola_agent.randomness import random_bytes
from cupola_agent.responses.journal import Journals
from cupola_agent.responses.objects import Json
from cupola_agent.responses.turn import Stop, Turn
from cupola_agent.stores.base import ConflictError, NotFoundError, StoreError
from cupola_agent.tasks.base import LeaseRequest, Task, TaskFilter, TaskStore
from cupola_agent.tasks.lease import LEASE_SECONDS, HeldLease
from cupola_agent.version import server_identity

MAX_RUNS = 4
"""How often the handler is run for one response, before a response that kills its process is given up."""

_SOURCE = "agentserver.task"
_NAME = "responses_resilient_one_shot"

logger = logging.getLogger("cupola_agent")


class Resilience:
    """The tasks and journals of one agent's responses."""

    def __init__(self, tasks: TaskStore, folder: Path, environment: Environment) -> None:
        self._tasks = tasks
        self._environment = environment
        self._agent_name = environment.agent_name or "agent"
        self._session_id = environment.session_id or "local"
        self._lease = LeaseRequest(
            owner=f"{self._agent_name}|session:{self._session_id}",
            instance_id=f"worker-{os.getpid()}-{random_bytes(4).hex()}-{int(time.time())}",
            duration_seconds=LEASE_SECONDS,
        )
        self.journals = Journals(folder)

    async def close(self) -> None:
        await self._tasks.close()

    async def begin(self, turn: Turn) -> Task:
        """Makes the task of a response that is about to be stored. Raises StoreError."""
        context = turn.context
        fields: Json = {
            "id": context.response_id,
            "agent_name": self._agent_name,
            "session_id": self._session_id,
            "status": "in_progress",
            "payload": {
                "schema_version": "1",
                "runs": 1,
                "input": {
                    "response_id": context.response_id,
                    "disposition": "re-invoke",
                    "request": turn.fields,
                    "agent_session_id": context.session_id,
                    "user_id_key": turn.caller.user_id,
                    "call_id": turn.caller.call_id,
                    "request_id": turn.caller.request_id,
                    "client_headers": dict(context.client_headers),
                    "query_parameters": dict(context.query_parameters),
                },
            },
            "tags": {"task_name": _NAME},
            "source": {"type": _SOURCE, "name": _NAME, "server_version": server_identity()},
        }
        return await self._tasks.create(fields, self._lease)

    async def run(self, task: Task, run: Callable[[], Awaitable[None]], turn: Turn) -> None:
        """Runs a turn while its task is ours, and ends the task with it."""
        async with HeldLease(self._tasks, task, self._lease) as held:
            watching = asyncio.create_task(self._evict(held, turn))
            try:
                await run()
            finally:
                watching.cancel()
                await asyncio.wait((watching,))
            if held.is_lost:
                return
            try:
                if turn.left:
                    await self._tasks.update(task.id, {}, LeaseRequest(self._lease.owner, self._lease.instance_id, 0))
                else:
                    await self._tasks.delete(task.id, force=True)
            except (NotFoundError, ConflictError):
                return  # whoever took it over ends it
            except StoreError as error:
                # The response is stored: the next process finds that there is nothing left to do.
                logger.warning("the task of response %s could not be ended: %s", task.id, error.message)

    async def _evict(self, held: HeldLease, turn: Turn) -> None:
        reason = await held.wait_lost()
        logger.warning("response %s is given up to another process: %s", turn.context.response_id, reason)
        turn.stop(Stop.EVICTED)

    async def abandoned(self) -> list[Task]:
        """The tasks that another process of this agent and session left, now leased by this one. Raises StoreError."""
        found: list[Task] = []
        after = None
        wanted = TaskFilter(
            agent_name=self._agent_name,
            session_id=self._session_id,
            status="in_progress",
            lease_owner=self._lease.owner,
            source_type=_SOURCE,
        )
        while True:
            page = await self._tasks.list(wanted, limit=100, after=after)
            for task in page.tasks:
                taken = await self._take(task) if self._is_abandoned(task) else None
                if taken is not None:
                    found.append(taken)
            if not page.has_more:
                return found
            after = page.tasks[-1].id

    async def drop(self, task: Task) -> None:
        """Deletes a task that there is nothing to do for."""
        try:
            await self._tasks.delete(task.id, force=True)
        except NotFoundError:
            return

    async def _take(self, task: Task) -> Task | None:
        runs = int((task.payload or {}).get("runs", 1)) + 1
        try:
            return await self._tasks.update(task.id, {"payload": {"runs": runs}}, self._lease, if_match=task.etag)
        except StoreError as error:
            logger.warning("task %s could not be taken over: %s", task.id, error.message)
            return None

    def _is_abandoned(self, task: Task) -> bool:
        """Whether nobody works on it. In a platform, a session has one process at a time; elsewhere two agents may
        share a state folder, so the one that holds the lease must be gone.
        """
        lease = task.lease
        if self._environment.hosted or lease is None:
            return True
        if datetime.fromisoformat(lease.expires_at) < datetime.now(UTC):
            return True
        process = lease.instance_id.split("-")[1:2]
        alive = bool(process) and process[0].isdecimal() and Path("/proc", process[0]).exists()
        return not alive or process[0] == str(os.getpid())
