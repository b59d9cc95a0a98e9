import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from cupola_agent import items
from cupola_agent.ids import partition_of
from cupola_agent.responses.output import OutputError
from cupola_agent.responses.prefixes import ITEM_PREFIXES
from cupola_agent.responses.writers import MessageWriter, write_item
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.tests.responses.recording import RESPONSE_ID, Recording, silent_output

Json = dict[str, Any]
Event = tuple[str, Json]

_STAMPS = ("response_id", "agent_reference")
_CITED = {"type": "url_citation", "url": "https://a.example", "title": "A", "start_index": 0, "end_index": 5}
_ACTION = {"type": "search", "query": "sun", "queries": ["sun"]}
_CLICK = {"type": "click", "button": "left", "x": 1, "y": 2}
_PATCH = {"type": "delete_file", "path": "a.txt"}


def text_part(text: str, *annotations: Json) -> Json:
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": []}


def plain(item: Json, *, status: bool = True) -> list[Event]:
    """The events of an item that is told as it is."""
    return [
        (f"output_item.{event}", {"item": {**item, **({"status": of_status} if status else {})}})
        for event, of_status in (("added", "in_progress"), ("done", "completed"))
    ]


def call(added: Json, steps: list[str | Event], done: Json) -> list[Event]:
    kind = added["type"]
    between = [(f"{kind}.{step}", {}) if isinstance(step, str) else step for step in steps]
    return [("output_item.added", {"item": added}), *between, ("output_item.done", {"item": done})]


def delta(kind: str, field: str, text: str, **more: Any) -> list[str | Event]:
    return [(f"{kind}.delta", {"delta": text}), (f"{kind}.done", {field: text, **more})]


def message(*parts: list[Event], content: list[Json], **fields: Any) -> list[Event]:
    item = {"type": "message", "role": "assistant", **fields}
    return [
        ("output_item.added", {"item": {**item, "status": "in_progress", "content": []}}),
        *(event for part in parts for event in part),
        ("output_item.done", {"item": {**item, "status": "completed", "content": content}}),
    ]


def text(index: int, said: str, *annotations: Json) -> list[Event]:
    place = {"content_index": index}
    return [
        ("content_part.added", {**place, "part": text_part("")}),
        *([("output_text.delta", {**place, "delta": said, "logprobs": []})] if said else []),
        ("output_text.done", {**place, "text": said, "logprobs": []}),
        *(
            ("output_text.annotation.added", {**place, "annotation_index": number, "annotation": annotation})
            for number, annotation in enumerate(annotations)
        ),
        ("content_part.done", {**place, "part": text_part(said, *annotations)}),
    ]


def refusal(index: int, said: str) -> list[Event]:
    place = {"content_index": index}
    return [
        ("content_part.added", {**place, "part": {"type": "refusal", "refusal": ""}}),
        ("refusal.delta", {**place, "delta": said}),
        ("refusal.done", {**place, "refusal": said}),
        ("content_part.done", {**place, "part": {"type": "refusal", "refusal": said}}),
    ]


def reasoning_part(part: str, event: str, index: Json, kind: str, said: str) -> list[Event]:
    return [
        (f"{part}.added", {**index, "part": {"type": kind, "text": ""}}),
        (f"{event}.delta", {**index, "delta": said}),
        (f"{event}.done", {**index, "text": said}),
        (f"{part}.done", {**index, "part": {"type": kind, "text": said}}),
    ]


def summary(index: int, said: str) -> list[Event]:
    place = {"summary_index": index}
    return reasoning_part("reasoning_summary_part", "reasoning_summary_text", place, "summary_text", said)


_FUNCTION = {"type": "function_call", "name": "sum", "call_id": "call_1"}
_MCP = {"type": "mcp_call", "server_label": "s", "name": "n"}
_TOOLS = {"type": "mcp_list_tools", "server_label": "s"}
_REASONING = {"type": "reasoning"}

