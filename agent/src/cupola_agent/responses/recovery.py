"""Going on with responses that another process left (contract section 4.13)."""

import asyncio
import logging
from typing import TYPE_CHECKING

from cupola_agent.call import Caller
from cupola_agent.responses.objects import Json
from cupola_agent.responses.output import Ending, Output
from cupola_agent.responses.resilience import MAX_RUNS, Resilience
from cupola_agent.stores.base import NotFoundError
from cupola_agent.tasks.base import Task

if TYPE_CHECKING:
    from cupola_agent.responses.service import Responses

_INTERRUPTED = {"code": "server_error", "message": "Server interrupted before completing this response"}
_RUNS = ("queued", "in_progress")

logger = logging.getLogger("cupola_agent")


async def recover(responses: "Responses", resilience: Resilience) -> None:
    """Runs the handler again for every response that was left, or ends it. Raises StoreError."""
    for task in await resilience.abandoned():
        try:
            await _recover(responses, resilience, task)
        except Exception:
            logger.exception("response %s could not be gone on with", task.id)


async def _recover(responses: "Responses", resilience: Resilience, task: Task) -> None:
    from cupola_agent.responses.service import Asked

    given = task.payload["input"]
    response_id: str = given["response_id"]
    caller = Caller(given["user_id_key"], given["call_id"], given["request_id"])
    try:
        stored = await responses.store.get(response_id, caller)
    except NotFoundError:
        # It was never accepted: whoever asked for it had no answer.
        await resilience.drop(task)
        return
    fields: Json = given["request"]
    events = bool(fields.get("stream"))
    if stored["status"] in _RUNS and (given["disposition"] != "re-invoke" or task.payload["runs"] > MAX_RUNS):
        logger.error("response %s was interrupted %d times and is given up", response_id, task.payload["runs"] - 1)
        stored = {**stored, "status": "failed", "error": _INTERRUPTED}
        await responses.store.update(stored, caller)
    if stored["status"] not in _RUNS:
        if events:
            await _tell_end(resilience, stored)
        await resilience.drop(task)
        return
    logger.info("response %s is gone on with, for the %d. time", response_id, task.payload["runs"] - 1)
    headers = {
        "x-agent-user-id": caller.user_id,
        "x-agent-foundry-call-id": caller.call_id,
        **given["client_headers"],
    }
    asked = Asked(
        fields,
        response_id,
        True,
        given["agent_session_id"],
        caller,
        {name: value for name, value in headers.items() if value},
        given["query_parameters"],
    )
    responses.start_turn(await responses.resume(asked, stored, events=events), task)


async def _tell_end(resilience: Resilience, stored: Json) -> None:
    """The terminal event of a response whose process ended between storing it and telling it."""
    log = await asyncio.to_thread(resilience.journals.open, stored["id"])
    terminal = ("response.completed", "response.failed", "response.incomplete")
    last = log.read(max(0, log.end - 1))
    if last and last[-1].startswith(tuple(f"event: {kind}\n".encode() for kind in terminal)):
        return
    output = Output.restored(stored, log.append, log.end)
    output.ending = Ending(stored["status"])
    output.tell_end()
    await log.written()
