"""Asks the soak agent and holds each answer against the question: an answer of another session is the worst of all defects."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from scripts.build_sample import build
from tests.system.platform import Platform

AGENT = "soak"
REQUEST_TIMEOUT = 60.0
SESSIONS = f"/agents/{AGENT}/endpoint/sessions"


class SoakFailed(Exception):
    """What must not happen has happened."""


class NoAnswer(Exception):
    """The question was refused or its answer broke off; the message is the kind of failure."""


class WrongAnswer(Exception):
    """An answer that is not the one to the question."""


@dataclass(frozen=True)
class Answer:
    """`result` is what the agent gave, `tier` how the request found its sandbox, `seconds` until the answer began."""

    session: str
    result: Any
    tier: str
    seconds: float


def build_agent(folder: Path) -> str:
    """Make the soak agent's image; returns the image string."""
    build(Path(__file__).parent / "agent", folder / "soak-image", "1")
    return f"oci:{folder / 'soak-image'}:1"


def connect(platform: Platform) -> httpx2.AsyncClient:
    """An authorised client of the project."""
    host, token = platform.token("https://ai.azure.com")
    return httpx2.AsyncClient(
        base_url=f"{host}/api/projects/default",
        headers={"authorization": f"Bearer {token}"},
        timeout=REQUEST_TIMEOUT,
        limits=httpx2.Limits(max_connections=None),
        trust_env=False,
    )


async def ask(http: httpx2.AsyncClient, session: str | None, order: Mapping[str, Any], agent: str = AGENT) -> Answer:
    """Ask one question; without a session a new one answers. `pieces` of an order are streamed before the result.

    Raises NoAnswer when there was none, WrongAnswer when it belongs to another question or session.
    """
    nonce = uuid.uuid4().hex
    body: dict[str, Any] = {"input": json.dumps({**order, "nonce": nonce}), "stream": bool(order.get("pieces"))}
    if session is not None:
        body["agent_session_id"] = session
    lines: list[str] = []
    began = time.perf_counter()
    try:
        async with http.stream("POST", f"/agents/{agent}/endpoint/protocols/openai/responses", json=body) as answer:
            seconds = time.perf_counter() - began
            if answer.status_code != 200:
                raise NoAnswer(_refusal(answer.status_code, await answer.aread()))
            named = answer.headers["x-agent-session-id"]
            tier = re.findall(r'tier;desc="(\w+)"', answer.headers["server-timing"])[0]
            async for text in _texts(answer):
                lines.append(text)
                _check_stamps("".join(lines).splitlines()[:-1], named, nonce)
    except (httpx2.TransportError, httpx2.StreamError) as error:
        raise NoAnswer(type(error).__name__) from error
    if session is not None and named != session:
        raise WrongAnswer(f"session {session} was asked, the answer is said to be that of {named}")
    said = "".join(lines).splitlines()
    _check_stamps(said, named, nonce)
    if len(said) != order.get("pieces", 0) + 1:
        raise WrongAnswer(f"{len(said) - 1} pieces came, {order.get('pieces', 0)} were asked for")
    return Answer(named, json.loads(said[-1])["result"], tier, seconds)


async def _texts(answer: httpx2.Response) -> AsyncIterator[str]:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        await answer.aread()
        body = answer.json()
        if body["status"] != "completed":
            raise NoAnswer(f"response {body['status']}")
        yield body["output"][0]["content"][0]["text"]
        return
    kind = ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data" and kind == "response.output_text.delta":
            yield json.loads(value)["delta"]
        elif name == "data" and kind in ("error", "response.failed"):
            raise NoAnswer(f"stream {json.loads(value).get('code', kind)}")
    if kind != "response.completed":
        raise NoAnswer(f"stream ended after {kind or 'nothing'}")


def _check_stamps(lines: list[str], session: str, nonce: str) -> None:
    for number, line in enumerate(lines):
        stamp = json.loads(line)
        if (stamp["session"], stamp["nonce"]) != (session, nonce) or stamp.get("number", number) != number:
            raise WrongAnswer(f"session {session} was asked with nonce {nonce}, piece {number} is {line}")


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status} {json.loads(body)['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return f"{status} {body[:100]!r}"
