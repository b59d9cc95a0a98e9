from __future__ import annotations

import base64
import hashlib
import hmac
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal, SandboxPrincipal
from cupola.identity import tokens as module
from cupola.identity.tokens import AUDIENCE, CLOCK_LEEWAY, LIFETIME, TOKEN_LIMIT, Tokens, load_or_create_key

TENANT = "5a0e3a52-0000-4000-8000-000000000000"
ADA = Principal("5f0e", "ada", administrator=False)
ROOT = Principal("5f0f", "root", administrator=True)
KEY = ECKey.generate_key("P-256", private=True, auto_kid=True)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(KEY, TENANT, clock)


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    read: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return read


def sign(claims: dict[str, Any], key: ECKey = KEY) -> str:
    return jwt.encode({"alg": "ES256", "kid": key.kid}, claims, key, algorithms=["ES256"])


def refusal(tokens: Tokens, token: str) -> str:
    with pytest.raises(CupolaError) as caught:
        tokens.verify(token)
    assert (caught.value.code, caught.value.status) == ("Unauthorized", 401)
    return caught.value.message


@pytest.mark.parametrize("principal", [ADA, ROOT])
def test_a_token_says_who_it_was_issued_to(tokens: Tokens, principal: Principal) -> None:
    issued = tokens.issue(principal, AUDIENCE)
    assert tokens.verify(issued.text) == principal
    assert tokens.verify(issued.text) == principal


def test_a_token_holds_the_claims_that_clients_look_for(tokens: Tokens, clock: Clock) -> None:
    issued = tokens.issue(ADA, AUDIENCE)
    assert issued.expires_on == clock.now + LIFETIME
    assert claims_of(issued.text) == {
        "iss": f"https://cupola.invalid/{TENANT}",
        "aud": AUDIENCE,
        "sub": ADA.id,
        "oid": ADA.id,
        "appid": ADA.id,
        "tid": TENANT,
        "name": "ada",
        "admin": False,
        "iat": clock.now,
        "nbf": clock.now,
        "exp": clock.now + LIFETIME,
    }


def test_a_token_ends(tokens: Tokens, clock: Clock) -> None:
    token = tokens.issue(ADA, AUDIENCE, lifetime=100).text
    clock.now += 100 + CLOCK_LEEWAY - 1
    assert tokens.verify(token) == ADA
    clock.now += 1
    assert "has expired; ask the token endpoint" in refusal(tokens, token)


def test_a_token_that_was_never_looked_at_ends_as_well(tokens: Tokens, clock: Clock) -> None:
    token = tokens.issue(ADA, AUDIENCE, lifetime=100).text
    clock.now += 100 + CLOCK_LEEWAY
    assert "has expired" in refusal(tokens, token)


def test_a_token_is_not_valid_before_its_time(tokens: Tokens, clock: Clock) -> None:
    token = tokens.issue(ADA, AUDIENCE).text
    clock.now -= CLOCK_LEEWAY
    assert tokens.verify(token) == ADA
    early = Tokens(KEY, TENANT, clock)
    clock.now -= 1
    assert "not valid yet" in refusal(early, token)


@pytest.mark.parametrize(
    "audience", ["https://management.azure.com", "", "https://ai.azure.com/", "https://ai.azure.com.evil"]
)
def test_a_token_for_another_audience_is_refused(tokens: Tokens, audience: str) -> None:
    assert f"ask for the scope {AUDIENCE}/.default" in refusal(tokens, tokens.issue(ADA, audience).text)


def test_a_token_of_another_installation_is_refused(tokens: Tokens, clock: Clock) -> None:
    other = Tokens(KEY, "another", clock)
    assert "another installation" in refusal(tokens, other.issue(ROOT, AUDIENCE).text)


def test_a_token_of_another_key_is_refused(tokens: Tokens, clock: Clock) -> None:
    other = Tokens(ECKey.generate_key("P-256", private=True, auto_kid=True), TENANT, clock)
    assert "was not issued by this server" in refusal(tokens, other.issue(ROOT, AUDIENCE).text)


@pytest.mark.parametrize("missing", ["exp", "nbf"])
@pytest.mark.parametrize("instead", [None, "tomorrow"])
def test_a_token_without_time_limits_is_refused(tokens: Tokens, missing: str, instead: str | None) -> None:
    claims = claims_of(tokens.issue(ADA, AUDIENCE).text) | {missing: instead}
    assert refusal(tokens, sign(claims))


def test_rights_come_from_a_true_claim_only(tokens: Tokens) -> None:
    claims = claims_of(tokens.issue(ADA, AUDIENCE).text)
    for said, administrator in (("true", False), (1, False), (True, True)):
        assert tokens.verify(sign(claims | {"admin": said})) == replace(ADA, administrator=administrator)


