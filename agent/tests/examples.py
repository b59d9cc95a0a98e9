"""Runs the Python of a page of documentation."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from cupola_agent import Agent
from cupola_agent.testing import TestClient

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str) -> list[tuple[int, str]]:
    """Each block of Python on the page, and the line it begins at."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


async def run(page: str, line: int, source: str) -> dict[str, Any]:
    """Runs one block, which may await; gives its names."""
    code = compile("\n" * (line - 1) + source, ROOT / page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "example"}
    result = eval(code, names)  # noqa: S307
    if inspect.isawaitable(result):
        await result
    return names


async def asked(agent: Agent, text: str = "hello") -> dict[str, Any]:
    """The agent's response."""
    async with TestClient(agent) as client:
        answer = await client.post("/responses", json={"input": text, "store": False})
        assert answer.status == 200, answer.text
        response: dict[str, Any] = answer.json()
        return response
