from __future__ import annotations

import pytest

from cupola.domain.definition import parse_definition
from cupola.domain.errors import CupolaError
from cupola.domain.version import (
    Agent,
    Identity,
    IllegalMove,
    Version,
    VersionStatus,
    check_move,
    require_active,
)

CREATING, ACTIVE, FAILED, DELETING = VersionStatus
ALLOWED = {
    (CREATING, ACTIVE),
    (CREATING, FAILED),
    (CREATING, DELETING),
    (ACTIVE, DELETING),
    (FAILED, DELETING),
}


@pytest.mark.parametrize("now", VersionStatus)
@pytest.mark.parametrize("then", VersionStatus)
def test_a_status_changes_only_as_the_table_says(now: VersionStatus, then: VersionStatus) -> None:
    if (now, then) in ALLOWED:
        check_move(now, then)
    else:
        with pytest.raises(IllegalMove, match=f"is {now} may become .*, not {then}"):
            check_move(now, then)


def version(status: VersionStatus) -> Version:
    agent = Agent(1, "default", "echo", "guid", Identity("p", "c", "b"), 0)
    definition = parse_definition({"kind": "hosted", "image": "agent:1"})
    return Version(1, agent, 3, definition, {}, None, status, "Broken", "It fell over.", None, 0)


def test_an_active_version_may_serve() -> None:
    require_active(version(ACTIVE))


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (CREATING, "agent_version_not_ready", "echo:3 is still being provisioned; poll it"),
        (FAILED, "agent_version_failed", "echo:3 failed: It fell over. See `cupola versions show echo 3`."),
        (DELETING, "agent_version_deleting", "echo:3 is being deleted"),
    ],
)
def test_a_version_that_cannot_serve_says_why(status: VersionStatus, code: str, said: str) -> None:
    with pytest.raises(CupolaError) as caught:
        require_active(version(status))
    assert (caught.value.code, caught.value.status) == (code, 400)
    assert said in caught.value.message
