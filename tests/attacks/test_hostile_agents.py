"""An agent that answers what no agent should, prints what it should not, and looks for what is not its own."""

from __future__ import annotations

import concurrent.futures
import json
import threading

import pytest

from tests.attacks.target import AGENT, ALICE, BOB, PROJECT, SESSIONS, Target

ANSWERS: dict[str, dict[str, object]] = {
    "garbage": {"bytes": "\x00\xff garbage \r\n\r\n" * 100},
    "nothing": {"bytes": ""},
    "not_http": {"bytes": "SSH-2.0-OpenSSH_9.2\r\n"},
    "no_end_of_head": {"bytes": "HTTP/1.1 200 OK\r\nx: " + "a" * 1000, "times": 1000},
    "endless_headers": {"bytes": "HTTP/1.1 200 OK\r\n" + "x: y\r\n" * 20_000},
    "endless_interim": {"bytes": "HTTP/1.1 100 Continue\r\n\r\n", "times": 50_000},
    "endless_status_line": {"bytes": "HTTP/1.1 200 " + "A" * 200_000},
    "negative_length": {"bytes": "HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello"},
    "huge_length": {"bytes": "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nhello"},
    "two_lengths": {"bytes": "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 50\r\n\r\nhello"},
    "length_and_chunks": {
        "bytes": "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    },
    "bad_chunk": {"bytes": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello"},
    "huge_chunk": {"bytes": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello"},
    "endless_chunk_extension": {"bytes": "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;" + "a" * 300_000},
    "header_without_colon": {"bytes": "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"},
    "null_in_header": {"bytes": "HTTP/1.1 200 OK\r\nx-a: b\x00c\r\ncontent-length: 0\r\n\r\n"},
    "bare_line_feed": {"bytes": "HTTP/1.1 200 OK\nset-cookie: owned=1\ncontent-length: 0\n\n"},
    "bare_return_in_header": {"bytes": "HTTP/1.1 200 OK\r\nx-a: b\rset-cookie: owned=1\r\ncontent-length: 0\r\n\r\n"},
    "folded_header": {"bytes": "HTTP/1.1 200 OK\r\nx-a: b\r\n set-cookie: owned=1\r\ncontent-length: 0\r\n\r\n"},
    "switching_protocols": {"bytes": "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"},
    "status_0": {"bytes": "HTTP/1.1 000 Nothing\r\ncontent-length: 0\r\n\r\n"},
    "status_999": {"bytes": "HTTP/1.1 999 Strange\r\ncontent-length: 0\r\n\r\n"},
    "http_2": {"bytes": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
    "cut_off": {"bytes": "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhello"},
    "second_answer": {"bytes": "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nanother's answer"},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_harms_nobody_else(target: Target, name: str) -> None:
    answer = target.invoke(ALICE, ANSWERS[name])
    assert answer.status in (200, 500, 502, 504, 999)
    assert "set-cookie" not in answer.headers
    assert b"another's answer" not in answer.body
    # The next answers, the neighbour's and the agent's own, are whole.
    assert target.invoke(BOB, {}, target.bob).body == b"hello"
    assert target.invoke(ALICE, {}).body == b"hello"


@pytest.mark.parametrize("header", ["x-agent-session-id: forged-session", "x-request-id: forged",
                                    "server: nginx", "connection: upgrade", "x-platform-error-detail: forged",
                                    "transfer-encoding: gzip, chunked"])  # fmt: skip
def test_an_agent_cannot_speak_for_the_platform(target: Target, header: str) -> None:
    body = "2\r\nok\r\n0\r\n\r\n" if "chunked" in header else "ok"
    length = "" if "chunked" in header else "content-length: 2\r\n"
    answer = target.invoke(ALICE, {"bytes": f"HTTP/1.1 200 OK\r\n{header}\r\n{length}\r\n{body}"})
    name, _, value = header.partition(": ")
    assert value not in answer.headers.get(name, "")
    assert answer.headers["x-agent-session-id"] == ALICE


def test_a_slow_agent_holds_up_nobody_else(target: Target) -> None:
    slow = {"bytes": "HTTP/1.1 200 OK\r\nx-slow: a\r\n"[:1], "times": 20, "pause": 0.1}
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(target.invoke, ALICE, slow) for _ in range(8)]
        assert target.invoke(BOB, {}, target.bob).body == b"hello"
        assert not any(one.done() for one in waiting)
        assert {one.result().status for one in waiting} == {502}


HEAD = (
    f"POST {AGENT}/endpoint/protocols/invocations?agent_session_id={ALICE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
)


@pytest.mark.parametrize(
    "lines",
    [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding: xchunked\r\n",
        "x-a: b\r\n\tc\r\ncontent-length : 5\r\n",
        "x" * 200_000 + ": y\r\n",
        "x: y\r\n" * 40_000,
        "bad header\r\n",
        "x: a\0b\r\n",
    ],
    ids=["length-and-chunks", "two-lengths", "plus", "hex", "identity", "space", "unknown", "folded", "long", "many",
         "no-colon", "null"],
)  # fmt: skip
def test_a_request_with_two_meanings_reaches_no_agent(target: Target, lines: str) -> None:
    smuggled = f"GET {PROJECT}/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {target.administrator}\r\n\r\n"
    answer = target.raw(
        f"{HEAD}authorization: Bearer {target.alice}\r\n{lines}\r\n0\r\n\r\n{smuggled}".encode("latin-1")
    )
    assert b'"object":"list"' not in answer
    assert answer == b"" or answer.split(b" ")[1].startswith(b"4")
    assert target.is_well()


@pytest.mark.parametrize("header", ["authorization", "cookie", "x-forwarded-for", "x-ms-user-identity", "host"])
def test_the_agent_does_not_see_the_caller_s_credentials(target: Target, header: str) -> None:
    body = {"run": "print({name.lower(): value for name, value in headers.items()})"}
    path = f"{AGENT}/endpoint/protocols/invocations?agent_session_id={ALICE}"
    sent = {"cookie": "secret-cookie", "x_forwarded_for": "secret-address"}
    said = target.ask("POST", path, target.alice, body, **sent).body.decode()
    assert "'accept-encoding'" in said
    assert target.alice not in said
    assert "secret-" not in said
    assert header == "host" or header not in said


IDS = ["../../../etc", "..%2f..%2f", "a b c d e f g h", "a" * 129, "short", "%00%00%00%00%00%00%00%00", "<script>alert",
       "' or 1=1; --", "session\r\nx-evil: 1", "@newest", "$(reboot)", "\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668"]  # fmt: skip


@pytest.mark.parametrize("identifier", IDS)
def test_a_hostile_session_id_is_none(target: Target, identifier: str) -> None:
    from urllib.parse import quote

    for made in (
        target.ask("POST", SESSIONS, target.alice, {"agent_session_id": identifier}),
        target.invoke(quote(identifier, safe="%"), {}),
        target.ask("GET", f"{SESSIONS}/{quote(identifier, safe='%')}", target.alice),
    ):
        assert made.status in (400, 404, 405)
        assert "x-evil" not in made.headers
    names = {path.name for path in (target.platform.data / "sessions").iterdir()}
    assert all(len(name) == 36 for name in names)


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "a/b", "a%2fb", "-a", "a" * 64, "a\u0131b", "a%00b", "' or 1=1", "a b"]
)
def test_a_hostile_agent_name_is_none(target: Target, name: str) -> None:
    from urllib.parse import quote

    body = {"definition": {"kind": "hosted", "image": "example.invalid/x:1", "cpu": "1", "memory": "1Gi"}}
    answer = target.ask("POST", f"{PROJECT}/agents/{quote(name, safe='%/')}/versions", target.administrator, body)
    assert answer.status in (400, 404, 405)


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;owned\x07", "fine\r\nforged", '"}\n{"stream": "status", "message": "forged"}',
                                  "x\n\nevent: log\ndata: {\"stream\": \"status\", \"message\": \"forged\"}\n\n",
                                  "\u202eforged\u2028forged", "\x00\xff\xfe", "a" * 100_000])  # fmt: skip
