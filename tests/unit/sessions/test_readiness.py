from __future__ import annotations

import asyncio

import pytest

from cupola.sandbox.base import Exit
from cupola.sandbox.http import AgentClient
from cupola.sessions.readiness import ANSWER_LIMIT, NotReady, wait_until_ready
from tests.unit.sandbox.servers import Agent, Handler, LoopbackSandbox, Peer, answer


class Listening(LoopbackSandbox):
    """A sandbox in which nothing listens on the agent's port, but on others."""

    def __init__(self, *ports: int) -> None:
        super().__init__(1)
        self._ports = ports

    def listening_ports(self) -> tuple[int, ...]:
        return self._ports


async def failure(sandbox: LoopbackSandbox, timeout: float = 0.05) -> NotReady:
    client = AgentClient(sandbox)
    with pytest.raises(NotReady) as caught:
        await wait_until_ready(sandbox, client, timeout)
    client.close()
    return caught.value


async def assert_failure(handler: Handler, reason: str) -> None:
    """The wait for such an agent ends with this reason; on a machine that is busy it takes longer until there is one."""
    agent = Agent(handler)
    async with agent.serve():
        for timeout in (0.2, 2.0, 20.0):
            said = str(await failure(agent.sandbox, timeout))
            if reason in said:
                return
    raise AssertionError(f"expected {reason!r}, got {said!r}")


def answering(*answers: bytes) -> Handler:
    """The answers in turn, the last one for ever."""
    left = list(answers)

    async def handle(peer: Peer) -> None:
        while True:
            request = await peer.request()
            assert (request.method, request.target) == (b"GET", b"/readiness")
            await peer.send(left.pop(0) if len(left) > 1 else left[0])

    return handle


async def test_an_agent_is_ready_when_it_says_so() -> None:
    agent = Agent(answering(answer(b"", b"503 Unavailable"), answer(b"", b"404 Not Found"), answer(b"{}")))
    async with agent.serve():
        client = AgentClient(agent.sandbox)
        await wait_until_ready(agent.sandbox, client, 20)
        client.close()
    assert agent.connections == 1


async def test_an_agent_may_begin_to_listen_late() -> None:
    agent = Agent(answering(answer(b"{}")))
    sandbox = LoopbackSandbox(1)
    client = AgentClient(sandbox)
    waiting = asyncio.ensure_future(wait_until_ready(sandbox, client, 20))
    await asyncio.sleep(0)
    async with agent.serve():
        sandbox.port = agent.sandbox.port
        await waiting
        client.close()


async def test_a_container_that_ends_is_not_waited_for() -> None:
    sandbox = LoopbackSandbox(1)
    asyncio.get_running_loop().call_soon(sandbox.exited.set_result, Exit(3))
    error = await failure(sandbox, timeout=600)
    assert str(error) == "The container exited with code 3 before it was ready."
    assert not error.out_of_memory


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Exit(0), "exited with code 0"),
        (Exit(-11), "was killed by signal 11"),
        (Exit(-9, out_of_memory=True), "was killed because it used more memory than its limit"),
    ],
)
async def test_the_way_it_ended_is_told(ended: Exit, said: str) -> None:
    sandbox = LoopbackSandbox(1)
    sandbox.exited.set_result(ended)
    error = await failure(sandbox, timeout=600)
    assert said in str(error)
    assert error.out_of_memory == ended.out_of_memory


async def test_a_container_in_which_nothing_listens() -> None:
    assert str(await failure(Listening())) == (
        "The container was not ready after 0.05 s: nothing listens on any port. "
        "It must listen on the port in the PORT variable, 1."
    )


async def test_a_container_that_listens_on_the_wrong_port() -> None:
    assert "nothing listens on port 1, but the container listens on port 3000, 8000. It must listen on" in str(
        await failure(Listening(3000, 8000))
    )


async def test_an_agent_that_says_it_is_not_ready() -> None:
    reason = "GET /readiness answered with status 503. It must answer with status 200."
    await assert_failure(answering(answer(b"", b"503 Unavailable")), reason)


async def test_an_agent_that_never_answers() -> None:
    await assert_failure(Peer.closed, "something listens on port")


async def test_an_agent_whose_answer_is_not_http() -> None:
    await assert_failure(answering(b"SSH-2.0\r\n"), "GET /readiness failed: the agent's answer is not HTTP")


async def test_an_agent_whose_answer_is_too_large() -> None:
    await assert_failure(answering(answer(b"x" * (ANSWER_LIMIT + 1))), f"larger than {ANSWER_LIMIT} bytes")
