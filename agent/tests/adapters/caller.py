"""Asks agents, as a client of theirs does."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cupola_agent import Agent
from cupola_agent.testing import TestClient

Json = dict[str, Any]


class Caller:
    """Asks an agent, each time after its last answer unless told otherwise."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.last: Json = {}

    async def ask(self, given: Any, *, anew: bool = False, **fields: Any) -> Json:
        """The response, which must have been completed."""
        if self.last and not anew:
            fields.setdefault("previous_response_id", self.last["id"])
        answer = await self.client.post("/responses", json={"input": given, **fields})
        assert answer.status == 200, answer.text
        response: Json = answer.json()
        assert response["status"] == "completed", response["error"]
        self.last = response
        return response

    async def events(self, given: Any) -> list[Json]:
        """The events of a streamed response."""
        answer = await self.client.post("/responses", json={"input": given, "stream": True})
        lines = answer.text.splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    async def approve(self, response: Json, approve: bool, reason: str | None = None) -> Json:
        [request] = of_type(response, "mcp_approval_request")
        decision = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve}
        return await self.ask([{**decision, "reason": reason}], previous_response_id=response["id"])


@asynccontextmanager
async def calling(handler: Callable[..., Any], folder: Path) -> AsyncIterator[Caller]:
    """An agent that keeps its responses in files in this folder."""
    agent = Agent(environ={"AGENTSERVER_STATE_ROOT": str(folder)})
    agent.responses(handler)
    async with TestClient(agent) as client:
        yield Caller(client)


def of_type(response: Json, kind: str) -> list[Json]:
    return [item for item in response["output"] if item["type"] == kind]


def types(response: Json) -> list[str]:
    return [item["type"] for item in response["output"]]


def text(response: Json) -> str:
    return "".join(item["content"][0]["text"] for item in of_type(response, "message"))