def test_a_token_says_which_sandbox_it_was_issued_to(tokens: Tokens) -> None:
    sandbox = SandboxPrincipal("default", 7, "0" * 32)
    assert tokens.verify(tokens.issue(sandbox, AUDIENCE).text) == sandbox


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
def test_a_token_without_a_signature_is_refused(tokens: Tokens, algorithm: str) -> None:
    _, payload, signature = tokens.issue(ROOT, AUDIENCE).text.split(".")
    header = encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode())
    for end in ("", signature):
        assert "was not issued by this server" in refusal(tokens, f"{header}.{payload}.{end}")


@pytest.mark.parametrize("secret", ["pem", "der", "jwk"])
def test_the_public_key_is_no_secret_to_sign_with(tokens: Tokens, secret: str) -> None:
    material = {
        "pem": KEY.as_pem(private=False),
        "der": KEY.as_der(private=False),
        "jwk": json.dumps(KEY.as_dict(private=False)).encode(),
    }[secret]
    payload = tokens.issue(ROOT, AUDIENCE).text.split(".")[1]
    for algorithm, digest in (("HS256", hashlib.sha256), ("HS512", hashlib.sha512)):
        signed = f"{encode(json.dumps({'alg': algorithm, 'typ': 'JWT', 'kid': KEY.kid}).encode())}.{payload}"
        signature = hmac.new(material, signed.encode(), digest).digest()
        assert "was not issued by this server" in refusal(tokens, f"{signed}.{encode(signature)}")


def test_a_key_that_a_token_brings_along_is_not_used(tokens: Tokens) -> None:
    attacker = ECKey.generate_key("P-256", private=True, auto_kid=True)
    claims = claims_of(tokens.issue(ROOT, AUDIENCE).text)
    header = {"alg": "ES256", "jwk": attacker.as_dict(private=False), "kid": KEY.kid}
    assert refusal(tokens, jwt.encode(header, claims, attacker, algorithms=["ES256"]))


def test_a_changed_payload_is_refused(tokens: Tokens) -> None:
    token = tokens.issue(ADA, AUDIENCE).text
    tokens.verify(token)
    header, _, signature = token.split(".")
    forged = encode(json.dumps(claims_of(token) | {"admin": True}).encode())
    assert "it was changed" in refusal(tokens, f"{header}.{forged}.{signature}")


def test_a_token_that_was_cut_is_refused(tokens: Tokens) -> None:
    token = tokens.issue(ADA, AUDIENCE).text
    tokens.verify(token)
    for length in range(0, len(token), 7):
        assert refusal(tokens, token[:length])


def test_a_token_that_is_too_long_is_not_looked_at(tokens: Tokens) -> None:
    assert "too long" in refusal(tokens, "a" * (TOKEN_LIMIT + 1))
    assert "too long" not in refusal(tokens, "a" * TOKEN_LIMIT)


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["ES256", "none", "alg", "kid", "crit", "b64"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["alg", "kid", "crit", "typ", "b64", "zip", "enc", "jwk", "x5c"]), inner)
    ),
    max_leaves=6,
)


@given(header=HEADERS, parts=st.sampled_from([2, 3, 5]))
@example(header="alg", parts=3)
@example(header={"alg": "ES256", "crit": 1}, parts=3)
@example(header=[], parts=3)
def test_no_header_makes_a_token_do_anything_but_fail(header: object, parts: int) -> None:
    tokens = Tokens(KEY, TENANT)
    _, payload, signature = tokens.issue(ROOT, AUDIENCE).text.split(".")
    rest = {2: [payload], 3: [payload, signature], 5: [payload, signature, payload, signature]}[parts]
    assert refusal(tokens, ".".join([encode(json.dumps(header).encode()), *rest]))


@given(st.text(st.characters(codec="ascii"), max_size=40))
@example("..")
@example("e30.e30.e30")
def test_no_text_is_taken_for_a_token(text: str) -> None:
    assert refusal(Tokens(KEY, TENANT), text)


def test_what_was_verified_is_remembered_for_a_bounded_number_of_tokens(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHE_SIZE", 2)
    tokens = Tokens(KEY, TENANT, clock)
    made = [tokens.issue(Principal(str(number), "", administrator=False), AUDIENCE).text for number in range(3)]
    for token in (made[0], made[1], made[0], made[2]):
        tokens.verify(token)
    assert len(tokens._verified) == 2
    assert {principal.id for principal, _ in tokens._verified.values()} == {"0", "2"}
    assert tokens.verify(made[1]).id == "1"


def test_what_is_refused_is_not_remembered(tokens: Tokens) -> None:
    for number in range(10):
        refusal(tokens, f"{number}.{number}.{number}")
    assert not tokens._verified


def test_the_key_is_made_once_and_private(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "signing.key"
    first = load_or_create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = load_or_create_key(path)
    assert first.kid == second.kid
    token = Tokens(first, TENANT, clock).issue(ADA, AUDIENCE).text
    assert Tokens(second, TENANT, clock).verify(token) == ADA
    assert [entry.name for entry in tmp_path.iterdir()] == ["signing.key"]
