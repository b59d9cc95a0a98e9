from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cupola.host.machine import ask_engine, look
from tests.unit.host.machines import SERVER


@contextmanager
def answering(path: Path, answer: Callable[[bytes], bytes]) -> Iterator[None]:
    """A server on a Unix socket that answers each connection's first request and closes it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answer(connection.recv(1000)))

        serving = threading.Thread(target=serve)
        serving.start()
        yield
        listening.shutdown(socket.SHUT_RDWR)
        serving.join()


def as_json(document: object) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def test_an_engine_says_its_version_and_what_it_cannot_do(tmp_path: Path) -> None:
    def answer(request: bytes) -> bytes:
        if request.startswith(b"GET /version "):
            return as_json({"Version": "20.10.24", "ApiVersion": "1.41"})
        return as_json({"OSType": "linux", "Architecture": "x86_64", "MemoryLimit": True, "CpuCfsQuota": True})

    with answering(tmp_path / "socket", answer):
        found = ask_engine(tmp_path / "socket")
    assert (found.version, found.problem) == ("20.10.24", "")
    assert found.faults == ("it cannot limit the number of processes", "it has no seccomp")


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", as_json([]), as_json({"message": "no"}), as_json(None)])
def test_what_is_no_engine_is_told(tmp_path: Path, said: bytes) -> None:
    with answering(tmp_path / "socket", lambda _: said):
        assert "does not answer" in ask_engine(tmp_path / "socket").problem


def test_a_socket_that_is_not_there_or_dead_is_told(tmp_path: Path) -> None:
    assert ask_engine(tmp_path / "socket").problem == "there is no such socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert "refused" in ask_engine(tmp_path / "dead").problem


def test_a_program_s_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, line in (("crun", "crun version 1.8.1"), ("nft", "nftables v1.0.6 (Lester)"), ("runsc", "no number")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{line}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    found = look().programs
    assert (found["crun"], found["nft"], found["runsc"]) == ("1.8.1", "1.0.6", "of unknown version")


def test_a_kernel_s_version_is_read_from_its_release() -> None:
    assert [replace(SERVER, kernel=text).kernel_version for text in ("6.18.44-fc", "5.4", "odd")] == [
        (6, 18),
        (5, 4),
        (0, 0),
    ]
