"""Pages of input items (contract sections 4.1 and 4.10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.expectations import check_page
from agent.tests.blackbox.process import AgentProcess
from agent.tests.blackbox.turns import (
    BACKGROUND,
    BACKGROUND_STREAM,
    COMPLETED,
    MODES,
    MOMENTS,
    STREAM,
    SYNC,
    Mode,
    Moment,
    Turn,
    ended,
    in_flight,
)
from agent.tests.blackbox.wire import Client, new_id

COUNT = 30


def many(count: int) -> list[dict[str, Any]]:
    """Input of many items; its script is the first one's."""
    texts = [COMPLETED.script, *(f"item {number}" for number in range(1, count))]
    return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]} for text in texts]


def page(client: Client, turn: Turn, query: str = "") -> tuple[list[Any], bool]:
    answer = client.get(f"{turn.path}/input_items{query}")
    assert answer.status == 200, answer
    return check_page(answer), answer.json["has_more"]


def text(item: Mapping[str, Any]) -> str:
    return str(item["content"][0]["text"])


@pytest.fixture(scope="module")
def turn(agent: AgentProcess) -> Turn:
    return ended(agent.client, SYNC, COMPLETED, input=many(COUNT))


@pytest.fixture(scope="module")
def newest_first(agent: AgentProcess, turn: Turn) -> Sequence[Any]:
    items, more = page(agent.client, turn, "?limit=100")
    assert not more
    assert len(items) == COUNT
    return items


@dataclass(frozen=True)
class Page:
    """A query, and the part of the items it must give: newest first unless `ascending`."""

    query: str
    first: int
    last: int
    ascending: bool = False
    has_more: bool = False

    def __str__(self) -> str:
        return self.query or "none"


PAGES = [
    Page("", 0, 20, has_more=True),
    Page("?limit=1", 0, 1, has_more=True),
    Page("?limit=29", 0, 29, has_more=True),
    Page("?limit=30", 0, 30),
    Page("?limit=100", 0, 30),
    Page("?order=desc", 0, 20, has_more=True),
    Page("?order=asc", 0, 20, ascending=True, has_more=True),
    Page("?order=asc&limit=3", 0, 3, ascending=True, has_more=True),
    Page("?order=asc&limit=100", 0, 30, ascending=True),
]
CURSORS = [
    # after, before: positions in the order asked for; None for a cursor that is not given.
    (0, None), (9, None), (19, None), (28, None), (29, None), (None, 1), (None, 10), (None, 29), (4, 12), (28, 29),
]  # fmt: skip


@pytest.mark.parametrize("case", PAGES, ids=str)
def test_a_page(client: Client, turn: Turn, newest_first: Sequence[Any], case: Page) -> None:
    items, more = page(client, turn, case.query)
    ordered = list(reversed(newest_first)) if case.ascending else list(newest_first)
    assert items == ordered[case.first : case.last]
    assert more == case.has_more


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(("after", "before"), CURSORS)
def test_a_page_between_cursors(
    client: Client, turn: Turn, newest_first: Sequence[Any], order: str, after: int | None, before: int | None
) -> None:
    ordered = list(reversed(newest_first)) if order == "asc" else list(newest_first)
    query = f"?limit=100&order={order}"
    query += "" if after is None else f"&after={ordered[after]['id']}"
    query += "" if before is None else f"&before={ordered[before]['id']}"
    items, more = page(client, turn, query)
    assert items == ordered[0 if after is None else after + 1 : before]
    assert not more


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 7, 10, 29])
def test_page_after_page_gives_every_item_once(
    client: Client, turn: Turn, newest_first: Sequence[Any], order: str, limit: int
) -> None:
    found: list[Any] = []
    more = True
    while more:
        cursor = f"&after={found[-1]['id']}" if found else ""
        items, more = page(client, turn, f"?order={order}&limit={limit}{cursor}")
        assert len(items) <= limit
        found += items
    assert found == (list(reversed(newest_first)) if order == "asc" else list(newest_first))


@pytest.mark.parametrize("cursor", ["after", "before"])
@pytest.mark.parametrize("value", ["msg_unknown", "x", ""])
def test_a_cursor_nobody_knows_is_ignored(client: Client, turn: Turn, cursor: str, value: str) -> None:
    assert page(client, turn, f"?{cursor}={value}") == page(client, turn)


