"""Whole items as the events that tell them (contract section 4.5)."""

from collections.abc import Mapping
from typing import Any

from cupola_agent import items
from cupola_agent.responses.calls import COURSES, CallWriter
from cupola_agent.responses.messages import MessageWriter
from cupola_agent.responses.open_item import OpenItem
from cupola_agent.responses.output import Json, Output
from cupola_agent.responses.reasoning import ReasoningWriter
from cupola_agent.responses.shapes import whole_item

__all__ = ["MessageWriter", "write_item"]


def write_item(output: Output, given: items.Item | Mapping[str, Any]) -> None:
    """Tells an item from `added` to `done`. Raises OutputError for what is no item or not JSON."""
    item = whole_item(given, output)
    kind = item["type"]
    if kind == "message" and item["role"] == "assistant":
        _write_message(output, item)
    elif kind == "reasoning":
        _write_reasoning(output, item)
    elif kind in COURSES:
        CallWriter(output, item).open().done()
    else:
        OpenItem(output, item).open().done()


def _write_message(output: Output, item: Json) -> None:
    message = MessageWriter(output, item).open()
    for part in item["content"]:
        message.part(part)
    message.done()


def _write_reasoning(output: Output, item: Json) -> None:
    reasoning = ReasoningWriter(output, item).open()
    for part in item["summary"]:
        reasoning.summary(part["text"])
        reasoning.part()
    for part in item.get("content", ()):
        reasoning.text(part["text"])
        reasoning.part()
    reasoning.done()
