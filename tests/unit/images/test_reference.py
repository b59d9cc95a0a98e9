from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.domain.errors import CupolaError
from cupola.images.reference import Reference, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("someone/agent", "docker.io/someone/agent:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("index.docker.io/library/python", "docker.io/library/python:latest"),
        ("myregistry.azurecr.io/agent:1.0", "myregistry.azurecr.io/agent:1.0"),
        ("MyRegistry.azurecr.io/agent:1.0", "myregistry.azurecr.io/agent:1.0"),
        ("localhost/agent", "localhost/agent:latest"),
        ("localhost:5000/team/sub/agent", "localhost:5000/team/sub/agent:latest"),
        ("127.0.0.1:5000/agent", "127.0.0.1:5000/agent:latest"),
        ("[::1]:5000/agent", "[::1]:5000/agent:latest"),
        (f"agent@{DIGEST}", f"docker.io/library/agent@{DIGEST}"),
        (f"r.example/agent:1@{DIGEST}", f"r.example/agent:1@{DIGEST}"),
        ("r.example/a__b/c--d/e.f_g:V1.0_x", "r.example/a__b/c--d/e.f_g:V1.0_x"),
        ("oci", "docker.io/library/oci:latest"),
    ],
)
def test_names(text: str, expected: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == expected
    assert not reference.is_local
    assert parse_reference(expected) == reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:/srv/layout", Reference("oci", path="/srv/layout")),
        ("oci:layout:v1", Reference("oci", path="layout", tag="v1")),
        ("oci:/srv/layout:repo:v1", Reference("oci", path="/srv/layout", tag="repo:v1")),
        ("oci-archive:/a.tar:v1", Reference("oci-archive", path="/a.tar", tag="v1")),
        ("docker-archive:/a.tar", Reference("docker-archive", path="/a.tar")),
        (
            "docker-archive:/a.tar:demo:1",
            Reference("docker-archive", "docker.io", "library/demo", "1", path="/a.tar"),
        ),
        ("docker-daemon:demo:1", Reference("docker-daemon", "docker.io", "library/demo", "1")),
        ("docker-daemon:localhost:5000/demo", Reference("docker-daemon", "localhost:5000", "demo", "latest")),
    ],
)
def test_places_on_this_machine(text: str, expected: Reference) -> None:
    reference = parse_reference(text)
    assert reference == expected
    assert reference.is_local
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("a" * 513, "longer than 512"),
        ("my agent", "whitespace"),
        ("agent\n", "whitespace"),
        ("agent\x00", "control"),
        ("agent\u00a0", "whitespace"),
        ("oci:/a\x1b[31m", "control"),
        ("https://r.example/agent", "leave out 'https://'"),
        ("docker://agent", "leave out 'docker://'"),
        ("Agent", "lower case"),
        ("r.example/Agent:1", "lower case"),
        ("r.example/", "not a repository name"),
        ("/agent", "not a repository name"),
        ("r.example/a//b", "not a repository name"),
        ("r.example/../b", "not a repository name"),
        ("agent:", "tag"),
        ("agent:-1", "tag"),
        ("agent:" + "1" * 129, "tag"),
        ("agent:ä", "tag"),
        ("r_.example:99/agent", "host name"),
        ("r.example:999999/agent", "host name"),
        ("agent@", "digest"),
        ("agent@sha256:abc", "digest"),
        (f"agent@{DIGEST.upper()}", "digest"),
        (f"agent@{DIGEST.replace('sha256', 'md5')}", "digest"),
        ("r.example/" + "a" * 250, "longer than 255"),
        ("oci:", "path"),
        ("oci-archive::v1", "path"),
        ("oci:/srv/layout:", "last colon"),
        ("docker-archive:/a.tar:Demo:1", "lower case"),
        (f"docker-daemon:demo@{DIGEST}", "by name and tag"),
    ],
)
def test_what_is_wrong_is_said(text: str, reason: str) -> None:
    with pytest.raises(CupolaError) as caught:
        parse_reference(text)
    assert caught.value.code == "InvalidContainerImage"
    assert caught.value.status == 400
    assert caught.value.param == "image"
    assert reason in caught.value.message
    assert "A right one is" in caught.value.message


@given(
    st.text(max_size=80)
    | st.from_regex(r"\A[a-zA-Z0-9._:/@\[\]-]{0,60}\Z")
    | st.sampled_from(["oci:", "docker-archive:", "docker-daemon:"]).flatmap(
        lambda start: st.text("ab/:.@-_AZ09", max_size=30).map(lambda rest: start + rest)
    )
)
def test_nothing_else_is_ever_raised(text: str) -> None:
    try:
        reference = parse_reference(text)
    except CupolaError:
        return
    assert parse_reference(str(reference)) == reference
