"""Messages of the assistant as they are written: parts of text with annotations, and refusals (contract section 4.5)."""

from collections.abc import Callable
from typing import Any

from cupola_agent import items
from cupola_agent.responses.open_item import Deltas, OpenItem, plain_text
from cupola_agent.responses.output import Json, Output
from cupola_agent.responses.shapes import builtins, output_text, refusal, whole_item


class MessageWriter(OpenItem):
    """Writes one message, which is added to the output with the first thing in it, or by `open`.

    Consecutive deltas of one kind are one part; a text after a refusal begins a part of its own.
    """

    def __init__(self, output: Output, item: Json | None = None) -> None:
        super().__init__(output, whole_item({"type": "message"}, output) if item is None else item)
        self._content: list[Json] = []
        self._part: _Text | _Refusal | None = None
        self._add_text: Callable[[str], None] | None = None

    def text(self, delta: str) -> None:
        if delta.__class__ is not str:
            delta = plain_text(delta)
        if delta:
            add = self._add_text or self._text("text").deltas.add
            add(delta)

    def annotate(self, annotation: items.Annotation) -> None:
        """Says where the text of this part comes from; the message keeps it."""
        self._text("annotate").annotate(builtins(annotation))

    def refusal(self, delta: str) -> None:
        delta = plain_text(delta)
        if delta:
            self._refusal("refusal").deltas.add(delta)

    def part(self, part: Json) -> None:
        """A whole part of content: its text at once, then its annotations."""
        self.end_part()
        match part.get("type"):
            case "output_text":
                text = self._text("part")
                self.text(part.get("text", ""))
                text.end(part["logprobs"])
                for annotation in part["annotations"]:
                    text.annotate(annotation)
            case "refusal":
                self._refusal("part")
                self.refusal(part.get("refusal", ""))
            case _:
                self._ready("part")
                self._part_event("content_part.added", part=part)
                self._end_part(part)
        self.end_part()

    def end_part(self) -> None:
        """What comes next begins a part of its own."""
        if self._part is not None:
            self._end_part(self._part.whole())

    def done(self, **changes: Any) -> None:
        """Ends the message. One that was never added stays out of the output."""
        if self.opened and not self.closed:
            self.end_part()
        super().done(**{"content": self._content, **changes})

    def _text(self, move: str) -> "_Text":
        part = self._part
        if not isinstance(part, _Text):
            self._begin(move, output_text(""))
            part = self._part = _Text(self)
        self._add_text = part.deltas.add
        return part

    def _refusal(self, move: str) -> "_Refusal":
        if not isinstance(self._part, _Refusal):
            self._begin(move, refusal(""))
            self._part = _Refusal(self)
        return self._part

    def _begin(self, move: str, part: Json) -> None:
        self._ready(move)
        self.end_part()
        self._part_event("content_part.added", part=part)

    def _end_part(self, part: Json) -> None:
        self._part_event("content_part.done", part=part)
        self._content.append(part)
        self._part = self._add_text = None

    def _part_event(self, kind: str, **fields: Any) -> None:
        self._tell(kind, content_index=len(self._content), **fields)

    def _part_deltas(self, kind: str, **fields: Any) -> Deltas:
        return self._deltas(kind, content_index=len(self._content), **fields)


class _Text:
    """A part of a message that is text."""

    def __init__(self, message: MessageWriter) -> None:
        self.deltas = message._part_deltas("output_text.delta", logprobs=[])
        self._tell = message._part_event
        self._annotations: list[Json] = []
        self._logprobs: list[Json] = []
        self._text: str | None = None

    def annotate(self, annotation: Json) -> None:
        self._tell("output_text.annotation.added", annotation_index=len(self._annotations), annotation=annotation)
        self._annotations.append(annotation)

    def end(self, logprobs: list[Json]) -> str:
        self._text = self.deltas.joined()
        self._logprobs = logprobs
        self._tell("output_text.done", text=self._text, logprobs=logprobs)
        return self._text

    def whole(self) -> Json:
        text = self.end([]) if self._text is None else self._text
        return output_text(text, self._annotations, self._logprobs)


class _Refusal:
    """A part of a message that refuses."""

    def __init__(self, message: MessageWriter) -> None:
        self.deltas = message._part_deltas("refusal.delta")
        self._tell = message._part_event

    def whole(self) -> Json:
        text = self.deltas.joined()
        self._tell("refusal.done", refusal=text)
        return refusal(text)


class UnseenMessage:
    """A message of plain text that nobody sees grow: it is in the output once it is whole."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._pieces: list[str] = []

    def text(self, delta: str) -> None:
        if delta:
            self._pieces.append(delta)

    def done(self) -> None:
        self._add("completed")

    def interrupt(self) -> None:
        """Ends the message as something that will not be whole."""
        self._add("incomplete")

    def _add(self, status: str) -> None:
        if self._pieces:
            self._output.add_item(
                {
                    "id": self._output.new_item_id("msg"),
                    "type": "message",
                    "role": "assistant",
                    "status": status,
                    "content": [output_text("".join(self._pieces))],
                }
            )
