"""Callers that are not who they say, or ask for what is not theirs."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from cupola.domain.principal import Principal
from cupola.identity.tokens import AUDIENCE, Tokens, load_or_create_key
from tests.attacks.target import AGENT, ALICE, BOB, PROJECT, SESSIONS, Target

ROOT = Principal("root", "administrator", True)


def _part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def _claims(target: Target, **changed: object) -> dict[str, object]:
    payload = target.administrator.split(".")[1]
    known = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return {name: value for name, value in {**known, **changed}.items() if value is not None}


def _signed(target: Target, **changed: object) -> str:
    key = load_or_create_key(target.key_file)
    header = {"alg": "ES256", "typ": "JWT", "kid": key.kid}
    return jwt.encode(header, _claims(target, **changed), key, algorithms=["ES256"])


def _other_key(target: Target, header: dict[str, object]) -> str:
    return jwt.encode(header, _claims(target), ECKey.generate_key("P-256"), algorithms=["ES256"])


def _public_key_as_secret(target: Target) -> str:
    key = load_or_create_key(target.key_file)
    secret = OctKey.import_key(base64.b64encode(key.as_pem(private=False)))
    return jwt.encode({"alg": "HS256"}, _claims(target), secret, algorithms=["HS256"])


def _with_own_key_in_header(target: Target) -> str:
    own = ECKey.generate_key("P-256")
    header = _part({"alg": "ES256", "typ": "JWT", "jwk": own.as_dict(private=False)})
    signature = jwt.encode({"alg": "ES256"}, _claims(target), own, algorithms=["ES256"]).rpartition(".")[2]
    return f"{header}.{_part(_claims(target))}.{signature}"


def _changed(target: Target) -> str:
    header, _, signature = target.alice.split(".")
    return f"{header}.{_part(_claims(target))}.{signature}"


FORGED: dict[str, Callable[[Target], str]] = {
    "algorithm_none": lambda target: f"{_part({'alg': 'none'})}.{_part(_claims(target))}.",
    "algorithm_none_with_signature": lambda target: (
        f"{_part({'alg': 'none'})}.{_part(_claims(target))}.{target.administrator.split('.')[2]}"
    ),
    "algorithm_in_capitals": lambda target: f"{_part({'alg': 'NONE'})}.{_part(_claims(target))}.",
    "public_key_as_secret": _public_key_as_secret,
    "another_key": lambda target: _other_key(target, {"alg": "ES256", "typ": "JWT"}),
    "another_key_by_the_same_name": lambda target: _other_key(
        target, {"alg": "ES256", "kid": load_or_create_key(target.key_file).kid}
    ),
    "own_key_in_the_header": _with_own_key_in_header,
    "changed_claims": _changed,
    "no_signature": lambda target: target.administrator.rpartition(".")[0] + ".",
    "two_parts": lambda target: target.administrator.rpartition(".")[0],
    "unknown_critical_header": lambda target: (
        f"{_part({'alg': 'ES256', 'crit': ['exp']})}.{'.'.join(target.administrator.split('.')[1:])}"
    ),
    "zero_signature": lambda target: f"{target.administrator.rpartition('.')[0]}.{'A' * 86}",
    "expired": lambda target: _signed(target, exp=int(time.time()) - 60),
    "not_valid_yet": lambda target: _signed(target, nbf=int(time.time()) + 3600),
    "no_expiry": lambda target: _signed(target, exp=None),
    "expiry_is_text": lambda target: _signed(target, exp="9999999999"),
    "another_audience": lambda target: target.token(ROOT, "https://management.azure.com"),
    "several_audiences": lambda target: _signed(target, aud=["https://management.azure.com", AUDIENCE]),
    "no_audience": lambda target: _signed(target, aud=None),
    "another_installation": lambda target: (
        Tokens(load_or_create_key(target.key_file), "elsewhere").issue(ROOT, AUDIENCE).text
    ),
    "no_subject": lambda target: _signed(target, sub=None),
    "nonsense": lambda target: "x.y.z",
    "deeply_nested": lambda target: f"{base64.urlsafe_b64encode(b'[' * 8000).decode()}.e30.AA",
    "too_long": lambda target: target.administrator + "A" * 20_000,
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_token_is_refused(target: Target, name: str) -> None:
    assert target.ask("GET", f"{PROJECT}/agents", target.administrator).status == 200
    answer = target.ask("GET", f"{PROJECT}/agents", FORGED[name](target))
    # 431 and 400 come from the HTTP parser, for what is too long for a header.
    assert answer.status in (400, 401, 431), answer.body
    assert b"hostile" not in answer.body
    assert target.is_well()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"authorization: Basic cm9vdDpyb290\r\n",
        b"authorization: Bearer\r\n",
        b"authorization: %(token)b\r\n",
        b"authorization: Bearer %(token)b\r\nauthorization: Bearer %(token)b\r\n",
        b"authorization: Bearer %(token)b, Bearer %(token)b\r\n",
        b"proxy-authorization: Bearer %(token)b\r\n",
        b"cookie: authorization=Bearer %(token)b\r\n",
        b"x-forwarded-user: administrator\r\nx-ms-client-principal-name: administrator\r\n",
        b"authorization: Bearer \xff\xfe\r\n",
    ],
    ids=["none", "basic", "empty", "no-scheme", "twice", "list", "proxy", "cookie", "forwarded", "not-ascii"],
)
def test_only_one_bearer_token_counts(target: Target, line: bytes) -> None:
    token = target.administrator.encode()
    start = f"GET {PROJECT}/agents HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".encode()
    control = target.raw(start + b"authorization: Bearer %b\r\n\r\n" % token)
    assert control.startswith(b"HTTP/1.1 200 ")
    refused = target.raw(start + line.replace(b"%(token)b", token) + b"\r\n")
    assert refused.split(b" ")[1] in (b"400", b"401")
    assert b"hostile" not in refused


def test_a_token_in_the_address_does_not_count(target: Target) -> None:
    path = f"{PROJECT}/agents?access_token={target.administrator}&authorization=Bearer%20{target.administrator}"
    assert target.ask("GET", path).status == 401


@pytest.mark.parametrize("path", ["//healthz", "/healthz/../api/projects/default/agents", "/msi/token/../../metrics",
                                  "/healthz%2f..%2fmetrics", "/HEALTHZ", "/healthz;/metrics", "/metrics?/healthz",
                                  "/metrics#/healthz", "/api/projects/default/agents/%2e%2e/agents",
                                  "http://x/healthz/../metrics"])  # fmt: skip
def test_a_public_path_opens_no_other(target: Target, path: str) -> None:
    answer = target.raw(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"400", b"401", b"404")
    assert b"cupola_" not in answer
    assert b"hostile" not in answer


SESSION_CALLS = {
    "get": ("GET", ""), "stop": ("POST", ":stop"), "list_files": ("GET", "/files"),
    "stat": ("GET", "/files/stat?path=secret"), "download": ("GET", "/files/content?path=secret"),
    "upload": ("PUT", "/files/content?path=planted"), "mkdir": ("POST", "/files/mkdir?path=planted"),
    "remove": ("DELETE", "/files?path=secret"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(target: Target) -> Target:
    assert target.ask("PUT", target.files(ALICE, "/content", "secret"), target.alice, b"mine").status == 201
    return target


@pytest.mark.parametrize("name", SESSION_CALLS)
def test_another_caller_s_session_is_not_there(shared: Target, name: str) -> None:
    method, path = SESSION_CALLS[name]
    answer = shared.ask(method, f"{SESSIONS}/{ALICE}{path}", shared.bob, b"x" if method == "PUT" else b"")
    missing = shared.ask(method, f"{SESSIONS}/no-such-session{path}", shared.bob, b"x" if method == "PUT" else b"")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "session_not_found")  # type: ignore[index]
    # Nor does the answer tell that there is one.
    assert answer.body.replace(ALICE.encode(), b"no-such-session")[:60] == missing.body[:60]
    assert shared.ask("GET", shared.files(ALICE, "/content", "secret"), shared.alice).body == b"mine"


def test_another_caller_s_session_cannot_be_deleted(shared: Target) -> None:
    assert shared.ask("DELETE", f"{SESSIONS}/{ALICE}", shared.bob).status == 204
    assert shared.ask("GET", f"{SESSIONS}/{ALICE}", shared.alice).status == 200


def test_another_caller_s_session_is_not_invoked(shared: Target) -> None:
    answer = shared.invoke(ALICE, {"run": "print(open('/home/session/secret').read())"}, shared.bob)
    assert answer.status in (403, 404)
    assert b"mine" not in answer.body


def test_another_caller_s_session_id_cannot_be_taken(shared: Target) -> None:
    answer = shared.ask("POST", SESSIONS, shared.bob, {"agent_session_id": ALICE})
    assert answer.status in (403, 404, 409)
    assert shared.ask("GET", f"{SESSIONS}/{ALICE}", shared.bob).status == 404


@pytest.mark.parametrize("path", [f"{AGENT}/sessions/{ALICE}:logstream?follow=false",
                                  f"{AGENT}/versions/1/sessions/{ALICE}:logstream?follow=false"])  # fmt: skip
def test_another_caller_s_log_is_not_read(shared: Target, path: str) -> None:
    assert shared.ask("GET", path, shared.alice).status == 200
    assert shared.ask("GET", path, shared.bob).status == 404


def test_lists_hold_one_s_own_sessions(shared: Target) -> None:
    listed = shared.ask("GET", SESSIONS, shared.bob).json()["data"]
    assert isinstance(listed, list)
    assert [session["agent_session_id"] for session in listed] == [BOB]


@pytest.mark.parametrize("cursor", ["after", "before"])
def test_a_cursor_does_not_tell_of_another_s_session(shared: Target, cursor: str) -> None:
    answer = shared.ask("GET", f"{SESSIONS}?{cursor}={ALICE}", shared.bob)
    missing = shared.ask("GET", f"{SESSIONS}?{cursor}=no-such-session", shared.bob)
    assert answer.status == missing.status


@pytest.mark.parametrize("value", ["alice", "user:alice", "root", "administrator"])
def test_who_is_no_administrator_acts_for_nobody(shared: Target, value: str) -> None:
    answer = shared.ask("GET", f"{SESSIONS}/{ALICE}", shared.bob, x_ms_user_identity=value)
    assert answer.status == 403


@pytest.mark.parametrize("value", ["alice", "user:alice", "root", "bob"])
def test_users_that_are_acted_for_are_not_principals_of_that_name(shared: Target, value: str) -> None:
    answer = shared.ask("GET", f"{SESSIONS}/{ALICE}", shared.administrator, x_ms_user_identity=value)
    assert answer.status == 404


@pytest.mark.parametrize("path", ["/metrics"])
def test_metrics_are_for_administrators(shared: Target, path: str) -> None:
    assert shared.ask("GET", path, shared.administrator).status == 200
    for token in (shared.alice, None):
        answer = shared.ask("GET", path, token)
        assert answer.status in (401, 403)
        assert b"cupola" not in answer.body.lower().replace(b"cupola env", b"")


def test_who_is_no_administrator_deploys_no_image_of_this_machine(shared: Target) -> None:
    body = {"definition": {"kind": "hosted", "image": "oci:/etc", "cpu": "1", "memory": "1Gi"}}
    assert shared.ask("POST", f"{PROJECT}/agents/local/versions", shared.alice, body).status in (400, 403)


def test_who_is_no_administrator_changes_no_egress_policy(shared: Target) -> None:
    answer = shared.ask("PUT", f"{PROJECT}/egress", shared.alice, {"mode": "open"})
    assert answer.status in (403, 404, 405)


@pytest.mark.parametrize("secret", ["", "x", "'; drop table principals; --", "A" * 5000, "%00", "\xff"])
def test_a_guessed_secret_gives_no_token(shared: Target, secret: str) -> None:
    answer = shared.ask("GET", f"/msi/token?resource={AUDIENCE}", x_identity_header=secret)
    assert answer.status in (400, 401)
    assert b"access_token" not in answer.body


@pytest.mark.parametrize("resource", ["", "a\r\nb", "x" * 5000, "\x00", "https://ai.azure.com https://other.example"])
def test_a_token_is_for_one_sane_audience(shared: Target, resource: str) -> None:
    from urllib.parse import quote

    secret = (shared.platform.data / "server" / "administrator.secret").read_text().strip()
    answer = shared.ask("GET", f"/msi/token?resource={quote(resource)}", x_identity_header=secret)
    assert answer.status == 400
