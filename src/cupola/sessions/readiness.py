"""Wait until a started sandbox answers `GET /readiness` with 200, and say why when it does not."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from cupola.sandbox.base import Sandbox
from cupola.sandbox.http import AgentClient, AgentConnectionError

CONNECT_PAUSE = 0.002
READINESS_PAUSE = 0.02
ANSWER_LIMIT = 64 * 1024

_CONNECTED = (0, errno.EISCONN)
_NOT_YET = (errno.ECONNREFUSED, errno.ECONNABORTED, errno.EINPROGRESS, errno.EALREADY)


class NotReady(Exception):
    """The agent did not become ready. `out_of_memory` tells the most common cause apart."""

    def __init__(self, message: str, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


async def wait_until_ready(sandbox: Sandbox, client: AgentClient, timeout: float) -> None:
    """Returns once the agent is ready; raises NotReady when it exits or `timeout` seconds have passed."""
    progress = _Progress()
    waiting = asyncio.create_task(_poll(sandbox, client, progress))
    try:
        both: set[asyncio.Future[Any]] = {waiting, sandbox.exited}
        await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if sandbox.exited.done():
            ended = sandbox.exited.result()
            raise NotReady(f"The container {ended} before it was ready.", ended.out_of_memory)
        if not waiting.done():
            raise NotReady(f"The container was not ready after {timeout:g} s: {progress.explain(sandbox)}")
        waiting.result()
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


class _Progress:
    def __init__(self) -> None:
        self.last_answer: str | None = None
        self.connected = False

    def explain(self, sandbox: Sandbox) -> str:
        port = sandbox.address[1]
        if self.last_answer is not None:
            return f"{self.last_answer}. It must answer with status 200."
        if self.connected:
            return f"something listens on port {port}, but GET /readiness got no answer."
        others = [str(other) for other in sandbox.listening_ports() if other != port]
        if others:
            return (
                f"nothing listens on port {port}, but the container listens on port {', '.join(others)}. "
                f"It must listen on the port in the PORT variable, {port}."
            )
        return f"nothing listens on any port. It must listen on the port in the PORT variable, {port}."


async def _poll(sandbox: Sandbox, client: AgentClient, progress: _Progress) -> None:
    try:
        opened = sandbox.open_socket()
    except ConnectionRefusedError:
        await asyncio.shield(sandbox.exited)
        return
    try:
        # The same socket is used until it connects: a refusal on loopback costs a few microseconds and no new descriptor.
        while (error := opened.connect_ex(sandbox.address)) not in _CONNECTED:
            if error not in _NOT_YET:
                raise OSError(error, f"connecting to the agent: {errno.errorcode.get(error, error)}")
            await asyncio.sleep(CONNECT_PAUSE)
    except BaseException:
        opened.close()
        raise
    progress.connected = True
    await _ask(client, opened, progress)


async def _ask(client: AgentClient, connected: socket.socket, progress: _Progress) -> None:
    await client.adopt(connected)
    while True:
        try:
            async with await client.request(b"GET", b"/readiness", [(b"accept", b"application/json")]) as response:
                await response.read(ANSWER_LIMIT)
                if response.status == 200:
                    return
                progress.last_answer = f"GET /readiness answered with status {response.status}"
        except AgentConnectionError as error:
            progress.last_answer = f"GET /readiness failed: {error}"
        await asyncio.sleep(READINESS_PAUSE)
