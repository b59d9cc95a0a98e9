#!/usr/bin/env python3
"""A model that needs no model: an OpenAI-compatible server whose answers follow from the question alone.

`POST …/responses` and `POST …/chat/completions`, streamed or whole. A message that begins with the name of an offered
tool calls it with the rest of the message as its first argument, once for each part between " and "; after outputs of
tools the answer repeats them; to "instructions" the answer is the system's text, to "first" the first message of the
user, else what the user said. Tokens are words. Like a real one, it refuses calls without outputs after them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass
class Prompt:
    """What both protocols ask for."""

    system: str = ""
    users: list[str] = field(default_factory=list)
    tool_outputs: list[str] = field(default_factory=list)
    calls: int = 0
    open_calls: set[str] = field(default_factory=set)
    words: int = 0

    def add(self, role: str, text: str) -> None:
        if self.open_calls:
            raise BadPromptError(f"calls without an output: {sorted(self.open_calls)}")
        self.words += len(text.split())
        if role in ("system", "developer"):
            self.system = f"{self.system}\n{text}".strip()
        elif role == "user":
            self.users.append(text)
            self.tool_outputs.clear()

    def add_calls(self, call_ids: list[str], *, together: bool) -> None:
        """`together`: all calls of an answer are in one message, with nothing between them and their outputs."""
        if call_ids and together and self.open_calls:
            raise BadPromptError(f"calls without an output: {sorted(self.open_calls)}")
        self.open_calls.update(call_ids)
        self.calls += len(call_ids)

    def add_output(self, call_id: str, text: str) -> None:
        if call_id not in self.open_calls:
            raise BadPromptError(f"an output without a call: {call_id}")
        self.open_calls.remove(call_id)
        self.words += len(text.split())
        self.tool_outputs.append(text)


class BadPromptError(Exception):
    """No model would go on after this."""


@dataclass(frozen=True)
class ToolCall:
    call_id: str
    name: str
    arguments: str

    @property
    def pieces(self) -> list[str]:
        return [self.arguments[:5], self.arguments[5:]]


@dataclass(frozen=True)
class Reply:
    """A text, or else calls of tools."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()

    @property
    def pieces(self) -> list[str]:
        """The text word by word."""
        words = self.text.split(" ")
        return [words[0], *(f" {word}" for word in words[1:])]

    @property
    def tokens(self) -> int:
        return 2 * len(self.calls) or len(self.pieces)


def reply(prompt: Prompt, tools: list[Json]) -> Reply:
    if prompt.open_calls:
        raise BadPromptError(f"calls without an output: {sorted(prompt.open_calls)}")
    question = prompt.users[-1] if prompt.users else ""
    if prompt.tool_outputs:
        return Reply(f"The tool says: {', '.join(prompt.tool_outputs)}")
    for tool in tools:
        if tool.get("name") and question.startswith(tool["name"]):
            properties = (tool.get("parameters") or {}).get("properties") or {}
            parts = question[len(tool["name"]) :].strip().split(" and ")
            return Reply(
                calls=tuple(
                    ToolCall(
                        f"call_{prompt.calls + number}",
                        tool["name"],
                        json.dumps(dict.fromkeys(list(properties)[:1], part)),
                    )
                    for number, part in enumerate(parts, 1)
                )
            )
    if question == "instructions":
        return Reply(prompt.system or "none")
    if question == "first":
        return Reply(prompt.users[0])
    return Reply(f"You said: {question}")


