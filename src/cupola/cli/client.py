"""How commands reach the server: by HTTP, as any client does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from cupola.cli.server import environment, running_server
from cupola.domain.errors import CupolaError
from cupola.installation import DataFolder
from cupola.settings import load

TIMEOUT = 30.0


class Client:
    """The API of one project, authorised as the administrator of the installation."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def get(self, path: str) -> Any:
        """The JSON body of a GET. Raises CupolaError with the server's message."""
        response = self._http.get(path)
        _raise_for_error(response)
        return response.json()

    def put(self, path: str, body: object) -> Any:
        """The JSON body of the answer to a PUT of JSON. Raises CupolaError with the server's message."""
        response = self._http.put(path, json=body)
        _raise_for_error(response)
        return response.json()

    @contextmanager
    def stream_lines(self, path: str, query: dict[str, str]) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer, for as long as the server sends them."""
        with self._http.stream("GET", path, params=query, timeout=httpx2.Timeout(TIMEOUT, read=None)) as response:
            if response.status_code != 200:
                response.read()
            _raise_for_error(response)
            yield response.iter_lines()


@contextmanager
def connect(data: Path | None = None, project: str = "default") -> Iterator[Client]:
    """A client of the server of a data folder. Raises CupolaError when none is ready."""
    settings, _ = load({"data": data})
    folder = DataFolder(Path(settings.data))
    variables = environment(folder, project)
    base = f"{running_server(folder).http_url}/api/projects/{project}"
    with httpx2.Client(timeout=TIMEOUT, trust_env=False) as http:
        answer = http.get(
            variables["IDENTITY_ENDPOINT"],
            params={"resource": "https://ai.azure.com"},
            headers={"x-identity-header": variables["IDENTITY_HEADER"]},
        )
        if answer.status_code != 200:
            raise CupolaError("unauthorized", f"The server refused the administrator's secret: {answer.text[:500]}")
        http.headers["authorization"] = f"Bearer {answer.json()['access_token']}"
        http.base_url = httpx2.URL(base)
        yield Client(http)


def _raise_for_error(response: httpx2.Response) -> None:
    if response.status_code < 400:
        return
    try:
        error = response.json()["error"]
        message = str(error["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The server answered with status {response.status_code}."
    raise CupolaError("server", message)
