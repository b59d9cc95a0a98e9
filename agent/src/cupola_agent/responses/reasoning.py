"""Reasoning as it is written: parts of its summary, and parts of its text (contract section 4.5)."""

from typing import Any, NamedTuple

from cupola_agent.responses.open_item import Deltas, OpenItem, plain_text
from cupola_agent.responses.output import Json, Output


class _Kind(NamedTuple):
    part: str
    text: str
    number: str
    type: str


_SUMMARY = _Kind("reasoning_summary_part", "reasoning_summary_text", "summary_index", "summary_text")
_CONTENT = _Kind("content_part", "reasoning_text", "content_index", "reasoning_text")


class ReasoningWriter(OpenItem):
    """Writes one item of reasoning. Consecutive deltas of one kind are one part, until `part`."""

    def __init__(self, output: Output, item: Json) -> None:
        super().__init__(output, item)
        self._parts: dict[_Kind, list[Json]] = {_SUMMARY: [], _CONTENT: []}
        self._part: tuple[_Kind, Deltas] | None = None

    def summary(self, delta: str) -> None:
        """What the caller may read of the reasoning."""
        self._add("summary", _SUMMARY, delta)

    def text(self, delta: str) -> None:
        """The reasoning itself."""
        self._add("text", _CONTENT, delta)

    def part(self) -> None:
        """What comes next begins a part of its own."""
        self._ready("part")
        self._end_part()

    def done(self, **changes: Any) -> None:
        """Ends the item. `encrypted_content` is what the caller sends back in the next turn."""
        if self.opened and not self.closed:
            self._end_part()
        content = {"content": self._parts[_CONTENT]} if self._parts[_CONTENT] else {}
        super().done(**{"summary": self._parts[_SUMMARY], **content, **changes})

    def _add(self, move: str, kind: _Kind, delta: str) -> None:
        self._ready(move)
        delta = plain_text(delta)
        if delta:
            self._text_of(kind).add(delta)

    def _text_of(self, kind: _Kind) -> Deltas:
        if self._part is not None and self._part[0] is kind:
            return self._part[1]
        self._end_part()
        place = {kind.number: len(self._parts[kind])}
        self._tell(f"{kind.part}.added", **place, part={"type": kind.type, "text": ""})
        deltas = self._deltas(f"{kind.text}.delta", **place)
        self._part = kind, deltas
        return deltas

    def _end_part(self) -> None:
        if self._part is None:
            return
        kind, deltas = self._part
        place = {kind.number: len(self._parts[kind])}
        part = {"type": kind.type, "text": deltas.joined()}
        self._tell(f"{kind.text}.done", **place, text=part["text"])
        self._tell(f"{kind.part}.done", **place, part=part)
        self._parts[kind].append(part)
        self._part = None
