"""Where images come from: a registry by its own name or through a mirror, local archives, a local engine."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cupola.identity.certificates import ensure_certificates
from tests.system.platform import Platform
from tests.system.registry import copy_image, serve_registry
from tests.system.test_official_clients import run

FOUNDING_IMAGE = "myregistry.azurecr.io/data-processor:v1.0"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, echo_image: str) -> Iterator[str]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as host:
        copy_image(echo_image, f"docker://{host}/data-processor:v1.0")
        yield host


def test_the_founding_example_with_its_own_image_name(
    start_platform: Callable[..., Platform], sdk_python: Callable[[str], Path], registry: str
) -> None:
    platform = start_platform(CUPOLA_REGISTRY_MIRRORS=f"myregistry.azurecr.io=http://{registry}")
    lines = run(sdk_python("2.0.0b3"), platform, "founding_sync.py", FOUNDING_IMAGE)
    assert lines[0] == "Created hosted agent: data-processor-agent"
    version = platform.deploy("again", FOUNDING_IMAGE)
    assert version["status"] == "active", version
    assert version["definition"]["image"] == FOUNDING_IMAGE  # type: ignore[index]


def test_a_registry_by_https_with_a_private_authority(
    start_platform: Callable[..., Platform], echo_image: str, tmp_path: Path
) -> None:
    certificates = ensure_certificates(tmp_path / "tls", datetime.now(UTC))
    with serve_registry(tmp_path, certificates) as host:
        copy_image(echo_image, f"docker://{host}/echo:1")
        name = f"{host.replace('127.0.0.1', 'localhost')}/echo:1"
        trusting = start_platform(SSL_CERT_FILE=str(certificates.bundle))
        assert trusting.deploy("echo", name)["status"] == "active"
        version = start_platform().deploy("echo", name)
    error = version["error"]
    assert isinstance(error, dict)
    assert error["code"] == "ImagePullBackOff"
    assert "certificate" in error["message"]


def test_a_tag_is_pinned_when_it_is_deployed(
    platform: Platform, registry: str, echo_image: str, agent_image: Callable[[str, str], str]
) -> None:
    name = f"{registry}/moving"
    copy_image(echo_image, f"docker://{name}:latest")
    first = platform.deploy("moving", name)
    assert first["status"] == "active", first
    assert platform.deploy("moving", name)["version"] == "1"
    other = agent_image("other", "from cupola_agent import Agent\nAgent().run()\n")
    copy_image(other, f"docker://{name}:latest")
    second = platform.deploy("moving", name)
    assert (second["version"], second["status"]) == ("2", "active")
    assert second["image_digest"] != first["image_digest"]
    with platform.http() as http:
        assert http.get("/agents/moving/versions/1").json()["image_digest"] == first["image_digest"]
        body = {"input": "old", "agent_reference": {"type": "agent_reference", "name": "moving", "version": "1"}}
        answer = http.post("/openai/v1/responses", json=body).json()
        assert answer["output"][0]["content"][0]["text"] == "Echo: old"


def test_a_digest_names_exactly_one_image(platform: Platform, registry: str) -> None:
    digest = platform.deploy("by-tag", f"{registry}/data-processor:v1.0")["image_digest"]
    version = platform.deploy("by-digest", f"{registry}/data-processor@{digest}")
    assert (version["status"], version["image_digest"]) == ("active", digest)
    wrong = platform.deploy("wrong-digest", f"{registry}/data-processor@sha256:{'0' * 64}")
    assert wrong["error"]["code"] == "InvalidContainerImage"  # type: ignore[index]


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_an_archive(platform: Platform, echo_image: str, images: Path, kind: str) -> None:
    archive = images / f"{kind}.tar"
    name = ":cupola/echo:1" if kind == "docker-archive" else ":1"
    copy_image(echo_image, f"{kind}:{archive}{name}")
    version = platform.deploy(kind, f"{kind}:{archive}")
    assert version["status"] == "active", version


def test_an_image_of_the_local_engine(platform: Platform, echo_image: str) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("no Docker engine answers on this machine")
    copy_image(echo_image, "docker-daemon:cupola/test-echo:1")
    try:
        version = platform.deploy("engine", "docker-daemon:cupola/test-echo:1")
        assert version["status"] == "active", version
        missing = platform.deploy("engine-missing", "docker-daemon:cupola/nothing:1")
        assert missing["error"]["code"] == "InvalidContainerImage"  # type: ignore[index]
    finally:
        subprocess.run(["docker", "rmi", "-f", "cupola/test-echo:1"], capture_output=True, check=False)


def test_a_deleted_agent_leaves_no_files(start_platform: Callable[..., Platform], echo_image: str) -> None:
    platform = start_platform()
    platform.deploy("echo", echo_image)
    with platform.http() as http:
        http.post("/agents/echo/endpoint/protocols/openai/responses", json={"input": "count"}).raise_for_status()
        layers, volumes = platform.data / "images" / "layers", platform.data / "volumes"
        assert len(list(layers.iterdir())) >= 3
        assert list(volumes.iterdir()) != []
        assert http.delete("/agents/echo?force=true").status_code == 200
        end = time.monotonic() + 20
        while [*layers.iterdir(), *volumes.iterdir()] and time.monotonic() < end:
            time.sleep(0.02)
        assert list(layers.iterdir()) == []
        assert list(volumes.iterdir()) == []
        assert list((platform.data / "server" / "logs").iterdir()) == []
    assert platform.deploy("echo", echo_image)["status"] == "active"


def test_local_images_can_be_switched_off(start_platform: Callable[..., Platform], echo_image: str) -> None:
    platform = start_platform(CUPOLA_LOCAL_IMAGES="false")
    with platform.http() as http:
        definition = {"kind": "hosted", "image": echo_image}
        answer = http.post("/agents/local/versions", json={"definition": definition})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InvalidContainerImage")
    assert "local_images" in answer.json()["error"]["message"]


def test_a_deployed_agent_does_not_need_its_registry_any_more(
    start_platform: Callable[..., Platform], echo_image: str, tmp_path: Path
) -> None:
    with serve_registry(tmp_path) as host:
        copy_image(echo_image, f"docker://{host}/echo:1")
        platform = start_platform()
        assert platform.deploy("echo", f"{host}/echo:1")["status"] == "active"
    platform.stop()
    restarted = start_platform(platform.data)
    with restarted.http() as http:
        answer = http.post("/agents/echo/endpoint/protocols/openai/responses", json={"input": "still"})
    assert answer.json()["output"][0]["content"][0]["text"] == "Echo: still"