LIMITS = {
    "0": "limit must be between 1 and 100",
    "101": "limit must be between 1 and 100",
    "-1": "limit must be between 1 and 100",
    "1000000000000": "limit must be between 1 and 100",
    "x": "limit must be an integer between 1 and 100",
    "1.5": "limit must be an integer between 1 and 100",
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("mode", [SYNC, STREAM, BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_a_limit_that_makes_no_sense(client: Client, mode: Mode, limit: str) -> None:
    answer = client.get(f"{ended(client, mode, COMPLETED).path}/input_items?limit={limit}")
    assert answer.status == 400
    assert answer.error["message"] == LIMITS[limit]
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("order", ["up", "1", "asc,desc", "newest"])
def test_an_order_that_makes_no_sense(client: Client, turn: Turn, order: str) -> None:
    answer = client.get(f"{turn.path}/input_items?order={order}")
    assert answer.status == 400
    assert answer.error["message"] == "order must be 'asc' or 'desc'"


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.store], ids=str)
def test_a_text_is_one_message_of_the_user(client: Client, mode: Mode) -> None:
    turn = ended(client, mode, COMPLETED)
    [item], more = page(client, turn)
    assert not more
    assert (item["type"], item["role"], item["status"]) == ("message", "user", "completed")
    assert [(part["type"], part["text"]) for part in item["content"]] == [("input_text", COMPLETED.script)]
    assert item["id"].startswith(f"msg_{turn.id.partition('_')[2][:18]}")


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_pages_are_there_in_flight(client: Client, control: Control, mode: Mode, moment: Moment) -> None:
    def given(script: str) -> list[dict[str, Any]]:
        first, *others = many(3)
        return [{**first, "content": script}, *others]

    with in_flight(client, control, mode, moment, input=given) as turn:
        items, more = page(client, turn, "?limit=2")
        assert [text(item) for item in items] == ["item 2", "item 1"]
        assert more


INPUTS: dict[str, list[dict[str, Any]]] = {
    "message without type": [{"role": "user", "content": "say a"}],
    "content as text": [{"type": "message", "role": "user", "content": "say a"}],
    "user and system": [
        {"role": "user", "content": [{"type": "input_text", "text": "say a"}]},
        {"role": "system", "content": "be brief"},
    ],
    "assistant's words": [
        {"role": "user", "content": "say a"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "hello", "annotations": []}]},
    ],
    "function call and output": [
        {"role": "user", "content": "say a"},
        {"type": "function_call", "name": "add", "call_id": "c1", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ],
    "image": [{"role": "user", "content": [
        {"type": "input_text", "text": "say a"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    ]}],
    "item with an id": [{"type": "message", "role": "user", "content": "say a", "id": new_id("msg", "0" * 16 + "00")}],
    "reasoning": [
        {"role": "user", "content": "say a"},
        {"type": "reasoning", "id": new_id("rs", "0" * 16 + "00"), "summary": []},
    ],
}  # fmt: skip
PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


@pytest.mark.parametrize("name", INPUTS)
def test_input_is_kept_item_by_item(client: Client, name: str) -> None:
    given = INPUTS[name]
    turn = ended(client, SYNC, COMPLETED, input=given)
    items, _ = page(client, turn, "?order=asc")
    assert [item["type"] for item in items] == [item.get("type", "message") for item in given]
    assert [item.get("role") for item in items] == [item.get("role") for item in given]
    for stored in items:
        # Clients read the parts of a message, also where a plain text was sent.
        assert isinstance(stored.get("content", []), list)
        assert stored["status"] == "completed"
        assert stored["id"].startswith(PREFIXES[stored["type"]])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.store], ids=str)
def test_history_comes_before_the_turns_own_input(client: Client, mode: Mode) -> None:
    first = ended(client, mode, COMPLETED)
    second = ended(client, mode, COMPLETED, input="say c", previous_response_id=first.id)
    items, _ = page(client, second, "?order=asc")
    assert [item["role"] for item in items] == ["user", "assistant", "user"]
    assert [text(item) for item in items] == [COMPLETED.script, "ab", "say c"]


def test_more_than_a_hundred_items_can_be_paged(client: Client) -> None:
    turn = ended(client, SYNC, COMPLETED, input=many(250))
    found: list[Any] = []
    more = True
    while more:
        cursor = f"&after={found[-1]['id']}" if found else ""
        items, more = page(client, turn, f"?order=asc&limit=100{cursor}")
        found += items
    assert [text(item) for item in found] == [text(item) for item in many(250)]