def text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if part.get("text"))


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; what was asked is kept on the server."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        if isinstance(server, ModelStub):
            server.requests.append((dict(self.headers.items()), body))
        try:
            if self.path.endswith("/chat/completions"):
                self._answer(completion_events(body) if body.get("stream") else completion(body))
            elif self.path.endswith("/responses"):
                if isinstance(server, ModelStub):
                    body = server.remembered(body)
                self._answer(response_events(body) if body.get("stream") else response(body))
            else:
                self.send_error(404)
        except BadPromptError as error:
            self._send(400, "application/json", json.dumps({"error": {"message": str(error)}}).encode())

    def _answer(self, answer: Json | Iterator[str]) -> None:
        if isinstance(answer, dict):
            self._send(200, "application/json", json.dumps(answer).encode())
        else:
            self._send(200, "text/event-stream", "".join(answer).encode())

    def _send(self, status: int, media_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: what it was asked is on `requests`."""


class ModelStub(ThreadingHTTPServer):
    """The server; `requests` are the headers and bodies of all it was asked."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.requests: list[tuple[dict[str, str], Json]] = []
        self._conversations: dict[str, list[Json]] = {}

    def remembered(self, body: Json) -> Json:
        """A request for a response with an id for it, and after what its `previous_response_id` has said."""
        given = body.get("input") or ""
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        before = self._conversations.get(body.get("previous_response_id") or "", [])
        whole = {**body, "input": [*before, *items], "response_id": f"resp_{len(self._conversations) + 1}"}
        self._conversations[whole["response_id"]] = [*whole["input"], *response(whole)["output"]]
        return whole

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


# Chat completions.


def completion_reply(body: Json) -> tuple[Reply, Json]:
    prompt = Prompt()
    for message in body["messages"]:
        if message["role"] == "tool":
            prompt.add_output(message["tool_call_id"], text_of(message["content"]))
            continue
        prompt.add(message["role"], text_of(message.get("content")))
        prompt.add_calls([call["id"] for call in message.get("tool_calls") or ()], together=True)
    answer = reply(prompt, [tool["function"] for tool in body.get("tools") or () if tool.get("function")])
    total = prompt.words + answer.tokens
    return answer, {"prompt_tokens": prompt.words, "completion_tokens": answer.tokens, "total_tokens": total}


def completion_call(call: ToolCall, number: int, arguments: str) -> Json:
    function = {"name": call.name, "arguments": arguments}
    return {"index": number, "id": call.call_id, "type": "function", "function": function}


def completion(body: Json) -> Json:
    answer, usage = completion_reply(body)
    message: Json = {"role": "assistant", "content": answer.text or None}
    if answer.calls:
        message["tool_calls"] = [
            completion_call(call, number, call.arguments) for number, call in enumerate(answer.calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if answer.calls else "stop"}
    return {**completion_head(body, "chat.completion"), "choices": [choice], "usage": usage}


def completion_events(body: Json) -> Iterator[str]:
    answer, usage = completion_reply(body)
    head = completion_head(body, "chat.completion.chunk")

    def chunk(delta: Json, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": None if answer.calls else ""})
    for number, call in enumerate(answer.calls):
        yield chunk({"tool_calls": [completion_call(call, number, "")]})
        for piece in call.pieces:
            yield chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
    if not answer.calls:
        for piece in answer.pieces:
            yield chunk({"content": piece})
    yield chunk({}, "tool_calls" if answer.calls else "stop")
    yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


def completion_head(body: Json, kind: str) -> Json:
    return {"id": "chatcmpl_1", "object": kind, "created": 1, "model": body.get("model", "stub")}


# Responses.


def response_reply(body: Json) -> tuple[Reply, Json]:
    prompt = Prompt()
    prompt.add("system", body.get("instructions") or "")
    given = body.get("input") or ""
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        if item.get("type") == "function_call":
            prompt.add_calls([item["call_id"]], together=False)
        elif item.get("type") == "function_call_output":
            prompt.add_output(item["call_id"], text_of(item["output"]))
        elif "role" in item:
            prompt.add(item["role"], text_of(item.get("content")))
    answer = reply(prompt, [tool for tool in body.get("tools") or () if tool.get("type") == "function"])
    used = answer.tokens
    usage = {
        "input_tokens": prompt.words,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": used,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt.words + used,
    }
    return answer, usage


def response(body: Json, status: str = "completed") -> Json:
    answer, usage = response_reply(body)
    done = status == "completed"
    return {
        "id": body.get("response_id", "resp_1"),
        "object": "response",
        "created_at": 1,
        "model": body.get("model", "stub"),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": response_items(answer, done=True) if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if done else None,
    }


def response_items(answer: Reply, *, done: bool) -> list[Json]:
    """The items of the answer, whole or as they begin."""
    status = "completed" if done else "in_progress"
    if answer.calls:
        return [
            {
                "type": "function_call",
                "id": f"fc_{call.call_id}",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments if done else "",
                "status": status,
            }
            for call in answer.calls
        ]
    content = [text_part(answer.text)] if done else []
    return [{"type": "message", "id": "msg_1", "role": "assistant", "status": status, "content": content}]


def text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response_events(body: Json) -> Iterator[str]:
    answer, _ = response_reply(body)
    numbers = iter(range(1000))

    def event(kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": next(numbers), **fields}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

    yield event("response.created", response=response(body, "in_progress"))
    begun, whole = response_items(answer, done=False), response_items(answer, done=True)
    for index, item in enumerate(begun):
        yield event("response.output_item.added", output_index=index, item=item)
        if answer.calls:
            call, place = answer.calls[index], {"item_id": item["id"], "output_index": index}
            for piece in call.pieces:
                yield event("response.function_call_arguments.delta", **place, delta=piece)
            done = {"name": call.name, "arguments": call.arguments}
            yield event("response.function_call_arguments.done", **place, **done)
        else:
            place = {"item_id": item["id"], "output_index": index, "content_index": 0}
            yield event("response.content_part.added", **place, part=text_part(""))
            for piece in answer.pieces:
                yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
            yield event("response.output_text.done", **place, text=answer.text, logprobs=[])
            yield event("response.content_part.done", **place, part=text_part(answer.text))
        yield event("response.output_item.done", output_index=index, item=whole[index])
    yield event("response.completed", response=response(body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8089)
    stub = ModelStub(parser.parse_args().port)
    print(f"export OPENAI_BASE_URL={stub.url} OPENAI_API_KEY=none", flush=True)
    stub.serve_forever()


if __name__ == "__main__":
    main()
