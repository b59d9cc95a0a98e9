"""The little language in which a test tells the agent under test what to do, and the gates where it waits.

The first line of the input is a script: steps separated by `;`, each a verb and its argument. Both agents understand
the same verbs, so that one table of cases runs against either. Only the standard library may be imported here.

A gate is a connection to the test: the handler that comes to `gate NAME` connects to the socket named by
`CONTROL_SOCKET` and says its name; the test, which now knows where the handler is, answers when it may go on. So no
test has to sleep, and the end of the connection tells that the handler has been left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    verb: str
    argument: str


ITEMS: Mapping[str, dict[str, Any]] = {
    "function_call_output": {"type": "function_call_output", "call_id": "call_1", "output": "42"},
    "custom_tool_call_output": {"type": "custom_tool_call_output", "call_id": "call_1", "output": "done"},
    "compaction": {"type": "compaction", "encrypted_content": "c2VjcmV0"},
    "mcp_approval_request": {
        "type": "mcp_approval_request",
        "server_label": "files",
        "name": "remove",
        "arguments": '{"path":"x"}',
    },
    "computer_call": {
        "type": "computer_call",
        "call_id": "call_1",
        "action": {"type": "screenshot"},
        "pending_safety_checks": [],
        "status": "completed",
    },
    "local_shell_call": {
        "type": "local_shell_call",
        "call_id": "call_1",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
        "status": "completed",
    },
}
"""Output items that are given whole, by type: their only events are added and done."""

CITATION: Mapping[str, Any] = {
    "type": "url_citation",
    "url": "https://example.com/a",
    "title": "A",
    "start_index": 0,
    "end_index": 1,
}


def parse(text: str) -> list[Step]:
    """The steps of a script. An empty script has none."""
    line = text.split("\n", 1)[0]
    pieces = [piece.strip() for piece in line.split(";")]
    return [Step(verb, argument) for verb, _, argument in (piece.partition(" ") for piece in pieces) if verb]


def summary(items: Iterable[Mapping[str, Any]]) -> str:
    """A history as one line: who said what, oldest first."""
    return "|".join(f"{item.get('role', item['type'])}:{_text(item.get('content'))}" for item in items)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


async def pass_gate(name: str, cancelled: asyncio.Event | None = None) -> bool:
    """Waits until the test opens the gate. False when `cancelled` was set before."""
    reader, writer = await asyncio.open_unix_connection(os.environ["CONTROL_SOCKET"])
    try:
        writer.write(f"{name}\n".encode())
        await writer.drain()
        opened = asyncio.ensure_future(reader.readline())
        stopped = asyncio.ensure_future(cancelled.wait()) if cancelled else None
        waiting = {opened, stopped} if stopped else {opened}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return opened.done() and opened.result() == b"go\n"
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
