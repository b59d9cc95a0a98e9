from collections.abc import Callable
from typing import Any

import pytest
from cupola_agent import items
from cupola_agent.responses.open_item import OpenItem
from cupola_agent.responses.output import Ending, OutputError
from cupola_agent.responses.stream import ResponseStream
from hypothesis import given
from hypothesis import strategies as st

from agent.tests.responses.recording import Recording, silent_output


async def nothing() -> None:
    """What waits for no reader, and stores nothing."""


def stream_on(recording: Recording) -> ResponseStream:
    return ResponseStream(recording.output, drained=nothing, checkpoint=nothing)


def outline(recording: Recording) -> list[str]:
    """The names of the events, where several of one kind in a row are one."""
    names = recording.names
    return [name for number, name in enumerate(names) if number == 0 or names[number - 1] != name]


def write_text(stream: ResponseStream) -> None:
    stream.text("Hello, ")
    stream.text("world")


def write_message(stream: ResponseStream) -> None:
    with stream.message(phase="final_answer") as message:
        message.text("Hello, ")
        message.text("world")
        message.annotate(items.UrlCitation("https://a.example"))
        message.refusal("no")


def write_function_call(stream: ResponseStream) -> None:
    with stream.function_call("sum", "call_1") as call:
        call.arguments('{"a":')
        call.arguments("1}")


def write_custom_tool_call(stream: ResponseStream) -> None:
    with stream.custom_tool_call("python") as call:
        call.input("print(")
        call.input(")")


def write_reasoning(stream: ResponseStream) -> None:
    with stream.reasoning() as reasoning:
        reasoning.summary("first ")
        reasoning.summary("thought")
        reasoning.part()
        reasoning.summary("second")
        reasoning.text("because")


def write_mcp_call(stream: ResponseStream) -> None:
    with stream.mcp_call("server", "tool") as call:
        call.arguments("{}")
        call.output("3")


def write_failed_mcp_call(stream: ResponseStream) -> None:
    with stream.mcp_call("server", "tool") as call:
        call.error("boom")


def write_image(stream: ResponseStream) -> None:
    with stream.image_generation() as image:
        image.generating()
        image.partial_image("aaaa")
        image.result("iVBO")


def write_code(stream: ResponseStream) -> None:
    with stream.code_interpreter("box") as code:
        code.code("1 + ")
        code.code("1")
        code.interpreting()
        code.outputs([{"type": "logs", "logs": "2"}])


def write_file_search(stream: ResponseStream) -> None:
    with stream.file_search(["sun"]) as search:
        search.searching()
        search.results([{"file_id": "f"}])


def write_web_search(stream: ResponseStream) -> None:
    with stream.web_search("sun"):
        pass


Write = Callable[[ResponseStream], None]
_CASES: dict[Write, tuple[list[str], dict[str, Any]]] = {
    write_text: (
        ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"],
        {"type": "message"},
    ),
    write_message: (
        [
            "content_part.added",
            "output_text.delta",
            "output_text.annotation.added",
            "output_text.done",
            "content_part.done",
            "content_part.added",
            "refusal.delta",
            "refusal.done",
            "content_part.done",
        ],
        {"type": "message", "phase": "final_answer"},
    ),
    write_function_call: (
        ["function_call_arguments.delta", "function_call_arguments.done"],
        {"type": "function_call", "name": "sum", "call_id": "call_1", "arguments": '{"a":1}'},
    ),
    write_custom_tool_call: (
        ["custom_tool_call_input.delta", "custom_tool_call_input.done"],
        {"type": "custom_tool_call", "name": "python", "input": "print()"},
    ),
    write_reasoning: (
        [
            *["reasoning_summary_part.added", "reasoning_summary_text.delta"],
            *["reasoning_summary_text.done", "reasoning_summary_part.done"],
            *["reasoning_summary_part.added", "reasoning_summary_text.delta"],
            *["reasoning_summary_text.done", "reasoning_summary_part.done"],
            *["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"],
        ],
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "first thought"}, {"type": "summary_text", "text": "second"}],
            "content": [{"type": "reasoning_text", "text": "because"}],
        },
    ),
    write_mcp_call: (
        ["mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done", "mcp_call.completed"],
        {"type": "mcp_call", "server_label": "server", "name": "tool", "arguments": "{}", "output": "3"},
    ),
    write_failed_mcp_call: (
        ["mcp_call.in_progress", "mcp_call_arguments.delta", "mcp_call_arguments.done", "mcp_call.failed"],
        {"type": "mcp_call", "status": "failed", "error": "boom"},
    ),
    write_image: (
        [
            "image_generation_call.in_progress",
            "image_generation_call.generating",
            "image_generation_call.partial_image",
            "image_generation_call.completed",
        ],
        {"type": "image_generation_call", "result": "iVBO"},
    ),
    write_code: (
        [
            "code_interpreter_call.in_progress",
            "code_interpreter_call_code.delta",
            "code_interpreter_call_code.done",
            "code_interpreter_call.interpreting",
            "code_interpreter_call.completed",
        ],
        {"type": "code_interpreter_call", "code": "1 + 1", "outputs": [{"type": "logs", "logs": "2"}]},
    ),
    write_file_search: (
        ["file_search_call.in_progress", "file_search_call.searching", "file_search_call.completed"],
        {"type": "file_search_call", "queries": ["sun"], "results": [{"file_id": "f"}]},
    ),
    write_web_search: (
        ["web_search_call.in_progress", "web_search_call.searching", "web_search_call.completed"],
        {"type": "web_search_call", "action": {"type": "search", "query": "sun", "queries": ["sun"]}},
    ),
}
_IDS = [write.__name__ for write in _CASES]


