"""The stream that a handler drives itself: items step by step, raw events, last words (contract section 4.5).

    with stream.message() as message:
        message.text("Paris is ")
        message.text("sunny.")
        message.annotate(items.UrlCitation("https://weather.example"))

Nothing here waits: what is written is on its way. `await stream.drained()` waits for a slow reader.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from cupola_agent import items
from cupola_agent.responses.calls import (
    CodeInterpreterWriter,
    CustomToolCallWriter,
    FileSearchWriter,
    FunctionCallWriter,
    ImageGenerationWriter,
    McpCallWriter,
    WebSearchWriter,
)
from cupola_agent.responses.lifecycle import EVENT_TYPE, OWN_FIELDS, STATUSES
from cupola_agent.responses.messages import MessageWriter
from cupola_agent.responses.open_item import OpenItem
from cupola_agent.responses.output import Ending, Json, Output, OutputError
from cupola_agent.responses.reasoning import ReasoningWriter
from cupola_agent.responses.shapes import builtins, whole_item
from cupola_agent.responses.writers import write_item

Hook = Callable[[], Awaitable[None]]
Writer = TypeVar("Writer", bound=OpenItem)

# Where a response stands, and what may come next.
_NEXT: Mapping[str, Mapping[str, str]] = {
    "begun": {"queued": "queued", "write": "writing", "completed": "ended", "failed": "ended", "incomplete": "ended"},
    "queued": {"write": "writing", "completed": "ended", "failed": "ended", "incomplete": "ended"},
    "writing": {"write": "writing", "completed": "ended", "failed": "ended", "incomplete": "ended"},
    "ended": {},
}


class ResponseStream:
    """Writes one response, whose `created` and `in_progress` are told. Misuse raises OutputError at once.

    An item is added to the output when its method is called, and several may be open at a time.
    """

    def __init__(self, output: Output, *, drained: Hook, checkpoint: Hook) -> None:
        self.drained = drained
        """Waits while the client reads more slowly than the agent writes."""
        self.checkpoint = checkpoint
        """Stores the response as it stands, so that a run after a crash can go on from here."""
        self._output = output
        self._state = "begun"
        self._open: list[OpenItem] = []
        self._message: MessageWriter | None = None

    @property
    def response(self) -> Json:
        """The response as it stands; an open item as it was when it was added."""
        return self._output.response

    @property
    def internal_metadata(self) -> Json:
        """What the handler notes for itself: stored with the response, and never shown to a caller."""
        return self._output.internal_metadata

    def queued(self) -> None:
        """The response waits for its turn, before anything is in it; it is in progress again when something comes."""
        self._move("queued")
        self._output.change(status="queued")
        self._output.lifecycle("queued")

    def text(self, delta: str) -> None:
        """A piece of a message. Consecutive pieces are one message."""
        if self._message is None:
            self._move("write")
            self._message = MessageWriter(self._output)
        self._message.text(delta)

    def item(self, item: items.Item | Mapping[str, Any]) -> None:
        """A whole item, from `added` to `done`."""
        self._end_message()
        self._move("write")
        write_item(self._output, item)

    def message(self, *, phase: str | None = None, id: str | None = None) -> MessageWriter:  # noqa: A002
        return self._opened(MessageWriter, {"type": "message", "phase": phase, "id": id})

    def reasoning(self, *, encrypted_content: str | None = None, id: str | None = None) -> ReasoningWriter:  # noqa: A002
        return self._opened(ReasoningWriter, {"type": "reasoning", "encrypted_content": encrypted_content, "id": id})

    def function_call(self, name: str, call_id: str | None = None) -> FunctionCallWriter:
        return self._opened(FunctionCallWriter, {"type": "function_call", "name": name, "call_id": call_id})

    def custom_tool_call(self, name: str, call_id: str | None = None) -> CustomToolCallWriter:
        return self._opened(CustomToolCallWriter, {"type": "custom_tool_call", "name": name, "call_id": call_id})

    def mcp_call(self, server_label: str, name: str, *, approval_request_id: str | None = None) -> McpCallWriter:
        fields = {"server_label": server_label, "name": name, "approval_request_id": approval_request_id}
        return self._opened(McpCallWriter, {"type": "mcp_call", **fields})

    def code_interpreter(self, container_id: str = "") -> CodeInterpreterWriter:
        return self._opened(CodeInterpreterWriter, {"type": "code_interpreter_call", "container_id": container_id})

    def image_generation(self) -> ImageGenerationWriter:
        return self._opened(ImageGenerationWriter, {"type": "image_generation_call"})

    def file_search(self, queries: Sequence[str]) -> FileSearchWriter:
        return self._opened(FileSearchWriter, {"type": "file_search_call", "queries": list(queries)})

    def web_search(self, query: str) -> WebSearchWriter:
        return self._opened(WebSearchWriter, {"type": "web_search_call", "action": query})

    def event(self, kind: str, **fields: Any) -> None:
        """Any other event, with its fields. Those of the response itself and of whole items have their methods."""
        if kind in STATUSES or kind.startswith("response.output_item.") or not EVENT_TYPE.fullmatch(kind):
            raise OutputError(f"expected an event `response.…` that has no method here; came {kind!r}")
        self._move("write")
        self._output.emit(kind, **builtins(fields))

    def update(self, **fields: Any) -> None:
        """Changes fields of the response, such as `metadata`, which callers see with the next lifecycle event."""
        for name in OWN_FIELDS & fields.keys():
            raise OutputError(f"`{name}` of a response is not for a handler to change")
        self._output.change(**builtins(fields))

    def usage(self, usage: items.Usage | Mapping[str, Any]) -> None:
        """The tokens that the response has cost."""
        self._output.change(usage=usage.to_json() if isinstance(usage, items.Usage) else builtins(usage))

    def completed(self) -> None:
        """Ends the response. Raises OutputError when an item is still open."""
        self.finish()
        self._move("completed")
        self._output.end(Ending.completed())

    def failed(self, code: str, message: str) -> None:
        """Ends the response with an error that the caller sees. Items that are open end as incomplete."""
        self.interrupt()
        self._move("failed")
        self._output.end(Ending.failed({"code": code, "message": message}))

    def incomplete(self, reason: str | None = None) -> None:
        """Ends the response early: `max_output_tokens`, `content_filter`. Items that are open end as incomplete."""
        self.interrupt()
        self._move("incomplete")
        self._output.end(Ending.incomplete(reason))

    def finish(self) -> None:
        """Ends the message of `text`. Raises OutputError when another item is still open."""
        self._end_message()
        for item in self._open:
            if not item.closed:
                raise OutputError(f"expected `done` of the item at output_index {item.output_index}, {item.id}")
        self._open.clear()

    def interrupt(self) -> None:
        """Ends what is open as incomplete."""
        for item in (*self._open, self._message):
            if item is not None and not item.closed:
                item.interrupt()
        self._open.clear()
        self._message = None

    def _opened(self, writer: Callable[[Output, Json], Writer], fields: Json) -> Writer:
        self._end_message()
        self._move("write")
        given = {name: value for name, value in fields.items() if value is not None}
        item = writer(self._output, whole_item(given, self._output))
        item.open()
        self._open = [*(other for other in self._open if not other.closed), item]
        return item

    def _end_message(self) -> None:
        if self._message is not None:
            self._message.done()
            self._message = None

    def _move(self, move: str) -> None:
        """The one place where the state of the response changes."""
        following = _NEXT[self._state].get(move)
        if following is None:
            expected = " or ".join(_NEXT[self._state]) or "nothing"
            raise OutputError(f"the response is {self._state}: expected {expected}; came {move}")
        if self._state == "queued" and move == "write":
            self._output.change(status="in_progress")
            self._output.lifecycle("in_progress")
        self._state = following
