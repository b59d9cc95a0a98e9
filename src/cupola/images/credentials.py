"""How a registry lets us in: the logins `docker login` has stored, and the token its challenge asks for.

Distribution project, "Token Authentication Specification" and "Token OAuth2".
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import msgspec

from cupola.images.failures import pull_failed
from cupola.images.reference import DOCKER_HUB

_PARAMETER = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,"]+))', re.ASCII)
_MAX_TOKEN_ANSWER_BYTES = 1024**2


@dataclass(frozen=True)
class Login:
    """What `docker login` has stored for one registry."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    identitytoken: str = ""


class _DockerConfig(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry] = {}


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


def stored_login(registry: str, path: Path) -> Login | None:
    """The login for `registry` in the Docker client configuration at `path`, if there is one.

    Raises CupolaError `ImagePullBackOff` when the file cannot be read.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_DockerConfig)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise pull_failed(f"The registry logins in {path} cannot be read. Repair or remove the file.") from error
    for key, entry in config.auths.items():
        if _registry_of(key) == registry and (entry.auth or entry.identitytoken):
            return _login(entry, path)
    return None


def _registry_of(key: str) -> str:
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0].lower()
    return DOCKER_HUB if host in ("index.docker.io", "registry-1.docker.io") else host


def _login(entry: _Entry, path: Path) -> Login:
    try:
        username, _, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise pull_failed(f"A registry login in {path} is damaged. Run `docker login` again.") from error
    return Login(username, password.rstrip("\0"), entry.identitytoken)


async def authorization(
    client: httpx2.AsyncClient,
    challenge: str,
    registry: str,
    repository: str,
    login: Login | None,
    *,
    secure: bool,
) -> str | None:
    """The Authorization header that answers a `WWW-Authenticate` header, or None when there is no answer to
    give.

    `secure` says that the registry itself is spoken to over HTTPS: then no login is ever sent without it.
    Raises CupolaError `ImagePullBackOff` and httpx2.HTTPError.
    """
    scheme, _, rest = challenge.partition(" ")
    if scheme.lower() == "basic":
        return login.basic if login else None
    parameters = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
    realm = parameters.get("realm", "")
    if scheme.lower() != "bearer" or not realm.startswith(("https://", "http://")):
        return None
    if login and secure and not realm.startswith("https://"):
        raise pull_failed(f"The registry {registry} wants its login sent without encryption; it was not sent.")
    wanted = {"scope": parameters.get("scope") or f"repository:{repository}:pull"}
    if "service" in parameters:
        wanted["service"] = parameters["service"]
    if login and login.identity_token:
        form = {
            **wanted,
            "grant_type": "refresh_token",
            "client_id": "cupola",
            "refresh_token": login.identity_token,
        }
        request = client.build_request("POST", realm, data=form)
    else:
        headers = {"Authorization": login.basic} if login else {}
        request = client.build_request("GET", realm, params=wanted, headers=headers)
    return await _bearer(client, request, registry)


async def _bearer(client: httpx2.AsyncClient, request: httpx2.Request, registry: str) -> str | None:
    answer = await client.send(request, stream=True)
    try:
        if answer.status_code in (400, 401, 403):
            return None
        body = b""
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > _MAX_TOKEN_ANSWER_BYTES:
                break
    finally:
        await answer.aclose()
    try:
        tokens = msgspec.json.decode(body, type=_TokenAnswer)
    except (msgspec.MsgspecError, ValueError) as error:
        raise pull_failed(
            f"The registry {registry} gave no access token (HTTP {answer.status_code} from its token"
            " service). Try again later."
        ) from error
    token = tokens.access_token or tokens.token
    return f"Bearer {token}" if token else None