@pytest.mark.parametrize("write", _CASES, ids=_IDS)
def test_what_is_written_is_told_step_by_step(write: Write) -> None:
    names, item = _CASES[write]
    recording = Recording()
    stream = stream_on(recording)
    write(stream)
    stream.completed()
    assert outline(recording) == ["output_item.added", *names, "output_item.done"]
    (done,) = recording.output.response["output"]
    assert {"status": "completed", **item}.items() <= done.items()
    recording.check()


@pytest.mark.parametrize("write", _CASES, ids=_IDS)
def test_what_nobody_sees_is_written_the_same(write: Write) -> None:
    output = silent_output()
    stream = ResponseStream(output, drained=nothing, checkpoint=nothing)
    write(stream)
    stream.completed()
    (done,) = output.response["output"]
    assert {"status": "completed", **_CASES[write][1]}.items() <= done.items()


def test_items_are_numbered_by_when_they_were_added_and_may_be_open_together() -> None:
    recording = Recording()
    stream = stream_on(recording)
    with stream.message() as message, stream.function_call("f", "call_1") as call:
        call.arguments("{")
        message.text("a")
        call.arguments("}")
    stream.item(items.Message("b"))
    assert [event["output_index"] for event in recording.told("output_item.added")] == [0, 1, 2]
    assert [event["output_index"] for event in recording.told("output_item.done")] == [1, 0, 2]
    recording.check()


def test_consecutive_texts_are_one_message_that_anything_else_ends() -> None:
    recording = Recording()
    stream = stream_on(recording)
    stream.text("a")
    stream.text("b")
    stream.item(items.FunctionCall("f"))
    stream.text("c")
    stream.finish()
    assert [item["type"] for item in recording.output.response["output"]] == ["message", "function_call", "message"]
    assert [event["text"] for event in recording.told("output_text.done")] == ["ab", "c"]
    recording.check()


def test_a_raw_event_goes_out_with_its_fields() -> None:
    recording = Recording()
    stream = stream_on(recording)
    stream.event("response.hologram.turned", degrees=90, source=items.FilePath("f"))
    (event,) = recording.events
    assert event == {
        "type": "response.hologram.turned",
        "degrees": 90,
        "source": {"type": "file_path", "file_id": "f", "index": 0},
        "sequence_number": 0,
    }


def test_a_response_may_be_queued_before_anything_is_in_it() -> None:
    recording = Recording()
    stream = stream_on(recording)
    stream.queued()
    assert stream.response["status"] == "queued"
    stream.text("a")
    assert stream.response["status"] == "in_progress"
    assert recording.names[:3] == ["queued", "in_progress", "output_item.added"]
    assert [recording.events[0]["response"]["status"], recording.events[1]["response"]["status"]] == [
        "queued",
        "in_progress",
    ]


