import asyncio
from collections.abc import AsyncIterator
from typing import Any

from cupola_agent import Agent, ResponseContext
from cupola_agent.stores.memory import MemoryResponseStore
from cupola_agent.testing import TestClient


class Steered:
    """A steerable agent whose turns say what they were told, wait until they are let go or interrupted, and end."""

    def __init__(self) -> None:
        self.agent = Agent(environ={}, store=MemoryResponseStore)
        self.begun: list[str] = []
        self.interrupted: list[str] = []
        self.history: dict[str, list[str]] = {}
        self.waiting: dict[str, int] = {}
        self.go = asyncio.Event()
        self.deaf: set[str] = set()
        """Turns that go on although a newer one waits."""

        @self.agent.responses(steerable=True)
        async def reply(input: str, context: ResponseContext, history: list[Any]) -> AsyncIterator[str]:  # noqa: A002
            self.begun.append(input)
            self.history[input] = [part["text"] for item in history for part in item["content"]]
            yield f"heard {input}"
            if input in self.deaf:
                context.cancelled.is_set()
                await self.go.wait()
                return
            go, steered = asyncio.create_task(self.go.wait()), asyncio.create_task(context.cancelled.wait())
            await asyncio.wait((go, steered), return_when=asyncio.FIRST_COMPLETED)
            if context.cancelled.is_set() and not context.client_cancelled and not context.shutdown:
                self.interrupted.append(input)
                self.waiting[input] = context.pending_input_count
            go.cancel()
            steered.cancel()

    async def ask(self, client: TestClient, text: str, **fields: Any) -> dict[str, Any]:
        answer = await client.post("/responses", json={"model": "m", "input": text, "background": True, **fields})
        assert answer.status == 200, answer.text
        response: dict[str, Any] = answer.json()
        return response


async def ended(client: TestClient, response_id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            response: dict[str, Any] = (await client.get(f"/responses/{response_id}")).json()
            if response["status"] not in ("queued", "in_progress"):
                return response
            await asyncio.sleep(0.001)


async def wait_until_begun(steered: Steered, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in steered.begun:
            await asyncio.sleep(0.001)


async def test_a_newer_turn_interrupts_the_one_that_runs_and_knows_what_it_said() -> None:
    steered = Steered()
    async with TestClient(steered.agent) as client:
        first = await steered.ask(client, "one")
        await wait_until_begun(steered, "one")
        second = await steered.ask(client, "two", previous_response_id=first["id"])
        assert second["status"] == "queued"
        await wait_until_begun(steered, "two")
        assert (await ended(client, first["id"]))["status"] == "completed"
        steered.go.set()
        assert (await ended(client, second["id"]))["status"] == "completed"
    assert steered.interrupted == ["one"]
    assert steered.waiting == {"one": 1}
    assert steered.history == {"one": [], "two": ["one", "heard one"]}


async def test_turns_of_a_conversation_run_in_the_order_they_came() -> None:
    steered = Steered()
    async with TestClient(steered.agent) as client:
        first = await steered.ask(client, "0", conversation="conv_1")
        await wait_until_begun(steered, "0")
        others = [await steered.ask(client, str(number), conversation="conv_1") for number in range(1, 5)]
        steered.go.set()
        for response in (first, *others):
            assert (await ended(client, response["id"]))["status"] == "completed"
    assert steered.begun == ["0", "1", "2", "3", "4"]
    assert steered.history["4"] == [text for number in range(4) for text in (f"{number}", f"heard {number}")]


async def test_other_conversations_are_not_disturbed() -> None:
    steered = Steered()
    async with TestClient(steered.agent) as client:
        first = await steered.ask(client, "one", conversation="conv_1")
        second = await steered.ask(client, "two", conversation="conv_2")
        await wait_until_begun(steered, "one")
        await wait_until_begun(steered, "two")
        steered.go.set()
        await ended(client, first["id"])
        await ended(client, second["id"])
    assert steered.interrupted == []


async def test_more_than_nine_waiting_turns_are_refused() -> None:
    steered = Steered()
    async with TestClient(steered.agent) as client:
        steered.deaf.add("0")
        await steered.ask(client, "0", conversation="conv_1")
        for number in range(1, 10):
            await steered.ask(client, str(number), conversation="conv_1")
        body = {"model": "m", "input": "x", "background": True, "conversation": "conv_1"}
        answer = await client.post("/responses", json=body)
        assert answer.status == 409
        assert answer.json()["error"]["code"] == "steering_queue_full"
        steered.go.set()


async def test_a_turn_that_continues_from_an_older_response_is_refused() -> None:
    steered = Steered()
    steered.go.set()
    async with TestClient(steered.agent) as client:
        first = await steered.ask(client, "one")
        await ended(client, first["id"])
        second = await steered.ask(client, "two", previous_response_id=first["id"])
        await ended(client, second["id"])
        body = {"model": "m", "input": "fork", "background": True, "previous_response_id": first["id"]}
        answer = await client.post("/responses", json=body)
        assert answer.status == 409
        assert answer.json()["error"]["code"] == "conversation_fork_not_supported"
        assert answer.json()["error"]["param"] == "previous_response_id"


async def test_a_turn_that_waits_can_be_cancelled_and_the_others_go_on() -> None:
    steered = Steered()
    async with TestClient(steered.agent) as client:
        steered.deaf.add("one")
        blocked = await steered.ask(client, "one", conversation="conv_1")
        second = await steered.ask(client, "two", conversation="conv_1")
        third = await steered.ask(client, "three", conversation="conv_1")
        cancelled = (await client.post(f"/responses/{second['id']}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        steered.go.set()
        assert (await ended(client, blocked["id"]))["status"] == "completed"
        assert (await ended(client, third["id"]))["status"] == "completed"
        assert (await client.get(f"/responses/{second['id']}")).json()["status"] == "cancelled"
    assert "two" not in steered.begun


async def test_a_stream_that_waits_says_that_it_is_queued() -> None:
    steered = Steered()
    async with TestClient(steered.agent) as client:
        await steered.ask(client, "one", conversation="conv_1")
        await wait_until_begun(steered, "one")
        asking = asyncio.create_task(
            client.post("/responses", json={"model": "m", "input": "two", "stream": True, "conversation": "conv_1"})
        )
        await wait_until_begun(steered, "two")
        steered.go.set()
        events = (await asking).events()
    kinds = [kind for kind, _ in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert events[0][1]["response"]["status"] == "queued"
    assert kinds[-1] == "response.completed"
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
