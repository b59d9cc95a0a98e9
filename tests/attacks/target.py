"""The platform as an attacker on the network sees it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass
from urllib.parse import quote

from cupola.domain.principal import Principal
from cupola.identity.tokens import AUDIENCE, Tokens, load_or_create_key
from cupola.installation import DataFolder
from tests.system.platform import Platform

PROJECT = "/api/projects/default"
AGENT = f"{PROJECT}/agents/hostile"
SESSIONS = f"{AGENT}/endpoint/sessions"
PATIENCE = 30
ALICE, BOB = "alice-session-1", "bob-session-1"


@dataclass(frozen=True)
class Answer:
    """What came back; all of it, when the server broke the connection off in the middle."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: bool = False

    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.body)
        return found


class Target:
    """A running platform with a hostile agent, and two callers with a session each."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        with platform.http() as client:
            assert client.base_url.port is not None
            self.port: int = client.base_url.port
        self.key_file = DataFolder(platform.data).signing_key
        self.administrator = self.token(Principal("root", "administrator", True))
        self.alice = self.token(Principal("alice", "alice", False))
        self.bob = self.token(Principal("bob", "bob", False))

    @property
    def tenant(self) -> str:
        return (self.platform.data / "installation").read_text().strip()

    def tokens(self) -> Tokens:
        """What makes tokens that the server takes for its own."""
        return Tokens(load_or_create_key(self.key_file), self.tenant)

    def token(self, principal: Principal, audience: str = AUDIENCE, lifetime: int = 3600) -> str:
        return self.tokens().issue(principal, audience, lifetime).text

    def ask(
        self, method: str, path: str, token: str | None = None, body: bytes | object = b"", **headers: str
    ) -> Answer:
        """One request on a connection of its own."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, payload, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            try:
                return Answer(answer.status, found, answer.read())
            except http.client.IncompleteRead as error:
                return Answer(answer.status, found, error.partial, broken=True)
        finally:
            connection.close()

    def raw(self, request: bytes) -> bytes:
        """Whatever comes back for these bytes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            parts = []
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(request)
                while part := connection.recv(65536):
                    parts.append(part)
            return b"".join(parts)

    def invoke(self, session: str, body: object, token: str | None = None) -> Answer:
        """Have the hostile agent do something in a session."""
        path = f"{AGENT}/endpoint/protocols/invocations?agent_session_id={session}"
        return self.ask("POST", path, token or self.alice, body, content_type="application/json")

    def inside(self, program: str, session: str = ALICE, token: str | None = None) -> str:
        """What a program prints that runs inside a session's sandbox."""
        answer = self.invoke(session, {"run": program}, token)
        assert answer.status == 200, answer.body
        return answer.body.decode()

    def files(self, session: str, what: str, path: str) -> str:
        """The address of a file operation."""
        return f"{SESSIONS}/{session}/files{what}?path={quote(path, safe='')}"

    def is_well(self) -> bool:
        """Whether the server still answers."""
        return self.ask("GET", "/healthz").status == 200