CASES: Mapping[str, tuple[items.Item | Json, list[Event]]] = {
    "message": (items.Message("hello"), message(text(0, "hello"), content=[text_part("hello")])),
    "message, empty": (items.Message(), message(text(0, ""), content=[text_part("")])),
    "message with phase": (
        items.Message("hello", phase="commentary"),
        message(text(0, "hello"), content=[text_part("hello")], phase="commentary"),
    ),
    "message with annotation": (
        items.Message("hello", [items.UrlCitation("https://a.example", "A", 0, 5)]),
        message(text(0, "hello", _CITED), content=[text_part("hello", _CITED)]),
    ),
    "message with annotations as mappings": (
        items.Message("hello", [_CITED, _CITED]),
        message(text(0, "hello", _CITED, _CITED), content=[text_part("hello", _CITED, _CITED)]),
    ),
    "message with text and refusal": (
        items.Message("hello", refusal="no"),
        message(text(0, "hello"), refusal(1, "no"), content=[text_part("hello"), {"type": "refusal", "refusal": "no"}]),
    ),
    "message as a mapping with text": (
        {"type": "message", "content": "hello"},
        message(text(0, "hello"), content=[text_part("hello")]),
    ),
    "message as a mapping with parts": (
        {"type": "message", "content": [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]},
        message(text(0, "a"), text(1, "b"), content=[text_part("a"), text_part("b")]),
    ),
    "message of another role": (
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        plain({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}),
    ),
    "refusal": (
        items.Refusal("no"),
        message(refusal(0, "no"), content=[{"type": "refusal", "refusal": "no"}]),
    ),
    "function call": (
        items.FunctionCall("sum", {"a": 1}, "call_1"),
        call(
            {**_FUNCTION, "status": "in_progress", "arguments": ""},
            delta("function_call_arguments", "arguments", '{"a":1}', name="sum"),
            {**_FUNCTION, "status": "completed", "arguments": '{"a":1}'},
        ),
    ),
    "function call with text": (
        items.FunctionCall("sum", "{ }", "call_1"),
        call(
            {**_FUNCTION, "status": "in_progress", "arguments": ""},
            delta("function_call_arguments", "arguments", "{ }", name="sum"),
            {**_FUNCTION, "status": "completed", "arguments": "{ }"},
        ),
    ),
    "function call as a mapping that was cut short": (
        {**_FUNCTION, "arguments": '{"a"', "status": "incomplete"},
        call(
            {**_FUNCTION, "status": "in_progress", "arguments": ""},
            delta("function_call_arguments", "arguments", '{"a"', name="sum"),
            {**_FUNCTION, "status": "incomplete", "arguments": '{"a"'},
        ),
    ),
    "function call output": (
        items.FunctionCallOutput("call_1", "3"),
        plain({"type": "function_call_output", "call_id": "call_1", "output": "3"}),
    ),
    "reasoning": (
        items.Reasoning("why"),
        [
            ("output_item.added", {"item": {**_REASONING, "status": "in_progress", "summary": []}}),
            *summary(0, "why"),
            (
                "output_item.done",
                {
                    "item": {
                        **_REASONING,
                        "status": "completed",
                        "summary": [{"type": "summary_text", "text": "why"}],
                    }
                },
            ),
        ],
    ),
    "reasoning with all": (
        items.Reasoning(["a", "b"], "c", encrypted_content="xyz"),
        [
            ("output_item.added", {"item": {**_REASONING, "status": "in_progress", "summary": []}}),
            *summary(0, "a"),
            *summary(1, "b"),
            *reasoning_part("content_part", "reasoning_text", {"content_index": 0}, "reasoning_text", "c"),
            (
                "output_item.done",
                {
                    "item": {
                        **_REASONING,
                        "status": "completed",
                        "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}],
                        "content": [{"type": "reasoning_text", "text": "c"}],
                        "encrypted_content": "xyz",
                    }
                },
            ),
        ],
    ),
    "mcp call": (
        items.McpCall("s", "n", {"a": 1}, output="3"),
        call(
            {**_MCP, "status": "in_progress", "arguments": ""},
            ["in_progress", *delta("mcp_call_arguments", "arguments", '{"a":1}'), "completed"],
            {**_MCP, "status": "completed", "arguments": '{"a":1}', "output": "3"},
        ),
    ),
    "mcp call that failed": (
        items.McpCall("s", "n", error="boom"),
        call(
            {**_MCP, "status": "in_progress", "arguments": ""},
            ["in_progress", *delta("mcp_call_arguments", "arguments", "{}"), "failed"],
            {**_MCP, "status": "failed", "arguments": "{}", "error": "boom"},
        ),
    ),
    "mcp list tools": (
        items.McpListTools("s", [{"name": "n", "input_schema": {}}]),
        call(
            {**_TOOLS, "tools": []},
            ["in_progress", "completed"],
            {**_TOOLS, "tools": [{"name": "n", "input_schema": {}}]},
        ),
    ),
    "mcp list tools that failed": (
        items.McpListTools("s", error="boom"),
        call({**_TOOLS, "tools": []}, ["in_progress", "failed"], {**_TOOLS, "tools": [], "error": "boom"}),
    ),
    "mcp approval request": (
        items.McpApprovalRequest("s", "n", {"a": 1}),
        plain({"type": "mcp_approval_request", "server_label": "s", "name": "n", "arguments": '{"a":1}'}, status=False),
    ),
    "mcp approval response": (
        items.McpApprovalResponse("mcpr_1", approve=False, reason="no"),
        plain(
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": False, "reason": "no"},
            status=False,
        ),
    ),
    "image": (
        items.ImageGenerationCall("iVBO", ["aaaa", "bbbb"], size="1x1"),
        call(
            {"type": "image_generation_call", "status": "in_progress", "result": None, "size": "1x1"},
            [
                "in_progress",
                "generating",
                ("image_generation_call.partial_image", {"partial_image_index": 0, "partial_image_b64": "aaaa"}),
                ("image_generation_call.partial_image", {"partial_image_index": 1, "partial_image_b64": "bbbb"}),
                "completed",
            ],
            {"type": "image_generation_call", "status": "completed", "result": "iVBO", "size": "1x1"},
        ),
    ),
    "image that failed": (
        items.ImageGenerationCall(None, status="failed"),
        call(
            {"type": "image_generation_call", "status": "in_progress", "result": None},
            ["in_progress"],
            {"type": "image_generation_call", "status": "failed", "result": None},
        ),
    ),
    "code interpreter": (
        items.CodeInterpreterCall("1 + 1", "box", [{"type": "logs", "logs": "2"}]),
        call(
            {
                "type": "code_interpreter_call",
                "status": "in_progress",
                "container_id": "box",
                "code": "",
                "outputs": None,
            },
            ["in_progress", "interpreting", *delta("code_interpreter_call_code", "code", "1 + 1"), "completed"],
            {
                "type": "code_interpreter_call",
                "status": "completed",
                "container_id": "box",
                "code": "1 + 1",
                "outputs": [{"type": "logs", "logs": "2"}],
            },
        ),
    ),
    "file search": (
        items.FileSearchCall(["sun"], [{"file_id": "f", "score": 0.5}]),
        call(
            {"type": "file_search_call", "status": "in_progress", "queries": [], "results": None},
            ["in_progress", "searching", "completed"],
            {
                "type": "file_search_call",
                "status": "completed",
                "queries": ["sun"],
                "results": [{"file_id": "f", "score": 0.5}],
            },
        ),
    ),
    "web search": (
        items.WebSearchCall("sun"),
        call(
            {"type": "web_search_call", "status": "in_progress", "action": _ACTION},
            ["in_progress", "searching", "completed"],
            {"type": "web_search_call", "status": "completed", "action": _ACTION},
        ),
    ),
    "custom tool": (
        items.CustomToolCall("t", "x = 1", "call_1"),
        call(
            {"type": "custom_tool_call", "name": "t", "call_id": "call_1", "status": "in_progress", "input": ""},
            delta("custom_tool_call_input", "input", "x = 1"),
            {"type": "custom_tool_call", "name": "t", "call_id": "call_1", "status": "completed", "input": "x = 1"},
        ),
    ),
    "custom tool output": (
        items.CustomToolCallOutput("call_1", "1"),
        plain({"type": "custom_tool_call_output", "call_id": "call_1", "output": "1"}),
    ),
    "computer": (
        items.ComputerCall(_CLICK, "call_1"),
        plain({"type": "computer_call", "call_id": "call_1", "action": _CLICK, "pending_safety_checks": []}),
    ),
    "computer output": (
        items.ComputerCallOutput("call_1", {"type": "computer_screenshot", "image_url": "data:,"}),
        plain(
            {
                "type": "computer_call_output",
                "call_id": "call_1",
                "output": {"type": "computer_screenshot", "image_url": "data:,"},
            }
        ),
    ),
    "local shell": (
        items.LocalShellCall({"type": "exec", "command": ["ls"], "env": {}}, "call_1"),
        plain(
            {
                "type": "local_shell_call",
                "call_id": "call_1",
                "action": {"type": "exec", "command": ["ls"], "env": {}},
            }
        ),
    ),
    "local shell output": (
        items.LocalShellCallOutput("call_1", "a"),
        plain({"type": "local_shell_call_output", "call_id": "call_1", "output": "a"}),
    ),
    "shell": (
        items.ShellCall({"commands": ["ls"]}, "call_1"),
        plain({"type": "shell_call", "call_id": "call_1", "action": {"commands": ["ls"]}}),
    ),
    "shell output": (
        items.ShellCallOutput("call_1", [{"stdout": "a", "stderr": "", "outcome": {"type": "timeout"}}]),
        plain(
            {
                "type": "shell_call_output",
                "call_id": "call_1",
                "output": [{"stdout": "a", "stderr": "", "outcome": {"type": "timeout"}}],
            }
        ),
    ),
    "patch": (
        items.ApplyPatchCall(_PATCH, "call_1"),
        plain({"type": "apply_patch_call", "call_id": "call_1", "operation": _PATCH}),
    ),
    "patch output": (
        items.ApplyPatchCallOutput("call_1", "no", "failed"),
        plain(
            {"type": "apply_patch_call_output", "call_id": "call_1", "output": "no", "status": "failed"}, status=False
        ),
    ),
    "compaction": (
        items.Compaction("xyz"),
        plain({"type": "compaction", "encrypted_content": "xyz"}, status=False),
    ),
    "structured outputs": (
        items.StructuredOutputs({"a": [1, None]}),
        plain({"type": "structured_outputs", "output": {"a": [1, None]}}, status=False),
    ),
    "consent": (
        items.OAuthConsentRequest("https://consent.example", "s"),
        plain(
            {"type": "oauth_consent_request", "consent_link": "https://consent.example", "server_label": "s"},
            status=False,
        ),
    ),
    "a known type without a struct": (
        {"type": "memory_search_call", "results": []},
        plain({"type": "memory_search_call", "results": []}),
    ),
}


