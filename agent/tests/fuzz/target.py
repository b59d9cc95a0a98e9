"""The agent process that is fuzzed, and what must hold whatever it is sent."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.tests.blackbox.process import AgentProcess

DEADLINE = 20
"""Seconds within which everything must be answered, or its connection be closed."""
SAID_OF_THE_REQUEST = frozenset({501, 505})
"""The 5xx that RFC 9112 wants for a transfer coding and a version that a server does not know: no failure of the server."""
MEMORY_GROWTH = 96 * 2**20
"""Bytes by which the agent may grow after it was warmed up."""


@dataclass(frozen=True)
class Sent:
    """A request that is well-formed HTTP; what it says may be nonsense."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None


class Broken(AssertionError):
    """The agent did what it must never do."""


class Target:
    """Sends to one agent and judges its answers. The answer to a request that was sent is `last`."""

    def __init__(self, agent: AgentProcess) -> None:
        self.agent = agent
        self._connection = self._connect()
        self.last_body = b""

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.agent.port, timeout=DEADLINE)

    def send(self, sent: Sent) -> int:
        """Sends a request; gives the status of its answer. Raises Broken when the agent is to blame for what came."""
        try:
            status, source = self._exchange(sent)
        except TimeoutError:
            raise Broken(f"no answer within {DEADLINE} s: {sent}") from None
        if status >= 500 and source != "upstream":
            raise Broken(f"{status} from {source or 'nobody'}: {sent}: {self.last_body[:500]!r}")
        return status

    def _exchange(self, sent: Sent) -> tuple[int, str]:
        for attempt in range(2):
            try:
                self._connection.putrequest(sent.method, sent.target, skip_accept_encoding=True)
                for name, value in sent.headers.items():
                    self._connection.putheader(name, value.encode("latin-1", "replace"))
                if sent.body is not None:
                    self._connection.putheader("content-length", str(len(sent.body)))
                self._connection.endheaders(sent.body)
                with self._connection.getresponse() as response:
                    self.last_body = response.read()
                    return response.status, response.headers.get("x-platform-error-source", "")
            except (http.client.RemoteDisconnected, ConnectionError):
                # A connection that was kept may have been closed meanwhile; a fresh one may not.
                self._connection.close()
                self._connection = self._connect()
                if attempt:
                    raise Broken(f"closed without an answer: {sent}") from None
            except BaseException:
                self._connection.close()
                self._connection = self._connect()
                raise
        raise AssertionError("not reached")

    def send_raw(self, data: bytes) -> bytes:
        """Sends bytes and no more; gives all that comes back until the agent closes. Raises Broken."""
        received = b""
        try:
            with socket.create_connection(("127.0.0.1", self.agent.port), timeout=DEADLINE) as connection:
                # It may close before it has read all; what it said is still to be read.
                with contextlib.suppress(ConnectionError):
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    received += piece
        except ConnectionResetError:
            return received
        except TimeoutError:
            raise Broken(f"neither answered nor closed within {DEADLINE} s: {data[:500]!r}") from None
        for status in statuses(received):
            if status >= 500 and status not in SAID_OF_THE_REQUEST:
                raise Broken(f"{status} for {data[:500]!r}: {received[:500]!r}")
        return received

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.agent.process.pid}/fd").iterdir()))

    def memory(self) -> int:
        """Resident bytes."""
        pages = Path(f"/proc/{self.agent.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def check_unharmed(self, descriptors: int, memory: int) -> None:
        """Raises Broken unless the agent still serves, and holds not much more than it did."""
        self.close()
        if self.agent.process.poll() is not None:
            raise Broken(f"the agent has ended: {self.agent.log.read_text()[-2000:]}")
        if self.agent.client.get("/readiness").status != 200:
            raise Broken("the agent is not ready any more")
        answer = self.agent.client.post("/responses", {"input": "still there?"})
        if answer.status != 200 or answer.json["status"] != "completed":
            raise Broken(f"the agent does not answer any more: {answer}")
        deadline = time.monotonic() + DEADLINE
        while self.descriptors() > descriptors:
            if time.monotonic() > deadline:
                raise Broken(f"{self.descriptors()} descriptors are open, {descriptors} were before")
            time.sleep(0.05)
        if self.memory() - memory > MEMORY_GROWTH:
            raise Broken(f"{(self.memory() - memory) / 2**20:.0f} MiB more than before")


def statuses(received: bytes) -> list[int]:
    """The statuses of the answers among what was received."""
    found = []
    for piece in received.split(b"HTTP/1.")[1:]:
        code = piece.split(b" ", 2)[1:2]
        if code and code[0][:3].isdigit():
            found.append(int(code[0][:3]))
    return found
