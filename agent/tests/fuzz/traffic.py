"""Requests made from the OpenAPI document of the routes: such as it allows, and such as it does not."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core import NotSet
from schemathesis.core.result import Ok

from agent.tests.fuzz.target import Broken, Sent, Target

DOCUMENT = Path(__file__).parent / "openapi.json"
_RESPONSE_ID = re.compile("caresp_[0-9a-f]{16}00[A-Za-z0-9]{32}")
_SHARE = 0.4
"""Of all requests, those that go to POST /responses; the others share the rest."""


def run(target: Target, requests: int, number: int) -> dict[int, int]:
    """Sends about that many requests, made from seed `number`; gives how many answers had which status.

    Raises Broken at the first that the agent did not stand.
    """
    counts: dict[int, int] = {}
    choose = random.Random(number)  # noqa: S311
    known: list[str] = []
    broken: list[Broken] = []

    def send(case: Any) -> None:
        if broken:
            return
        try:
            status = target.send(sent(case, choose, known))
        except Broken as error:
            # Hypothesis would send it again, and be puzzled when it goes well then; the first time is what counts.
            broken.append(error)
            return
        counts[status] = counts.get(status, 0) + 1
        if found := _RESPONSE_ID.search(target.last_body.decode(errors="replace")):
            known[:] = [*known[-50:], found[0]]

    for examples, strategy in _strategies(requests):
        _send_all(strategy, examples, number, send)
        if broken:
            raise broken[0]
    return counts


def _strategies(requests: int) -> Iterator[tuple[int, Any]]:
    found = schemathesis.openapi.from_path(str(DOCUMENT)).get_all_operations()
    operations = [result.ok() for result in found if isinstance(result, Ok)]
    for operation in operations:
        main = operation.method == "post" and operation.path == "/responses"
        share = _SHARE if main else (1 - _SHARE) / (len(operations) - 1)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            yield max(int(requests * share / 2), 1), operation.as_strategy(generation_mode=mode)


def _send_all(strategy: Any, examples: int, number: int, send: Callable[[Any], None]) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(case: Any) -> None:
        send(case)

    try:
        one()
    except Unsatisfiable:
        # The document leaves nothing about this operation that could be said wrong.
        return


def sent(case: Any, choose: random.Random, known: list[str]) -> Sent:
    """A generated case as a request. Half of the well-formed ids become those of responses that exist."""
    parameters = {**(case.path_parameters or {})}
    if known and choose.random() < 0.5 and _RESPONSE_ID.fullmatch(str(parameters.get("id", ""))):
        parameters["id"] = choose.choice(known)
    path = case.operation.path
    for name, value in parameters.items():
        path = path.replace(f"{{{name}}}", quote(str(value), safe="", errors="replace") or "-")
    query = urlencode({name: _text(value) for name, value in (case.query or {}).items()}, errors="replace")
    headers = {
        str(name): re.sub(r"[\r\n\0]", " ", _text(value)).strip()
        for name, value in (case.headers or {}).items()
        if re.fullmatch(r"[A-Za-z0-9-]+", str(name)) and str(name).lower() not in ("content-length", "host")
    }
    if case.media_type:
        headers["content-type"] = case.media_type
    return Sent(case.method, f"{path}?{query}" if query else path, headers, _body(case.body, choose, known))


def _body(body: Any, choose: random.Random, known: list[str]) -> bytes | None:
    if isinstance(body, NotSet):
        return None
    if isinstance(body, bytes):
        return body
    if isinstance(body, dict) and known and choose.random() < 0.2:
        body = {**body, "previous_response_id": choose.choice(known)}
    # Either form of a character that is not ASCII, lone surrogates among them, may come in.
    return json.dumps(body, ensure_ascii=choose.random() < 0.5, default=str).encode(errors="surrogatepass")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
