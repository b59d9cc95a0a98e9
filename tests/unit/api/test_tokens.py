from __future__ import annotations

import time

import pytest

from cupola.domain.principal import Principal
from cupola.identity.secret import hash_secret
from cupola.identity.tokens import LIFETIME
from tests.unit.api.application import Answer, Application, Caller

SECRET = "the-secret-of-ada"
QUERY = "api-version=2019-08-01&resource=https://ai.azure.com"


async def ask(application: Application, query: str = QUERY, secret: bytes | None = SECRET.encode()) -> Answer:
    await application.add_principal("ada", hash_secret(SECRET))
    headers = [] if secret is None else [(b"x-identity-header", secret), (b"metadata", b"true")]
    return await application.caller(None).call("GET", f"/msi/token?{query}", headers=headers)


async def test_the_holder_of_a_secret_gets_a_token_that_works(application: Application) -> None:
    before = int(time.time())
    found = await ask(application)
    assert (found.status, found.headers["content-type"]) == (200, "application/json")
    assert found.headers["cache-control"] == "no-store"
    shown = found.json
    assert set(shown) == {"access_token", "expires_on", "resource", "token_type", "client_id"}
    assert (shown["resource"], shown["token_type"]) == ("https://ai.azure.com", "Bearer")
    assert isinstance(shown["expires_on"], str)
    assert before + LIFETIME <= int(shown["expires_on"]) <= int(time.time()) + LIFETIME
    assert application.tokens.verify(shown["access_token"]) == Principal(shown["client_id"], "ada", administrator=False)
    listed = await Caller(application.asgi, shown["access_token"]).call("GET", f"{application.project}/agents")
    assert listed.status == 200


@pytest.mark.parametrize("resource", ["https://ai.azure.com/", "https://ai.azure.com/.default"])
async def test_a_scope_is_taken_for_its_audience(application: Application, resource: str) -> None:
    found = await ask(application, f"resource={resource}")
    assert found.json["resource"] == resource
    principal = application.tokens.verify(found.json["access_token"])
    assert principal == Principal(found.json["client_id"], "ada", administrator=False)


async def test_a_token_for_another_audience_is_no_use_here(application: Application) -> None:
    found = await ask(application, "resource=https://management.azure.com")
    refused = await Caller(application.asgi, found.json["access_token"]).call("GET", f"{application.project}/agents")
    assert refused.error == (401, "Unauthorized")


@pytest.mark.parametrize(
    ("query", "secret", "status", "said"),
    [
        (QUERY, None, 401, "The header X-IDENTITY-HEADER is missing"),
        (QUERY, b"", 401, "The header X-IDENTITY-HEADER is missing"),
        (QUERY, b"wrong", 401, "is unknown; run `cupola env` again"),
        (QUERY, b"\xff\xfe", 401, "is unknown"),
        ("", SECRET.encode(), 400, "The query parameter resource is missing"),
        ("resource=", SECRET.encode(), 400, "The query parameter resource is missing"),
        ("resource=a%20b", SECRET.encode(), 400, "resource"),
        ("resource=" + "x" * 257, SECRET.encode(), 400, "resource"),
    ],
)
async def test_a_refusal_has_the_shape_that_credentials_read(
    application: Application, query: str, secret: bytes | None, status: int, said: str
) -> None:
    found = await ask(application, query, secret)
    assert (found.status, found.headers["content-type"]) == (status, "application/json")
    assert set(found.json) == {"statusCode", "message"}
    assert found.json["statusCode"] == status
    assert said in found.json["message"]
