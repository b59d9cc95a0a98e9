"""The items as a user of the library and a client of the agent see them."""

import json
import subprocess
import sys
from typing import Any, get_type_hints

import pytest
from cupola_agent import items
from cupola_agent.responses.input import input_items, user_text
from cupola_agent.responses.prefixes import ITEM_PREFIXES
from cupola_agent.responses.writers import write_item
from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import TypeAdapter

from agent.tests.responses.recording import Recording
from agent.tests.responses.test_writers import CASES

_OUTPUT_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseOutputItem)
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_PARTITION = "0123456789abcdef00"

# Types that the platform has and OpenAI has not, and errors that OpenAI wants to be objects.
_FOREIGN = {
    "a known type without a struct",
    "consent",
    "mcp call that failed",
    "message of another role",
    "structured outputs",
}
ITEM_TYPES = [kind for kind in vars(items).values() if isinstance(kind, type) and issubclass(kind, items.Item)]


@pytest.mark.parametrize("case", sorted(CASES.keys() - _FOREIGN))
def test_the_types_of_the_openai_package_accept_every_item_and_event(case: str) -> None:
    recording = Recording()
    write_item(recording.output, CASES[case][0])
    for event in recording.events:
        _EVENT.validate_python(event)
    for item in recording.output.response["output"]:
        _OUTPUT_ITEM.validate_python(json.loads(json.dumps(item)))


@pytest.mark.parametrize("kind", ITEM_TYPES, ids=lambda kind: kind.__name__)
def test_every_field_of_an_item_has_a_type_that_editors_know(kind: type[items.Item]) -> None:
    hints = get_type_hints(kind)
    assert set(kind.__struct_fields__) <= hints.keys()
    unknown = [name for name in kind.__struct_fields__ if hints[name] is Any]
    assert unknown == (["output"] if kind is items.StructuredOutputs else [])


@pytest.mark.parametrize(
    "kind", [kind for kind in ITEM_TYPES if kind is not items.Item], ids=lambda kind: kind.__name__
)
def test_every_item_is_of_a_type_that_has_ids(kind: type[items.Item]) -> None:
    assert kind.__struct_config__.tag in ITEM_PREFIXES


def test_an_item_cannot_be_changed() -> None:
    call = items.FunctionCall("f")
    with pytest.raises(AttributeError):
        call.name = "g"  # type: ignore[misc]


def test_usage_adds_up() -> None:
    assert items.Usage(3, 4, cached_tokens=1, reasoning_tokens=2).to_json() == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 7,
    }


def test_a_text_as_input_is_one_message_of_the_user() -> None:
    (item,) = input_items("hello", _PARTITION)
    assert item.pop("id").startswith(f"msg_{_PARTITION}")
    assert item == {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "hello"}],
        "status": "completed",
    }


def test_items_as_input_get_what_they_lack() -> None:
    given: list[dict[str, Any]] = [
        {"role": "user", "content": "hello"},
        {"type": "custom_tool_call_output", "call_id": "call_1", "output": "1"},
        {"type": "function_call_output", "id": "mine", "call_id": "call_1", "output": "1"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "hologram"},
    ]
    message, output, named, reference, unknown = input_items(given, _PARTITION)
    assert message["type"] == "message"
    assert message["id"].startswith("msg_")
    assert output["id"].startswith("ctco_")
    assert named["id"] == "mine"
    assert reference["id"] == "msg_1"
    assert "id" not in unknown
    assert user_text([message]) == "hello"


def test_importing_the_items_takes_the_encoder_and_nothing_else() -> None:
    probe = (
        "import sys, msgspec, typing, collections.abc\n"
        "import cupola_agent\n"
        "before = set(sys.modules)\n"
        "import cupola_agent.items\n"
        "print(sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.strip() in ("['cupola_agent.items']", "[]")