def shape(recording: Recording) -> list[Event]:
    """The events without numbers, ids and stamps, which have tests of their own."""
    shapes = []
    for event in recording.events:
        fields = {
            name: value
            for name, value in event.items()
            if name not in ("type", "sequence_number", "output_index", "item_id")
        }
        if "item" in fields:
            fields["item"] = {name: value for name, value in fields["item"].items() if name not in ("id", *_STAMPS)}
        shapes.append((event["type"].removeprefix("response."), fields))
    return shapes


@pytest.mark.parametrize("case", CASES)
def test_an_item_is_told_by_exactly_these_events(case: str) -> None:
    item, events = CASES[case]
    recording = Recording()
    write_item(recording.output, item)
    assert shape(recording) == events
    recording.check()


@pytest.mark.parametrize("case", CASES)
def test_what_nobody_sees_ends_in_the_same_output(case: str) -> None:
    item, events = CASES[case]
    output = silent_output()
    write_item(output, item)
    (done,) = json.loads(json.dumps(output.response["output"]))
    assert {name: value for name, value in done.items() if name not in ("id", *_STAMPS)} == events[-1][1]["item"]


@pytest.mark.parametrize("case", CASES)
def test_an_item_gets_an_id_of_its_type_and_what_the_platform_wants_on_it(case: str) -> None:
    recording = Recording()
    write_item(recording.output, CASES[case][0])
    for event in recording.told("output_item.added") + recording.told("output_item.done"):
        item = event["item"]
        assert item["id"].startswith(ITEM_PREFIXES[item["type"]] + "_")
        assert partition_of(item["id"]) == partition_of(RESPONSE_ID)
        assert item["response_id"] == RESPONSE_ID
        assert item["agent_reference"]["type"] == "agent_reference"