def test_usage_and_other_fields_go_into_the_response() -> None:
    recording = Recording()
    stream = stream_on(recording)
    stream.usage(items.Usage(1, 2))
    stream.update(metadata={"a": "b"})
    assert stream.response["usage"]["total_tokens"] == 3
    assert stream.response["metadata"] == {"a": "b"}
    with pytest.raises(OutputError, match="`status`"):
        stream.update(status="completed")


def test_what_a_handler_notes_for_itself_is_stored_and_not_shown() -> None:
    recording = Recording()
    stream = stream_on(recording)
    stream.internal_metadata["step"] = 3
    stream.item(items.Message("a", internal_metadata={"secret": 1}))
    stored = recording.output.stored
    assert stored["metadata"]["_internal_metadata"] == {"step": 3}
    assert stored["output"][0]["internal_metadata"] == {"secret": 1}
    assert "internal_metadata" not in str(recording.events)
    assert "internal_metadata" not in str(stream.response)


async def test_a_handler_waits_for_readers_and_for_the_store() -> None:
    waited: list[str] = []

    async def drained() -> None:
        waited.append("drained")

    async def checkpoint() -> None:
        waited.append("checkpoint")

    stream = ResponseStream(silent_output(), drained=drained, checkpoint=checkpoint)
    await stream.drained()
    await stream.checkpoint()
    assert waited == ["drained", "checkpoint"]


@pytest.mark.parametrize(
    ("end", "ending"),
    [
        (lambda stream: stream.completed(), Ending.completed()),
        (lambda stream: stream.failed("quota", "Enough."), Ending.failed({"code": "quota", "message": "Enough."})),
        (lambda stream: stream.incomplete("max_output_tokens"), Ending.incomplete("max_output_tokens")),
        (lambda stream: stream.incomplete(), Ending.incomplete(None)),
    ],
)
def test_the_last_word_is_kept_and_ends_the_message(end: Write, ending: Ending) -> None:
    recording = Recording()
    stream = stream_on(recording)
    stream.text("a")
    end(stream)
    assert recording.output.ending == ending
    assert recording.names[-1] == "output_item.done"
    recording.check()


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (lambda stream: stream.message(), "incomplete"),
        (lambda stream: stream.function_call("f"), "incomplete"),
        (lambda stream: stream.custom_tool_call("t"), "incomplete"),
        (lambda stream: stream.reasoning(), "incomplete"),
        (lambda stream: stream.mcp_call("s", "t"), "incomplete"),
        (lambda stream: stream.image_generation(), "failed"),
        (lambda stream: stream.code_interpreter(), "incomplete"),
        (lambda stream: stream.file_search(["q"]), "incomplete"),
        (lambda stream: stream.web_search("q"), "incomplete"),
    ],
)
def test_an_exception_ends_the_open_item_as_what_it_is(
    begin: Callable[[ResponseStream], OpenItem], status: str
) -> None:
    recording = Recording()
    with pytest.raises(RuntimeError, match="the tool broke"), begin(stream_on(recording)):
        raise RuntimeError("the tool broke")
    (done,) = recording.output.response["output"]
    assert done["status"] == status
    assert not [name for name in recording.names if name.endswith((".completed", ".failed"))]
    recording.check()


def test_a_failure_keeps_what_was_written_so_far() -> None:
    recording = Recording()
    stream = stream_on(recording)
    message = stream.message()
    message.text("half")
    call = stream.function_call("f")
    call.arguments('{"a"')
    stream.failed("quota", "Enough.")
    said, called = recording.output.response["output"]
    assert (said["status"], said["content"][0]["text"]) == ("incomplete", "half")
    assert (called["status"], called["arguments"]) == ("incomplete", '{"a"')
    recording.check()


def _after_done(stream: ResponseStream) -> None:
    with stream.function_call("f") as call:
        pass
    call.arguments("{}")


def _done_twice(stream: ResponseStream) -> None:
    call = stream.function_call("f")
    call.done()
    call.done()


def _step_back(stream: ResponseStream) -> None:
    search = stream.file_search(["q"])
    search.searching()
    search.step("in_progress")


def _step_twice(stream: ResponseStream) -> None:
    image = stream.image_generation()
    image.generating()
    image.generating()


def _step_of_another(stream: ResponseStream) -> None:
    stream.web_search("q").step("generating")


