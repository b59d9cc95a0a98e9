"""What a responses handler may give besides text: output items, usage, and last words (contract section 4.5).

    yield items.FunctionCall("get_weather", {"city": "Paris"})

A plain dict with a `type` is as good as any of these. Where an id is left out, the library makes one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

# Structs and not dataclasses: forty of those would cost a cold start 20 ms, forty of these cost it half a one.
from msgspec import Struct

Json: TypeAlias = Mapping[str, Any]


class UrlCitation(Struct, frozen=True, tag_field="type", tag="url_citation"):
    """The characters from `start_index` to `end_index` of the text come from a web page."""

    url: str
    title: str = ""
    start_index: int = 0
    end_index: int = 0


class FileCitation(Struct, frozen=True, tag_field="type", tag="file_citation"):
    """The text at `index` comes from a file."""

    file_id: str
    filename: str = ""
    index: int = 0


class ContainerFileCitation(Struct, frozen=True, tag_field="type", tag="container_file_citation"):
    """The characters from `start_index` to `end_index` name a file in the container of a tool."""

    container_id: str
    file_id: str
    filename: str = ""
    start_index: int = 0
    end_index: int = 0


class FilePath(Struct, frozen=True, tag_field="type", tag="file_path"):
    """The text at `index` is the path of a file."""

    file_id: str
    index: int = 0


Annotation: TypeAlias = UrlCitation | FileCitation | ContainerFileCitation | FilePath | Json


class Item(Struct, frozen=True, kw_only=True, tag_field="type", tag=False):
    """What all items have. `internal_metadata` is stored with the item and never shown to a caller."""

    id: str | None = None
    internal_metadata: Json | None = None


class Message(Item, frozen=True, tag="message"):
    """A message of the assistant: a text with its annotations, or a refusal, or both."""

    text: str = ""
    annotations: Sequence[Annotation] = ()
    phase: Literal["commentary", "final_answer"] | None = None
    refusal: str | None = None


class Refusal(Item, frozen=True, tag="message"):
    """A message that says only that the agent will not answer."""

    text: str


class FunctionCall(Item, frozen=True, tag="function_call"):
    """Asks the caller to run a function. Arguments that are a mapping are encoded as JSON."""

    name: str
    arguments: str | Json = "{}"
    call_id: str | None = None


class FunctionCallOutput(Item, frozen=True, tag="function_call_output"):
    """What a function gave that the agent ran itself: text, or a list of input content."""

    call_id: str
    output: str | Sequence[Json]


class Reasoning(Item, frozen=True, tag="reasoning"):
    """Why the agent answers as it does: summaries to read, and perhaps the full text or an encrypted one."""

    summary: str | Sequence[str] = ()
    content: str | Sequence[str] = ()
    encrypted_content: str | None = None


class FileSearchCall(Item, frozen=True, tag="file_search_call"):
    """A search in files that the agent has made. Results: `file_id`, `filename`, `score`, `text`, `attributes`."""

    queries: Sequence[str] = ()
    results: Sequence[Json] | None = None
    status: Literal["completed", "incomplete", "failed"] = "completed"


class WebSearchCall(Item, frozen=True, tag="web_search_call"):
    """A search in the web that the agent has made. A text is what was searched for."""

    action: str | Json
    status: Literal["completed", "incomplete", "failed"] = "completed"


class CodeInterpreterCall(Item, frozen=True, tag="code_interpreter_call"):
    """Code that the agent has run. Outputs: `{"type": "logs", "logs": …}` or `{"type": "image", "url": …}`."""

    code: str
    container_id: str = ""
    outputs: Sequence[Json] | None = None
    status: Literal["completed", "incomplete", "failed"] = "completed"


class ImageGenerationCall(Item, frozen=True, tag="image_generation_call"):
    """An image in base64, after the sketches of it that came before."""

    result: str | None
    partial_images: Sequence[str] = ()
    revised_prompt: str | None = None
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    status: Literal["completed", "failed"] = "completed"


class McpCall(Item, frozen=True, tag="mcp_call"):
    """A tool of an MCP server that the agent has called. With an `error` the call has failed."""

    server_label: str
    name: str
    arguments: str | Json = "{}"
    output: str | None = None
    error: str | Json | None = None
    approval_request_id: str | None = None


class McpListTools(Item, frozen=True, tag="mcp_list_tools"):
    """The tools of an MCP server. With an `error` they could not be listed."""

    server_label: str
    tools: Sequence[Json] = ()
    error: str | Json | None = None


class McpApprovalRequest(Item, frozen=True, tag="mcp_approval_request"):
    """Asks the caller whether a tool of an MCP server may be called."""

    server_label: str
    name: str
    arguments: str | Json = "{}"


class McpApprovalResponse(Item, frozen=True, tag="mcp_approval_response"):
    approval_request_id: str
    approve: bool
    reason: str | None = None


class CustomToolCall(Item, frozen=True, tag="custom_tool_call"):
    """Asks the caller to run a tool that takes text."""

    name: str
    input: str
    call_id: str | None = None


class CustomToolCallOutput(Item, frozen=True, tag="custom_tool_call_output"):
    call_id: str
    output: str | Sequence[Json]


class ComputerCall(Item, frozen=True, tag="computer_call"):
    """Asks the caller to act on a computer: click, type, scroll, take a screenshot."""

    action: Json
    call_id: str | None = None
    pending_safety_checks: Sequence[Json] = ()


class ComputerCallOutput(Item, frozen=True, tag="computer_call_output"):
    """A screenshot: `{"type": "computer_screenshot", "image_url": …}`."""

    call_id: str
    output: Json
    acknowledged_safety_checks: Sequence[Json] | None = None


class LocalShellCall(Item, frozen=True, tag="local_shell_call"):
    """Asks the caller to run one command: `{"type": "exec", "command": […], "env": {}}`."""

    action: Json
    call_id: str | None = None


class LocalShellCallOutput(Item, frozen=True, tag="local_shell_call_output"):
    call_id: str
    output: str


class ShellCall(Item, frozen=True, tag="shell_call"):
    """Asks the caller to run commands: `{"commands": […], "timeout_ms": …, "max_output_length": …}`."""

    action: Json
    call_id: str | None = None
    environment: Json | None = None


class ShellCallOutput(Item, frozen=True, tag="shell_call_output"):
    """What commands gave: a list of `{"stdout": …, "stderr": …, "outcome": {"type": "exit", "exit_code": 0}}`."""

    call_id: str
    output: Sequence[Json]
    max_output_length: int | None = None


class ApplyPatchCall(Item, frozen=True, tag="apply_patch_call"):
    """Asks the caller to change a file: `{"type": "update_file", "path": …, "diff": …}`."""

    operation: Json
    call_id: str | None = None


class ApplyPatchCallOutput(Item, frozen=True, tag="apply_patch_call_output"):
    call_id: str
    output: str | None = None
    status: Literal["completed", "failed"] = "completed"


class Compaction(Item, frozen=True, tag="compaction"):
    """What a long conversation was boiled down to."""

    encrypted_content: str


class StructuredOutputs(Item, frozen=True, tag="structured_outputs"):
    """Any JSON value as output."""

    output: Any


class OAuthConsentRequest(Item, frozen=True, tag="oauth_consent_request"):
    """Asks the user to open a link and let the agent use a service in their name."""

    consent_link: str
    server_label: str = ""


class Usage(Struct, frozen=True):
    """Tokens that a response has cost."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """As `usage` of a response."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


class Failed(Struct, frozen=True):
    """Ends the response as failed, with an error that the caller sees."""

    code: str
    message: str


class Incomplete(Struct, frozen=True):
    """Ends the response as incomplete; `reason` is usually `max_output_tokens` or `content_filter`."""

    reason: str
