from __future__ import annotations

import pytest
from joserfc.jwk import ECKey
from starlette.types import Message, Receive, Scope, Send

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal
from cupola.identity.authentication import Authentication, bearer_token
from cupola.identity.tokens import AUDIENCE, Tokens

ADA = Principal("5f0e", "ada", administrator=False)


def scope_of(*headers: tuple[bytes, bytes], path: str = "/api/projects/default/agents") -> Scope:
    return {"type": "http", "path": path, "headers": list(headers)}


@pytest.mark.parametrize("value", [b"Bearer abc", b"bearer abc", b"BEARER abc", b"Bearer   abc  "])
def test_a_bearer_token_is_read(value: bytes) -> None:
    assert bearer_token(scope_of((b"authorization", value))) == "abc"


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([], 'Run `eval "$(cupola env)"`'),
        ([b"Basic abc"], "must be one `Bearer <token>`"),
        ([b"abc"], "must be one `Bearer <token>`"),
        ([b""], "must be one `Bearer <token>`"),
        ([b"Bearer a", b"Bearer a"], "must be one `Bearer <token>`"),
        ([b"Bearer \xe4"], "must be one `Bearer <token>`"),
    ],
)
def test_anything_else_is_refused(headers: list[bytes], said: str) -> None:
    with pytest.raises(CupolaError) as caught:
        bearer_token(scope_of(*((b"authorization", value) for value in headers)))
    assert (caught.value.code, caught.value.status) == ("Unauthorized", 401)
    assert said in caught.value.message


class Door:
    """The authentication and an application behind it that notes the callers it is reached by."""

    def __init__(self) -> None:
        self.tokens = Tokens(ECKey.generate_key("P-256", private=True, auto_kid=True), "tenant")
        self.callers: list[Principal | None] = []
        self._app = Authentication(self._note, self.tokens)

    async def _note(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        self.callers.append(scope.get("cupola.caller"))

    async def knock(self, scope: Scope) -> None:
        await self._app(scope, _nothing, _ignore)


async def _nothing() -> Message:
    raise AssertionError("the body was asked for")


async def _ignore(_: Message) -> None:
    raise AssertionError("something was answered")


async def test_the_caller_is_known_behind_the_door() -> None:
    door = Door()
    token = door.tokens.issue(ADA, AUDIENCE).text
    await door.knock(scope_of((b"authorization", b"Bearer " + token.encode())))
    assert door.callers == [ADA]


async def test_nobody_passes_without_a_token() -> None:
    door = Door()
    for scope in (scope_of(), scope_of((b"authorization", b"Bearer a.b.c"))):
        with pytest.raises(CupolaError):
            await door.knock(scope)
    assert door.callers == []


@pytest.mark.parametrize("path", ["/healthz", "/msi/token"])
async def test_public_paths_need_no_token(path: str) -> None:
    door = Door()
    await door.knock(scope_of(path=path))
    assert door.callers == [None]


@pytest.mark.parametrize("path", ["/healthz/", "/healthz/../api", "//healthz", "/msi/tokens", "/", ""])
async def test_paths_that_resemble_public_ones_are_not_public(path: str) -> None:
    with pytest.raises(CupolaError):
        await Door().knock(scope_of(path=path))


def upgrade(*subprotocols: bytes) -> Scope:
    return scope_of((b"upgrade", b"WebSocket"), *((b"sec-websocket-protocol", each) for each in subprotocols))


@pytest.mark.parametrize(
    "subprotocols", [[b"cupola.bearer, abc"], [b"cupola.bearer", b"abc"], [b"chat, cupola.bearer,abc", b"other"]]
)
def test_a_browser_offers_its_token_as_a_subprotocol(subprotocols: list[bytes]) -> None:
    assert bearer_token(upgrade(*subprotocols)) == "abc"


@pytest.mark.parametrize(
    "scope",
    [
        upgrade(b"abc"),
        upgrade(b"cupola.bearer"),
        upgrade(b"abc, cupola.bearer"),
        upgrade(b"cupola.bearer, \xe4"),
        scope_of((b"sec-websocket-protocol", b"cupola.bearer, abc")),
    ],
)
def test_other_subprotocols_are_no_token(scope: Scope) -> None:
    with pytest.raises(CupolaError, match="There is no token"):
        bearer_token(scope)


def test_the_header_goes_before_a_subprotocol() -> None:
    scope = upgrade(b"cupola.bearer, abc")
    scope["headers"].append((b"authorization", b"Bearer def"))
    assert bearer_token(scope) == "def"
