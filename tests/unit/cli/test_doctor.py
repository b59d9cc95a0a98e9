from __future__ import annotations

import datetime
import socket
from pathlib import Path

from cupola.cli.doctor import LEAST_FREE, certificate_check, conclusion, folder_check, is_free, port_check, table
from cupola.host.checks import Check
from cupola.installation import ServerState

GOOD = [Check("a", "ok", "there")]
BAD = [Check("b", "missing", "not there", "install it")]
SERVER = ServerState(7, 8443, 8080)
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def test_the_conclusion_names_what_up_would_do() -> None:
    assert conclusion("auto", {"oci": GOOD, "docker": BAD})[0] == "oci"
    assert conclusion("auto", {"oci": BAD, "docker": GOOD}) == (
        "docker",
        "`cupola up` takes the docker driver: oci cannot be used (not there).",
    )
    assert conclusion("docker", {"oci": GOOD, "docker": GOOD})[0] == "docker"
    assert conclusion("docker", {"oci": GOOD, "docker": BAD}) == (
        None,
        "The setting driver asks for docker, which cannot be used here; oci can.",
    )
    assert conclusion("auto", {"oci": BAD, "docker": BAD}) == (None, "No driver can make sandboxes here.")


def test_what_is_missing_has_its_fix_on_the_next_line() -> None:
    lines = table([*GOOD, *BAD]).splitlines()
    assert [line.split() for line in lines] == [
        ["ok", "a", "there"],
        ["missing", "b", "not", "there"],
        ["->", "install", "it"],
    ]


def test_the_data_folder_must_be_writable_and_have_room() -> None:
    path = Path("/somewhere")
    assert folder_check(path, True, 5 * LEAST_FREE) == Check("data folder", "ok", "/somewhere, 5.0 GiB free")
    assert folder_check(path, True, LEAST_FREE - 1).verdict == "missing"
    assert "may not write to /somewhere" in folder_check(path, False, 5 * LEAST_FREE).finding


def test_a_port_is_free_or_taken_or_ours() -> None:
    assert port_check("https", 8443, True, None).finding == "8443 is free"
    assert port_check("https", 0, True, None).finding == "any free one"
    taken = port_check("http", 8080, False, None)
    assert (taken.verdict, "--http-port" in taken.fix) == ("missing", True)
    assert port_check("http", 9999, False, SERVER).finding == "8080, of the running server (process 7)"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert not is_free(listening.getsockname()[1])
    assert is_free(0)


def test_a_certificate_is_made_valid_or_expired() -> None:
    assert certificate_check(None, NOW).verdict == "optional"
    assert certificate_check(NOW + datetime.timedelta(days=1), NOW).finding == "valid until 2030-01-02"
    assert certificate_check(NOW - datetime.timedelta(days=1), NOW).verdict == "missing"