def _code_after_it_ran(stream: ResponseStream) -> None:
    code = stream.code_interpreter()
    code.code("1")
    code.interpreting()
    code.code("2")


def _completed_while_open(stream: ResponseStream) -> None:
    stream.message()
    stream.completed()


def _completed_twice(stream: ResponseStream) -> None:
    stream.completed()
    stream.completed()


def _text_after_the_end(stream: ResponseStream) -> None:
    stream.incomplete()
    stream.text("a")


def _queued_late(stream: ResponseStream) -> None:
    stream.text("a")
    stream.queued()


def _lifecycle_by_hand(stream: ResponseStream) -> None:
    stream.event("response.completed")


def _item_by_hand(stream: ResponseStream) -> None:
    stream.event("response.output_item.done", item={})


def _foreign_event(stream: ResponseStream) -> None:
    stream.event("error")


def _broken_type(stream: ResponseStream) -> None:
    stream.event("response.a\ndata: injected")


def _no_json(stream: ResponseStream) -> None:
    stream.event("response.hologram.turned", degrees=object())


def _summary_after_done(stream: ResponseStream) -> None:
    with stream.reasoning() as reasoning:
        pass
    reasoning.summary("x")


def _part_after_done(stream: ResponseStream) -> None:
    with stream.reasoning() as reasoning:
        pass
    reasoning.part()


@pytest.mark.parametrize(
    ("misuse", "says"),
    [
        (_after_done, "function_call at output_index 0: expected nothing, for it is done; came arguments"),
        (_done_twice, "function_call at output_index 0: expected nothing, for it is done; came done"),
        (_step_back, "file_search_call at output_index 0: expected no further step; came in_progress"),
        (_step_twice, "image_generation_call at output_index 0: expected no further step; came generating"),
        (_step_of_another, "web_search_call at output_index 0: expected searching; came generating"),
        (_code_after_it_ran, "code_interpreter_call at output_index 0: expected the end of the call; came code"),
        (_completed_while_open, "expected `done` of the item at output_index 0"),
        (_completed_twice, "the response is ended: expected nothing; came completed"),
        (_text_after_the_end, "the response is ended: expected nothing; came write"),
        (_queued_late, "the response is writing: expected write or completed or failed or incomplete; came queued"),
        (_lifecycle_by_hand, "came 'response.completed'"),
        (_item_by_hand, "came 'response.output_item.done'"),
        (_foreign_event, "came 'error'"),
        (_broken_type, "came 'response.a\\n"),
        (_no_json, "not JSON"),
        (_summary_after_done, "reasoning at output_index 0: expected nothing, for it is done; came summary"),
        (_part_after_done, "reasoning at output_index 0: expected nothing, for it is done; came part"),
    ],
)
def test_misuse_is_refused_at_once_and_says_what_was_expected(misuse: Write, says: str) -> None:
    with pytest.raises(OutputError) as refused:
        misuse(stream_on(Recording()))
    assert says in str(refused.value)


_MOVES = st.sampled_from(["text", "message", "call", "reasoning", "search", "delta", "done", "item", "event"])


@given(st.lists(st.tuples(_MOVES, st.integers(0, 3)), max_size=30), st.booleans())
def test_any_moves_that_are_allowed_give_a_sound_stream(moves: list[tuple[str, int]], fail: bool) -> None:
    recording = Recording()
    stream = stream_on(recording)
    opened: list[Any] = []
    for move, which in moves:
        if move == "text":
            stream.text("t" * which)
        elif move == "message":
            opened.append(stream.message())
        elif move == "call":
            opened.append(stream.function_call("f"))
        elif move == "reasoning":
            opened.append(stream.reasoning())
        elif move == "search":
            opened.append(stream.file_search(["q"]))
        elif move == "item":
            stream.item(items.Message("x" * which))
        elif move == "event":
            stream.event("response.hologram.turned")
        elif which < len(opened) and move == "done":
            opened.pop(which).done()
        elif which < len(opened):
            item = opened[which]
            for name in ("text", "arguments", "summary"):
                if hasattr(item, name):
                    getattr(item, name)("d")
    if fail:
        stream.failed("code", "message")
    else:
        for item in opened:
            item.done()
        stream.completed()
    recording.check()
