#!/usr/bin/env python3
"""A model that needs no model: an OpenAI-compatible server whose answers follow from the question alone.

`POST …/responses` and `POST …/chat/completions`, streamed or whole. A message that begins with the name of an offered
tool calls it with the rest of the message as its first argument; after a tool's output the answer repeats it; to
"instructions" the answer is the system's text, to "first" the first message of the user, else what the user said.
Tokens are words.
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
    tool_output: str | None = None
    calls: int = 0
    words: int = 0

    def add(self, role: str, text: str) -> None:
        self.words += len(text.split())
        if role in ("system", "developer"):
            self.system = f"{self.system}\n{text}".strip()
        elif role == "user":
            self.users.append(text)
            self.tool_output = None
        elif role == "tool":
            self.tool_output = text


@dataclass(frozen=True)
class Reply:
    """A text, or else a call of `tool`."""

    text: str = ""
    tool: str = ""
    arguments: str = ""
    call_id: str = ""

    @property
    def pieces(self) -> list[str]:
        """The text word by word, or the arguments in two pieces."""
        if self.tool:
            return [self.arguments[:5], self.arguments[5:]]
        words = self.text.split(" ")
        return [words[0], *(f" {word}" for word in words[1:])]


def reply(prompt: Prompt, tools: list[Json]) -> Reply:
    question = prompt.users[-1] if prompt.users else ""
    if prompt.tool_output is not None:
        return Reply(f"The tool says: {prompt.tool_output}")
    for tool in tools:
        if tool.get("name") and question.startswith(tool["name"]):
            properties = (tool.get("parameters") or {}).get("properties") or {}
            argument = question[len(tool["name"]) :].strip()
            arguments = dict.fromkeys(list(properties)[:1], argument)
            return Reply(tool=tool["name"], arguments=json.dumps(arguments), call_id=f"call_{prompt.calls + 1}")
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
        if self.path.endswith("/chat/completions"):
            self._answer(body, completion_events(body) if body.get("stream") else completion(body))
        elif self.path.endswith("/responses"):
            self._answer(body, response_events(body) if body.get("stream") else response(body))
        else:
            self.send_error(404)

    def _answer(self, body: Json, answer: Json | Iterator[str]) -> None:
        if isinstance(answer, dict):
            self._send("application/json", json.dumps(answer).encode())
        else:
            self._send("text/event-stream", "".join(answer).encode())

    def _send(self, media_type: str, data: bytes) -> None:
        self.send_response(200)
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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


# Chat completions.


def completion_reply(body: Json) -> tuple[Reply, Json]:
    prompt = Prompt()
    for message in body["messages"]:
        prompt.add(message["role"], text_of(message.get("content")))
        prompt.calls += len(message.get("tool_calls") or ())
    answer = reply(prompt, [tool["function"] for tool in body.get("tools") or () if tool.get("function")])
    used = len(answer.pieces)
    usage = {"prompt_tokens": prompt.words, "completion_tokens": used, "total_tokens": prompt.words + used}
    return answer, usage


def completion(body: Json) -> Json:
    answer, usage = completion_reply(body)
    message: Json = {"role": "assistant", "content": answer.text or None}
    if answer.tool:
        function = {"name": answer.tool, "arguments": answer.arguments}
        message["tool_calls"] = [{"id": answer.call_id, "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if answer.tool else "stop"}
    return {**completion_head(body, "chat.completion"), "choices": [choice], "usage": usage}


def completion_events(body: Json) -> Iterator[str]:
    answer, usage = completion_reply(body)
    head = completion_head(body, "chat.completion.chunk")

    def chunk(delta: Json, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield chunk({"role": "assistant", "content": None if answer.tool else ""})
    if answer.tool:
        function = {"name": answer.tool, "arguments": ""}
        yield chunk({"tool_calls": [{"index": 0, "id": answer.call_id, "type": "function", "function": function}]})
    for piece in answer.pieces:
        call = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        yield chunk(call if answer.tool else {"content": piece})
    yield chunk({}, "tool_calls" if answer.tool else "stop")
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
        if item.get("type") == "function_call_output":
            prompt.add("tool", text_of(item["output"]))
        elif "role" in item:
            prompt.add(item["role"], text_of(item.get("content")))
        prompt.calls += item.get("type") == "function_call"
    answer = reply(prompt, [tool for tool in body.get("tools") or () if tool.get("type") == "function"])
    used = len(answer.pieces)
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
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body.get("model", "stub"),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": [response_item(answer, done=True)] if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage if done else None,
    }


def response_item(answer: Reply, *, done: bool) -> Json:
    status = "completed" if done else "in_progress"
    if answer.tool:
        arguments = answer.arguments if done else ""
        call = {"type": "function_call", "id": "fc_1", "call_id": answer.call_id, "name": answer.tool}
        return {**call, "arguments": arguments, "status": status}
    content = [text_part(answer.text)] if done else []
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response_events(body: Json) -> Iterator[str]:
    answer, _ = response_reply(body)
    numbers = iter(range(1000))

    def event(kind: str, **fields: Any) -> str:
        data = {"type": kind, "sequence_number": next(numbers), **fields}
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n"

    yield event("response.created", response=response(body, "in_progress"))
    yield event("response.output_item.added", output_index=0, item=response_item(answer, done=False))
    if answer.tool:
        place = {"item_id": "fc_1", "output_index": 0}
        for piece in answer.pieces:
            yield event("response.function_call_arguments.delta", **place, delta=piece)
        done = {"name": answer.tool, "arguments": answer.arguments}
        yield event("response.function_call_arguments.done", **place, **done)
    else:
        place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        yield event("response.content_part.added", **place, part=text_part(""))
        for piece in answer.pieces:
            yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
        yield event("response.output_text.done", **place, text=answer.text, logprobs=[])
        yield event("response.content_part.done", **place, part=text_part(answer.text))
    yield event("response.output_item.done", output_index=0, item=response_item(answer, done=True))
    yield event("response.completed", response=response(body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8089)
    stub = ModelStub(parser.parse_args().port)
    print(f"export OPENAI_BASE_URL={stub.url} OPENAI_API_KEY=none", flush=True)
    stub.serve_forever()


if __name__ == "__main__":
    main()