def test_an_item_of_an_unknown_type_is_told_as_it_is() -> None:
    recording = Recording()
    write_item(recording.output, {"type": "hologram", "status": "shimmering", "depth": 3})
    expected = {"type": "hologram", "status": "shimmering", "depth": 3}
    assert shape(recording) == [("output_item.added", {"item": expected}), ("output_item.done", {"item": expected})]
    assert "id" not in recording.events[0]["item"]
    recording.check()


@pytest.mark.parametrize("item", [items.Message("a", id="msg_1"), {"type": "message", "id": "msg_1", "content": "a"}])
def test_an_id_that_is_given_is_kept(item: items.Item | Json) -> None:
    recording = Recording()
    write_item(recording.output, item)
    assert {event["item_id"] for event in recording.events if "item_id" in event} == {"msg_1"}
    recording.check()


def test_a_stamp_that_is_given_is_kept() -> None:
    recording = Recording()
    write_item(recording.output, {"type": "message", "content": "a", "response_id": "other"})
    assert recording.output.response["output"][0]["response_id"] == "other"


@pytest.mark.parametrize(
    "call",
    [
        items.FunctionCall("f"),
        items.CustomToolCall("t", "x"),
        items.ComputerCall(_CLICK),
        items.LocalShellCall({}),
        items.ShellCall({}),
        items.ApplyPatchCall(_PATCH),
    ],
)
def test_a_call_without_a_call_id_gets_one_of_its_own(call: items.Item) -> None:
    recording = Recording()
    write_item(recording.output, call)
    write_item(recording.output, call)
    first, second = (event["item"]["call_id"] for event in recording.told("output_item.done"))
    assert first != second
    assert len(first) <= 64


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"id": "x"}, "an item has a type"),
        ({"type": 1}, "an item has a type"),
        ({"type": "function_call", "arguments": "{}"}, "a function_call has a name, which is text: None"),
        ({"type": "mcp_call", "name": "n"}, "a mcp_call has a server_label, which is text: None"),
        (3, "not int"),
        (items.StructuredOutputs(object()), "not JSON"),
        ({"type": "message", "content": ["x"]}, "a part of a message is a mapping"),
        ({"type": "function_call", "name": "f", "arguments": {"x": object()}}, "arguments are not JSON"),
        ({"type": "message", "content": [{"type": "output_text", "text": 3}]}, "text is str, not int"),
    ],
)
def test_what_is_no_item_is_refused(item: Any, says: str) -> None:
    with pytest.raises(OutputError, match=says):
        write_item(Recording().output, item)


