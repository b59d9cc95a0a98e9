"""An app on uvicorn alone that answers with a response object and streams as large as ours.

    python -m benchmarks.protocol_agents.bare

It parses the request and makes the answer anew each time, and does nothing else: it stores nothing and checks nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from benchmarks.protocol_agents.work import words

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

AGENT = {"type": "agent_reference", "name": "server-default-agent"}
JSON = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    if scope["path"] == "/readiness":
        await answer(send, {"status": "healthy"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    request = json.loads(body)
    if request.get("stream"):
        await stream(send, request)
        return
    said = "".join([word async for word in words(request["input"])])
    await answer(send, response(request, f"caresp_{secrets.token_hex(25)}", "completed", said))


async def answer(send: Send, content: Message) -> None:
    body = json.dumps(content).encode()
    headers = [*JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Send, request: Message) -> None:
    identifier, item = f"caresp_{secrets.token_hex(25)}", f"msg_{secrets.token_hex(25)}"
    said = ""
    sequence_number = 0

    async def tell(kind: str, **fields: object) -> None:
        nonlocal sequence_number
        data = json.dumps({"type": kind, **fields, "sequence_number": sequence_number})
        sequence_number += 1
        await send(
            {"type": "http.response.body", "body": f"event: {kind}\ndata: {data}\n\n".encode(), "more_body": True}
        )

    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    await tell("response.created", response=response(request, identifier, "in_progress", ""))
    async for word in words(request["input"]):
        said += word
        await tell("response.output_text.delta", item_id=item, output_index=0, content_index=0, delta=word, logprobs=[])
    await tell("response.completed", response=response(request, identifier, "completed", said))
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def response(request: Message, identifier: str, status: str, said: str) -> Message:
    """A response object with every field that a client reads."""
    now = int(time.time())
    part = {"type": "output_text", "text": said, "annotations": [], "logprobs": []}
    message = {
        "response_id": identifier, "agent_reference": AGENT, "id": f"msg_{secrets.token_hex(25)}", "type": "message",
        "role": "assistant", "status": status, "content": [part],
    }  # fmt: skip
    return {
        "id": identifier, "object": "response", "created_at": now, "completed_at": now, "status": status, "error": None,
        "incomplete_details": None, "instructions": None, "max_output_tokens": None, "max_tool_calls": None,
        "metadata": {}, "model": request["model"], "parallel_tool_calls": False, "previous_response_id": None,
        "prompt": None, "reasoning": None, "safety_identifier": None, "service_tier": "default", "temperature": 1.0,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0,
        "truncation": "disabled", "user": None, "background": False, "conversation": None,
        "store": request.get("store", True), "presence_penalty": 0.0, "frequency_penalty": 0.0, "output": [message],
        "usage": None, "response_id": identifier, "agent_reference": AGENT, "agent_session_id": secrets.token_hex(32),
    }  # fmt: skip


if __name__ == "__main__":
    port = int(os.environ["PORT"])
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning"
    )
