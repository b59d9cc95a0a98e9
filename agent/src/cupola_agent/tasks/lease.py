"""Holding the lease of a task while working on it.

A lease is renewed long before it expires. It is lost when another has taken it, when the task is gone or done, or
when nobody could be asked for so long that it has expired: from then on another may be at work, so stop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from cupola_agent.stores.base import ConflictError, Json, NotFoundError, PreconditionFailedError, StoreError
from cupola_agent.tasks.base import LeaseRequest, Task, TaskStore

logger = logging.getLogger("cupola_agent")

LEASE_SECONDS = 60
RENEW_SECONDS = 30.0
RETRY_SECONDS = 2.0
LAST_CHANCE_SECONDS = 5.0


class LeaseLost(Exception):
    """Another works on the task now, or may. Whatever is written to it would be wrong."""


class HeldLease:
    """The lease that `task` was read with, renewed while this context manager is open.

    It knows the newest state of the task, and all changes by its holder go through `update`: every write, renewals
    included, changes the ETag. Leaving it ends the renewals and does not give the lease back.
    """

    def __init__(
        self,
        store: TaskStore,
        task: Task,
        lease: LeaseRequest,
        *,
        renew_seconds: float = RENEW_SECONDS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if task.lease is None or not task.lease.held_by(lease):
            raise ValueError("the task was not read with this lease")
        self._store = store
        self._task = task
        self._lease = lease
        self._generation = task.lease.generation
        self._renew_seconds = renew_seconds
        self._sleep = sleep
        self._clock = clock
        self._expires_at = clock() + lease.duration_seconds
        self._lock = asyncio.Lock()
        self._renewals: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._reason = ""

    @property
    def task(self) -> Task:
        """The task as it was written or read last."""
        return self._task

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    async def wait_lost(self) -> str:
        """Waits until the lease is lost, and says why."""
        await self._lost.wait()
        return self._reason

    async def update(self, patch: Json) -> Task:
        """Changes the task as its holder. Raises LeaseLost, and what the store raises."""
        async with self._lock:
            if self.is_lost:
                raise LeaseLost(self._reason)
            return await self._write(patch, None)

    async def __aenter__(self) -> "HeldLease":
        self._renewals = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._renewals is not None  # noqa: S101  (what __aenter__ sets)
        self._renewals.cancel()
        # Waited for as a set, so that its end by cancellation is not taken for ours.
        await asyncio.wait((self._renewals,))

    async def _keep(self) -> None:
        pause = self._renew_seconds
        try:
            while not self.is_lost:
                await self._sleep(pause)
                pause = self._renew_seconds if await self._renew() else RETRY_SECONDS
        except Exception:
            logger.exception("the lease of task %s is not renewed any more", self._task.id)
            self._lose("it could not be renewed")

    async def _renew(self) -> bool:
        """Whether the lease was renewed. Unless it is lost, asking again soon is worth it."""
        async with self._lock:
            if self._task.status != "in_progress":
                self._lose(f"the task is {self._task.status}")
                return False
            try:
                # Asked even when it has expired, as after a freeze of the sandbox: nobody may have taken it.
                async with asyncio.timeout(max(LAST_CHANCE_SECONDS, self._expires_at - self._clock())):
                    await self._write({}, self._lease)
            except LeaseLost:
                return False
            except (StoreError, TimeoutError) as error:
                logger.warning("the lease of task %s could not be renewed: %s", self._task.id, error)
                if self._clock() >= self._expires_at:
                    self._lose("it expired before it could be renewed")
                return False
            return True

    async def _write(self, patch: Json, lease: LeaseRequest | None) -> Task:
        """Writes on top of the state known here: without its ETag a renewal would take a lost lease back."""
        asked_at = self._clock()
        try:
            try:
                self._task = await self._store.update(self._task.id, patch, lease, if_match=self._task.etag)
            except PreconditionFailedError:
                # An answer of ours was lost, or somebody else wrote.
                await self._read_again()
                self._task = await self._store.update(self._task.id, patch, lease, if_match=self._task.etag)
        except NotFoundError:
            self._lose("the task is gone")
            raise LeaseLost(self._reason) from None
        except ConflictError as error:
            if error.code not in ("lease_held_by_another", "lease_ownership_changed", "task_immutable"):
                raise
            self._lose(error.message)
            raise LeaseLost(self._reason) from None
        if lease is not None:
            self._expires_at = asked_at + lease.duration_seconds
        return self._task

    async def _read_again(self) -> None:
        task = await self._store.get(self._task.id)
        held = task.lease
        if held is None or not held.held_by(self._lease) or held.generation != self._generation:
            self._lose("another instance has taken the task over")
            raise LeaseLost(self._reason)
        self._task = task

    def _lose(self, reason: str) -> None:
        if not self.is_lost:
            self._reason = reason
            self._lost.set()