def test_a_message_is_added_with_its_first_text() -> None:
    recording = Recording()
    message = MessageWriter(recording.output)
    message.text("")
    assert recording.events == []
    for piece in ("a", "", "b"):
        message.text(piece)
    message.done()
    assert [event["delta"] for event in recording.told("output_text.delta")] == ["a", "b"]
    assert recording.output.response["output"][0]["content"] == [text_part("ab")]
    recording.check()


def test_a_message_that_never_got_a_text_stays_out_of_the_output() -> None:
    recording = Recording()
    message = MessageWriter(recording.output)
    message.done()
    assert recording.events == []
    assert recording.output.response["output"] == []


def test_annotations_are_told_as_they_come_and_kept_in_every_later_event() -> None:
    recording = Recording()
    message = MessageWriter(recording.output)
    message.text("a")
    message.annotate(items.FileCitation("file_1", "a.txt", 1))
    message.text("b")
    message.annotate(items.FilePath("file_2", 2))
    message.done()
    annotations = [
        {"type": "file_citation", "file_id": "file_1", "filename": "a.txt", "index": 1},
        {"type": "file_path", "file_id": "file_2", "index": 2},
    ]
    told = recording.told("output_text.annotation.added")
    assert [(event["annotation_index"], event["annotation"]) for event in told] == list(enumerate(annotations))
    assert recording.told("content_part.done")[0]["part"] == text_part("ab", *annotations)
    assert recording.told("output_item.done")[0]["item"]["content"] == [text_part("ab", *annotations)]
    assert recording.output.response["output"][0]["content"] == [text_part("ab", *annotations)]
    recording.check()


def test_text_and_refusal_take_turns_in_parts_of_their_own() -> None:
    recording = Recording()
    message = MessageWriter(recording.output)
    message.text("a")
    message.refusal("n")
    message.refusal("o")
    message.text("b")
    message.end_part()
    message.text("c")
    message.done()
    assert recording.output.response["output"][0]["content"] == [
        text_part("a"),
        {"type": "refusal", "refusal": "no"},
        text_part("b"),
        text_part("c"),
    ]
    recording.check()


