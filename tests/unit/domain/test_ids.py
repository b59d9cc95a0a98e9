from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import pytest

from cupola.domain.errors import CupolaError
from cupola.domain.ids import AGENT_NAME, SESSION_ID, new_guid, new_request_id, new_session_id, random_text
from cupola.domain.session import check_session_id


@pytest.mark.parametrize("make", [new_session_id, new_guid, new_request_id])
def test_ids_differ_and_hold_nothing_that_paths_treat_differently(make: Callable[[], str]) -> None:
    made = {make() for _ in range(100)}
    assert len(made) == 100
    assert not any(re.search(r"[^A-Za-z0-9_-]", identifier) for identifier in made)


def test_a_new_session_id_is_one_that_a_caller_may_choose() -> None:
    made = new_session_id()
    assert made.startswith("sess_")
    assert SESSION_ID.fullmatch(made)
    assert check_session_id(made) == made


def test_guids_and_request_ids_have_their_usual_forms() -> None:
    made = new_guid()
    assert str(uuid.UUID(made)) == made
    assert re.fullmatch(r"[0-9a-f]{32}", new_request_id())


def test_random_text_is_as_long_as_asked_for() -> None:
    assert re.fullmatch(r"[a-z0-9]{300}", random_text(300))


@pytest.mark.parametrize("name", ["a", "A1", "9", "echo-agent", "a--b", "a" * 63])
def test_agent_names_that_are_right(name: str) -> None:
    assert AGENT_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a.b", "a:1", "a/b", "ä", "a" * 64, "a\n", "a b"])
def test_agent_names_that_are_wrong(name: str) -> None:
    assert not AGENT_NAME.fullmatch(name)


@pytest.mark.parametrize("value", ["12345678", "a_b-C9999", "x" * 128])
def test_session_ids_that_callers_may_choose(value: str) -> None:
    assert check_session_id(value) == value


@pytest.mark.parametrize(
    "value", ["", "1234567", "x" * 129, "../../etc", "12345678\n", "1234:678", "ääääääää", None, 12345678]
)
def test_session_ids_that_are_refused(value: object) -> None:
    with pytest.raises(CupolaError, match="8 to 128 letters") as caught:
        check_session_id(value)
    assert (caught.value.code, caught.value.status, caught.value.param) == (
        "bad_request",
        400,
        "agent_session_id",
    )
