from __future__ import annotations

import pytest

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal, SandboxPrincipal
from cupola.identity.call_ids import CallIds
from cupola.identity.sandbox_secrets import SandboxSecrets
from cupola.identity.seal import Seal

GUID, OTHER = "0" * 32, "1" * 32
DAY = 24 * 3600
SANDBOX = SandboxPrincipal("default", 7, GUID)
ADA = Principal("ada-id", "ada", administrator=False)


class Clock:
    now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def calls(clock: Clock) -> CallIds:
    return CallIds(Seal(b"key"), clock)


def refused(calls: CallIds, guid: str, call_id: str) -> tuple[int, str]:
    with pytest.raises(CupolaError) as error:
        calls.user(guid, call_id)
    return error.value.status, error.value.code


def changed(text: str) -> list[str]:
    """The text with each of its characters changed, cut off, or followed by more."""
    flipped = [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(len(text) - 1)]
    return [*flipped, *(text[:at] for at in range(len(text))), text + "AAAA", text + "=", "é" + text]


def test_a_call_id_tells_the_user_to_the_session_it_was_made_for(calls: CallIds) -> None:
    call_id = calls.issue(GUID, "user")
    assert calls.user(GUID, call_id) == "user"
    assert refused(calls, OTHER, call_id) == (401, "invalid_call_id")


def test_a_call_id_outlives_its_request_by_weeks_but_not_for_ever(calls: CallIds, clock: Clock) -> None:
    call_id = calls.issue(GUID, "user")
    clock.now += 59 * DAY
    assert calls.user(GUID, call_id) == "user"
    clock.now += DAY
    assert refused(calls, GUID, call_id) == (401, "invalid_call_id")


def test_a_changed_call_id_is_refused(calls: CallIds) -> None:
    for text in changed(calls.issue(GUID, "user")):
        assert refused(calls, GUID, text) == (401, "invalid_call_id")


def test_a_call_id_of_another_installation_is_refused(calls: CallIds, clock: Clock) -> None:
    foreign = CallIds(Seal(b"another key"), clock).issue(GUID, "user")
    assert refused(calls, GUID, foreign) == (401, "invalid_call_id")


def test_a_users_key_is_stable_within_a_project_and_tells_nothing_of_the_user(calls: CallIds, clock: Clock) -> None:
    key = calls.user_key("default", ADA)
    assert key == CallIds(Seal(b"key"), clock).user_key("default", ADA)
    assert len(key) == 32
    others = {
        calls.user_key("other", ADA),
        calls.user_key("default", Principal("bob-id", "ada", administrator=False)),
        CallIds(Seal(b"another key"), clock).user_key("default", ADA),
    }
    assert key not in others
    assert len(others) == 3


def test_the_user_of_a_call_is_the_one_that_the_agent_is_told(calls: CallIds) -> None:
    headers = dict(calls.headers("default", ADA, GUID))
    user = headers[b"x-agent-user-id"].decode()
    assert calls.user(GUID, headers[b"x-agent-foundry-call-id"].decode()) == user == calls.user_key("default", ADA)


def test_a_sandboxs_secret_says_whose_it_is(calls: CallIds) -> None:
    secrets = SandboxSecrets(Seal(b"key"))
    secret = secrets.issue(SANDBOX)
    assert secrets.holder(secret) == SANDBOX
    assert secret == SandboxSecrets(Seal(b"key")).issue(SANDBOX)
    for text in (*changed(secret), calls.issue(GUID, "user"), SandboxSecrets(Seal(b"other")).issue(SANDBOX)):
        assert secrets.holder(text) is None


def test_a_sandboxs_secret_is_no_call_id(calls: CallIds) -> None:
    assert refused(calls, GUID, SandboxSecrets(Seal(b"key")).issue(SANDBOX)) == (401, "invalid_call_id")