@pytest.mark.parametrize("move", ["text", "refusal", "annotate", "done", "part"])
def test_nothing_comes_after_done(move: str) -> None:
    message = MessageWriter(Recording().output)
    message.text("a")
    message.done()
    arguments: Mapping[str, tuple[Any, ...]] = {"annotate": ({},), "done": (), "part": ({"type": "refusal"},)}
    with pytest.raises(OutputError, match=f"expected nothing, for it is done; came {move}"):
        getattr(message, move)(*arguments.get(move, ("b",)))


class Shout(str):
    __slots__ = ()


@pytest.mark.parametrize("text", ["\ud800", "a\udfff\ud83d", '"\\\n\x00\u2028', "🎈", Shout("a")])
def test_any_text_goes_through_unharmed(text: str) -> None:
    recording = Recording()
    message = MessageWriter(recording.output)
    message.text(text)
    message.done()
    assert recording.told("output_text.delta")[0]["delta"] == text
    assert recording.told("output_text.done")[0]["text"] == text


def test_what_is_no_text_is_refused() -> None:
    message = MessageWriter(Recording().output)
    with pytest.raises(OutputError, match="text is str, not int"):
        message.text(3)  # type: ignore[arg-type]


def test_a_long_message_takes_memory_for_its_text_once() -> None:
    output = silent_output()
    message = MessageWriter(output)
    message.text("x")
    piece = "y" * 50
    tracemalloc.start()
    for _ in range(100_000):
        message.text(piece)
    held, _ = tracemalloc.get_traced_memory()
    message.done()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2_000_000, "a list of references to the pieces"
    assert peak < held + 2 * 5_000_000, "the joined text, and a copy at most"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_ANY = st.text(st.characters(), max_size=12)
_ARGUMENTS = _ANY | st.dictionaries(_ANY, JSON, max_size=3)
ITEMS: st.SearchStrategy[items.Item | Json] = st.one_of(
    st.builds(items.Message, _ANY, st.lists(st.builds(items.UrlCitation, _ANY), max_size=2), refusal=st.none() | _ANY),
    st.builds(items.FunctionCall, _ANY, _ARGUMENTS),
    st.builds(items.Reasoning, _ANY | st.lists(_ANY, max_size=3), _ANY | st.lists(_ANY, max_size=2)),
    st.builds(items.McpCall, _ANY, _ANY, _ARGUMENTS, error=st.none() | _ANY),
    st.builds(items.McpListTools, _ANY, error=st.none() | _ANY),
    st.builds(items.CodeInterpreterCall, _ANY),
    st.builds(items.ImageGenerationCall, _ANY, st.lists(_ANY, max_size=2)),
    st.builds(items.FileSearchCall, st.lists(_ANY, max_size=2)),
    st.builds(items.WebSearchCall, _ANY),
    st.builds(items.CustomToolCall, _ANY, _ANY),
    st.builds(items.StructuredOutputs, JSON),
    st.fixed_dictionaries(
        {"type": st.sampled_from(sorted(ITEM_PREFIXES)), "name": _ANY, "server_label": _ANY, "extra": JSON}
    ),
    st.fixed_dictionaries({"type": st.just("hologram"), "extra": JSON}),
)


@settings(max_examples=300)
@given(st.lists(ITEMS, max_size=6))
def test_any_items_give_a_sound_stream(given_items: list[items.Item | Json]) -> None:
    recording = Recording()
    for item in given_items:
        write_item(recording.output, item)
    recording.check()
    assert len(recording.output.response["output"]) == len(given_items)


@given(st.lists(st.text(st.characters(), max_size=20), max_size=20))
def test_deltas_joined_are_the_text(pieces: list[str]) -> None:
    recording = Recording()
    message = MessageWriter(recording.output).open()
    for piece in pieces:
        message.text(piece)
    message.done()
    recording.check()
    deltas = "".join(event["delta"] for event in recording.told("output_text.delta"))
    assert deltas == "".join(pieces)
    assert [event["text"] for event in recording.told("output_text.done")] == [deltas] * bool(deltas)
