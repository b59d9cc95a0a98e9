from typing import Any

import pytest
from cupola_agent.adapters.conversation import Called, Conversation, Decision, Media, Returned, Said, instructions_of
from cupola_agent.responses.objects import ResponseRequest

Json = dict[str, Any]


def said(text: str, role: str = "user") -> Json:
    return {"type": "message", "role": role, "content": text}


def called(call_id: str) -> Json:
    return {"type": "function_call", "call_id": call_id, "name": "look", "arguments": "{}"}


def returned(call_id: str) -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": "found"}


def requested(identifier: str, note: Json | None) -> Json:
    request = {"type": "mcp_approval_request", "id": identifier, "name": "look", "arguments": "{}"}
    return {**request, "internal_metadata": note} if note is not None else request


def approved(identifier: str, approve: Any = True) -> Json:
    return {"type": "mcp_approval_response", "approval_request_id": identifier, "approve": approve, "reason": "why"}


def test_messages_keep_their_parts_in_order() -> None:
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
        {"type": "input_file", "file_url": "https://a/b.pdf"},
        {"type": "input_file", "file_id": "known only to the platform"},
    ]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    conversation = Conversation.of([{"role": "user", "content": content}, refusal], [said("hi", "developer")])
    assert conversation.entries == (
        Said("user", ("look", Media("data:image/png;base64,AA==", True), Media("https://a/b.pdf", False))),
        Said("assistant", ("no",)),
        Said("developer", ("hi",)),
    )


def test_calls_without_outputs_and_outputs_without_calls_are_left_out() -> None:
    history = [returned("too far back"), called("a"), returned("a"), called("never answered")]
    assert Conversation.of(history, [said("go on")]).entries == (
        Called("a", "look", "{}"),
        Returned("a", "found"),
        Said("user", ("go on",)),
    )
    assert Conversation.of([], [returned("elsewhere")]).entries == (Returned("elsewhere", "found"),)


def test_a_call_that_the_caller_answers_is_whole() -> None:
    conversation = Conversation.of([called("a")], [returned("a")])
    assert conversation.entries == (Called("a", "look", "{}"), Returned("a", "found"))


def test_a_decision_is_on_the_call_that_its_request_is_about() -> None:
    conversation = Conversation.of([requested("r", {"call_id": "a"})], [approved("r")])
    assert conversation.entries == (Called("a", "look", "{}"),)
    assert conversation.decisions == {"a": Decision(True, "why")}


@pytest.mark.parametrize("approve", [False, None, "yes", 1])
def test_only_true_is_an_approval(approve: Any) -> None:
    conversation = Conversation.of([requested("r", {"call_id": "a"})], [approved("r", approve)])
    assert conversation.decisions == {"a": Decision(False, "why")}


def test_a_decision_that_was_carried_out_is_none_any_more() -> None:
    history = [requested("r", {"call_id": "a"}), approved("r"), called("a"), returned("a")]
    conversation = Conversation.of(history, [approved("r")])
    assert conversation.decisions == {}
    assert conversation.entries == (Called("a", "look", "{}"), Returned("a", "found"))


@pytest.mark.parametrize(
    ("history", "given"),
    [
        ([], [requested("r", None), approved("r")]),
        ([], [requested("r", {"call_id": "a"}), approved("r")]),
        ([requested("r", None)], [approved("r")]),
        ([requested("r", {"call_id": 1})], [approved("r")]),
        ([], [approved("r")]),
    ],
)
def test_requests_without_an_adapters_note_in_the_history_cannot_be_approved(
    history: list[Json], given: list[Json]
) -> None:
    assert Conversation.of(history, given).decisions == {}


def test_arguments_that_are_no_object_are_none() -> None:
    assert Called("a", "look", '{"x": 1}').decoded == {"x": 1}
    assert Called("a", "look", "[1]").decoded == {}
    assert Called("a", "look", "nonsense").decoded == {}


def test_instructions_may_be_items() -> None:
    given = [said("be brief", "system"), said("and kind", "developer")]
    assert instructions_of(ResponseRequest({"instructions": given})) == "be brief\nand kind"
    assert instructions_of(ResponseRequest({"instructions": "be brief"})) == "be brief"
    assert instructions_of(ResponseRequest({})) is None
