"""The official OpenAI client for the project's models, with the platform's token and the current call's header.

An extra: `cupola-agent[client]`.
"""

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from cupola_agent.call import current_call

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from cupola_agent.platform.tokens import TokenSource


@cache
def client() -> "AsyncOpenAI":
    """The client of this process, one for all, so that connections stay open.

    With `FOUNDRY_PROJECT_ENDPOINT` it calls the project's models; each request carries the call id of the handler
    that makes it (contract section 3.3). Without, it is what `OPENAI_BASE_URL` and `OPENAI_API_KEY` say. Raises
    ModuleNotFoundError without the extra, ValueError where the environment names no models or names them without TLS.
    """
    return make_client(os.environ)


def make_client(variables: Mapping[str, str]) -> "AsyncOpenAI":
    """A client of its own, for these variables; like `client`."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the client needs: pip install 'cupola-agent[client]'", name="openai") from error
    endpoint = variables.get("FOUNDRY_PROJECT_ENDPOINT", "").rstrip("/")
    if endpoint:
        tokens = _tokens(endpoint, variables)

        async def look_at_status(response: Any) -> None:
            if response.status_code == 401:
                tokens.refuse(response.request.headers["authorization"].removeprefix("Bearer "))

        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [_add_call_id], "response": [look_at_status]})
        return openai.AsyncOpenAI(base_url=f"{endpoint}/openai/v1", api_key=tokens.token, http_client=http)
    if not variables.get("OPENAI_API_KEY"):
        raise ValueError("no models: set FOUNDRY_PROJECT_ENDPOINT, or OPENAI_API_KEY and perhaps OPENAI_BASE_URL")
    return openai.AsyncOpenAI(base_url=variables.get("OPENAI_BASE_URL") or None, api_key=variables["OPENAI_API_KEY"])


def _tokens(endpoint: str, variables: Mapping[str, str]) -> "TokenSource":
    from cupola_agent.platform.client import HttpClient, Origin
    from cupola_agent.platform.tokens import find_source

    if not Origin.of(endpoint).confidential:
        raise ValueError("FOUNDRY_PROJECT_ENDPOINT must be https: a token is never sent in the clear")
    return find_source(variables, HttpClient())


async def _add_call_id(request: Any) -> None:
    call_id = current_call().call_id
    if call_id:
        request.headers["x-agent-foundry-call-id"] = call_id