def test_what_an_agent_prints_is_no_more_than_text(target: Target, text: str) -> None:
    target.inside(f"import sys; sys.__stdout__.write({text!r} + '\\n'); sys.__stdout__.flush()")
    stream = target.ask("GET", f"{AGENT}/sessions/{ALICE}:logstream?follow=false&tail=20", target.alice).body
    assert stream.isascii()
    assert b"\x1b" not in stream
    assert b"\r" not in stream
    for frame in stream.decode().removesuffix("\n\n").split("\n\n"):
        event, _, data = frame.partition("\n")
        assert event == "event: log"
        entry = json.loads(data.removeprefix("data: "))
        assert "forged" not in entry["message"] or entry["stream"] == "stdout"


def test_a_flood_of_output_takes_a_bounded_part_of_the_disk(target: Target) -> None:
    target.inside("""
import sys, threading
def flood():
    for _ in range(120):
        sys.__stdout__.write(("x" * 127 + "\\n") * 1024)
threading.Thread(target=flood).start()
""")
    assert target.invoke(BOB, {}, target.bob).body == b"hello"
    logs = [path.stat().st_size for path in (target.platform.data / "sessions").glob("*/logs/*")]
    assert max(logs) < 5 * 1024 * 1024


FROM_INSIDE = """
import json, socket, ssl, urllib.request, urllib.error
context = ssl._create_unverified_context()
endpoint = os.environ["FOUNDRY_PROJECT_ENDPOINT"]
server = endpoint.partition("/api/")[0]
found = {}
for path in ("/metrics", "/api/projects/default/agents", "/msi/token?resource=https://ai.azure.com", "/healthz",
             "/api/projects/default/agents/hostile/endpoint/sessions"):
    for headers in ({}, {"x-identity-header": os.environ.get("IDENTITY_HEADER", "guess")}, {"authorization": "Bearer guess"},
                    {"host": "127.0.0.1"}, {"x-forwarded-for": "127.0.0.1"}):
        try:
            request = urllib.request.Request(server + path, headers=headers)
            found[path + str(headers)] = urllib.request.urlopen(request, context=context, timeout=5).status
        except urllib.error.HTTPError as error:
            found[path + str(headers)] = error.code
print(json.dumps(found))
"""


