"""An item that whole events tell of: which parts of it are open, and what was said of it so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cupola_agent.responses.output import Json, OutputError


class _Text(NamedTuple):
    """Where the deltas of one kind of event belong: a field of the item, or of its parts, which have a number."""

    field: str
    number: str = ""
    parts: str = ""
    type: str = ""


_TEXTS: Mapping[str, _Text] = {
    "code_interpreter_call_code": _Text("code"),
    "custom_tool_call_input": _Text("input"),
    "function_call_arguments": _Text("arguments"),
    "mcp_call_arguments": _Text("arguments"),
    "output_text": _Text("text", "content_index", "content", "output_text"),
    "reasoning_summary_text": _Text("text", "summary_index", "summary", "summary_text"),
    "reasoning_text": _Text("text", "content_index", "content", "reasoning_text"),
    "refusal": _Text("refusal", "content_index", "content", "refusal"),
}
_PARTS: Mapping[str, tuple[str, str]] = {
    "content_part": ("content_index", "content"),
    "reasoning_summary_part": ("summary_index", "summary"),
}


@dataclass(slots=True)
class RawItem:
    """An item between its `added` and its `done`."""

    type: str
    id: str | None
    output_index: int
    added: Json
    closed: bool = False
    open_parts: set[tuple[str, int]] = field(default_factory=set)
    _parts: dict[tuple[str, int], Json] = field(default_factory=dict)
    _texts: dict[tuple[_Text, int], list[str]] = field(default_factory=dict)

    def follow(self, kind: str, family: str, what: str, event: Json) -> None:
        """Raises OutputError for a part that is done without being added, and for what has no index."""
        part = _PARTS.get(family)
        if part is not None:
            index = number(kind, event, part[0])
            self._follow_part(kind, (part[1], index), what, event.get("part"))
            return
        text = _TEXTS.get(family)
        if text is None:
            return
        index = number(kind, event, text.number) if text.number else 0
        if what == "delta":
            delta = event.get("delta")
            if not isinstance(delta, str):
                raise OutputError(f"{kind}: expected delta, a text; came {type(delta).__name__}")
            self._texts.setdefault((text, index), []).append(delta)

    def _follow_part(self, kind: str, place: tuple[str, int], what: str, part: object) -> None:
        if what == "added":
            self.open_parts.add(place)
        elif place in self.open_parts:
            self.open_parts.remove(place)
        else:
            raise OutputError(f"{kind}: part {place[1]} of {place[0]} was not added, or is done")
        if isinstance(part, Mapping):
            self._parts[place] = dict(part)

    def incomplete(self) -> Json:
        """The item as far as it was told."""
        item = dict(self.added)
        parts = dict(self._parts)
        for (text, index), pieces in self._texts.items():
            if not text.parts:
                item[text.field] = "".join(pieces)
                continue
            place = (text.parts, index)
            parts[place] = {"type": text.type, **parts.get(place, {}), text.field: "".join(pieces)}
        for (name, _), part in sorted(parts.items(), key=lambda entry: entry[0]):
            item[name] = [*(item.get(name) or ()), part]
        return {**item, "status": "incomplete"} if "status" in item else item


def number(kind: str, event: Json, name: str) -> int:
    """An index that the event has to have. Raises OutputError."""
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise OutputError(f"{kind}: expected {name}, a number; came {value!r}")
    return value
