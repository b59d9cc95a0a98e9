"""A conversation in the few kinds of things that every framework knows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cupola_agent import jsons
from cupola_agent.responses.objects import ResponseRequest

Json = Mapping[str, Any]

_TEXTS = frozenset({"input_text", "output_text", "text"})


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a file, by its address; data in base64 is an address of its own kind."""

    url: str
    is_image: bool


@dataclass(frozen=True, slots=True)
class Said:
    """A message. `role` is `user`, `assistant`, `system` or `developer`."""

    role: str
    parts: tuple[str | Media, ...]

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Called:
    """A tool was called, or may be, once the caller has approved it."""

    call_id: str
    name: str
    arguments: str

    @property
    def decoded(self) -> dict[str, Any]:
        """The arguments as a dict; empty when a model made none of them."""
        try:
            arguments = jsons.decode(self.arguments.encode())
        except ValueError:
            return {}
        return arguments if isinstance(arguments, dict) else {}


@dataclass(frozen=True, slots=True)
class Returned:
    """What a called tool gave."""

    call_id: str
    output: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the caller says to a call that needs approval."""

    approved: bool
    reason: str | None


Entry = Said | Called | Returned


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said and done, oldest first; `decisions` are those on calls that have not run yet, by call id.

    Calls that nobody answered are left out, as no model goes on after one, and so are outputs whose call is further
    back than the history reaches.
    """

    entries: tuple[Entry, ...]
    decisions: Mapping[str, Decision]

    @classmethod
    def of(cls, history: Iterable[Json], given: Iterable[Json]) -> "Conversation":
        """From the items of the history, and those of the input.

        A decision counts where the history has a request with an adapter's note: a caller could send any request, in
        this turn or an earlier one, and approve it, but no note.
        """
        past = list(history)
        items = [*past, *given]
        entries = [entry for item in items for entry in _entries(item)]
        returned = {entry.call_id for entry in entries if isinstance(entry, Returned)}
        asked = {item["id"]: call_id for item in past if (call_id := _noted_call_id(item))}
        decisions = {
            call_id: Decision(item.get("approve") is True, item.get("reason"))
            for item in items
            if item.get("type") == "mcp_approval_response"
            and (call_id := asked.get(item["approval_request_id"])) is not None
            and call_id not in returned
        }
        answered = returned | decisions.keys()
        kept: list[Entry] = []
        called: set[str] = set()
        for entry in entries:
            if isinstance(entry, Called):
                if entry.call_id in called or entry.call_id not in answered:
                    continue
                called.add(entry.call_id)
            elif isinstance(entry, Returned) and past and entry.call_id not in called:
                continue
            kept.append(entry)
        return cls(tuple(kept), decisions)


def noted(history: Iterable[Json], name: str) -> Any:
    """The newest thing that an adapter noted under this name on an approval request; None without one.

    Only what the store kept counts: a caller could note anything on an item that it sends.
    """
    found = None
    for item in history:
        if item.get("type") == "mcp_approval_request":
            found = (item.get("internal_metadata") or {}).get(name, found)
    return found


def sampling(request: ResponseRequest) -> dict[str, Any]:
    """The request's `temperature`, `top_p` and `max_output_tokens`, as far as it names them."""
    named = ("temperature", "top_p", "max_output_tokens")
    return {name: request[name] for name in named if request.get(name) is not None}


def instructions_of(request: ResponseRequest) -> str | None:
    """The request's instructions, as text."""
    given = request.instructions
    if given is None or isinstance(given, str):
        return given
    return "\n".join(entry.text for entry in Conversation.of((), given).entries if isinstance(entry, Said))


def model_of(request: ResponseRequest, models: Sequence[str]) -> str | None:
    """The model that the request names, where a caller may choose it."""
    return request.model if request.model in models else None


def _entries(item: Json) -> Iterator[Entry]:
    match item.get("type", "message"):
        case "message":
            yield Said(item["role"], tuple(_parts(item.get("content") or "")))
        case "function_call":
            yield Called(item["call_id"], item["name"], item.get("arguments") or "{}")
        case "function_call_output":
            output = item["output"]
            text = output if isinstance(output, str) else Said("tool", tuple(_parts(output))).text
            yield Returned(item["call_id"], text)
        case "mcp_approval_request" if call_id := _noted_call_id(item):
            yield Called(call_id, item["name"], item.get("arguments") or "{}")


def _noted_call_id(item: Json) -> str | None:
    """The id of the call that an adapter's approval request is about."""
    if item.get("type") != "mcp_approval_request":
        return None
    call_id = (item.get("internal_metadata") or {}).get("call_id")
    return call_id if isinstance(call_id, str) else None


def _parts(content: str | Sequence[Json]) -> Iterator[str | Media]:
    if isinstance(content, str):
        yield content
        return
    for part in content:
        kind = part.get("type")
        if kind in _TEXTS:
            yield part["text"]
        elif kind == "refusal":
            yield part["refusal"]
        elif kind == "input_image" and part.get("image_url"):
            yield Media(part["image_url"], is_image=True)
        elif kind == "input_file" and (part.get("file_url") or part.get("file_data")):
            yield Media(part.get("file_url") or part["file_data"], is_image=False)