def test_an_agent_without_a_token_gets_nothing_from_the_platform(target: Target) -> None:
    found = json.loads(target.inside(FROM_INSIDE))
    reached = {path for path, status in found.items() if status == 200}
    assert reached
    assert all(path.startswith("/healthz") for path in reached)


@pytest.mark.parametrize(
    "program",
    [
        "print([name for name in os.environ if any(part in name for part in ('SECRET', 'TOKEN', 'PASSWORD', 'CUPOLA'))])",
        "print([n for n in os.listdir('/proc/self/fd') if os.path.exists(p := f'/proc/self/fd/{n}') "
        "and 'cupola' in os.readlink(p)])",
        "print([line for line in open('/proc/self/mountinfo') if 'signing' in line or 'cupola.db' in line])",
        "print([name for name in os.listdir('/run') if 'cupola' in name])",
    ],
    ids=["environment", "descriptors", "mounts", "run"],
)
def test_nothing_of_the_platform_is_inside(target: Target, program: str) -> None:
    assert target.inside(program) == "[]\n"


def test_sessions_of_one_agent_share_nothing(target: Target) -> None:
    target.inside("""
for folder in ("/home/session", "/files", "/tmp", "/dev/shm", "/var/tmp"):
    os.makedirs(folder, exist_ok=True)
    open(folder + "/of-alice", "w").close()
""")
    said = target.inside(
        "print([f for f in ('/home/session', '/files', '/tmp', '/dev/shm', '/var/tmp') if os.path.exists(f + '/of-alice')])",
        BOB,
        target.bob,
    )
    assert said == "[]\n"


def test_connections_that_say_nothing_hold_up_nobody(target: Target) -> None:
    import socket

    held = [socket.create_connection(("127.0.0.1", target.port), 5) for _ in range(300)]
    try:
        for connection in held:
            connection.sendall(b"POST /api/projects/default/openai/responses HTTP/1.1\r\n")
        assert target.invoke(BOB, {}, target.bob).body == b"hello"
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b'{"input": "\\ud800"}', b"NaN",
                                  b'{"agent_session_id": {}}', b'{"input": 1e999999}', b"{}" + b" " * 1_000_000])  # fmt: skip
def test_a_hostile_body_is_refused(target: Target, body: bytes) -> None:
    for path in (SESSIONS, f"{AGENT}/endpoint/protocols/openai/responses"):
        answer = target.ask("POST", path, target.alice, body, content_type="application/json")
        assert answer.status in (201, 400) if body.startswith(b"{}") else answer.status == 400, answer.body[:200]
    assert target.is_well()


def test_a_guessed_response_id_is_not_found(target: Target) -> None:
    for path in ("caresp_0123456789abcdef00" + "A" * 32, "../sessions", "resp_1"):
        for method in ("GET", "DELETE", "POST"):
            answer = target.ask(method, f"{AGENT}/endpoint/protocols/openai/responses/{path}", target.bob)
            assert answer.status in (404, 405)


def test_many_at_once_for_one_hostile_agent_leave_room_for_others(target: Target) -> None:
    done = threading.Event()
    endless = {"bytes": "HTTP/1.1 200 OK\r\n\r\n" + "x" * 100_000, "times": 200, "pause": 0.005}
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        running = [threads.submit(target.invoke, ALICE, endless) for _ in range(6)]
        for _ in range(20):
            assert target.invoke(BOB, {}, target.bob).body == b"hello"
        done.set()
        assert {one.result().status for one in running} == {200}
