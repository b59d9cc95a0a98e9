from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cupola.cli import server
from cupola.domain.errors import CupolaError
from cupola.installation import DataFolder, ServerState
from cupola.settings import Settings, load


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "cupola.toml"
    config.touch()
    monkeypatch.setenv("CUPOLA_CONFIG", str(config))
    monkeypatch.setenv("CUPOLA_DATA", str(tmp_path / "data folder"))


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data folder")
    folder.create()
    folder.administrator_secret.write_text("the-secret\n")
    return folder


@pytest.fixture
def running(folder: DataFolder) -> Iterator[DataFolder]:
    """A folder whose server is ready."""
    with folder.lock():
        folder.write_state(ServerState(1, 8443, 8080))
        yield folder


def test_the_environment_is_what_every_client_needs(running: DataFolder) -> None:
    bundle = str(running.path / "server" / "tls" / "bundle.pem")
    endpoint = "https://localhost:8443/api/projects/default"
    assert server.environment(running) == {
        "FOUNDRY_PROJECT_ENDPOINT": endpoint,
        "AZURE_AI_PROJECT_ENDPOINT": endpoint,
        "REQUESTS_CA_BUNDLE": bundle,
        "SSL_CERT_FILE": bundle,
        "IDENTITY_ENDPOINT": "http://127.0.0.1:8080/msi/token",
        "IDENTITY_HEADER": "the-secret",
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
    }


def test_the_environment_of_another_project(running: DataFolder) -> None:
    found = server.environment(running, "team")
    assert found["FOUNDRY_PROJECT_ENDPOINT"] == "https://localhost:8443/api/projects/team"


def test_env_prints_what_a_shell_can_read(running: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    server.env()
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert {word for word, _ in lines} == {"export"}
    assert dict(pair.split("=", 1) for _, pair in lines) == server.environment(running)


def test_env_of_a_folder_that_is_named(running: DataFolder, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(CupolaError, match="No server is running on"):
        server.env(data=tmp_path / "another")
    server.env(data=running.path)
    assert "IDENTITY_HEADER" in capsys.readouterr().out


def test_without_a_server_it_is_said_how_to_start_one(folder: DataFolder) -> None:
    with pytest.raises(CupolaError, match="start one with `cupola up --detach`") as caught:
        server.environment(folder)
    assert caught.value.code == "not_running"


def test_a_server_that_is_still_starting_is_told_apart(folder: DataFolder) -> None:
    with folder.lock(), pytest.raises(CupolaError, match="is still starting; try again") as caught:
        server.environment(folder)
    assert caught.value.code == "not_ready"


def test_down_without_a_server_says_so(folder: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    server.down()
    assert capsys.readouterr().out == f"No server is running on {folder.path}.\n"


def test_a_second_server_in_the_background_is_refused(running: DataFolder) -> None:
    with pytest.raises(CupolaError, match="already running") as caught:
        server.up(detach=True)
    assert caught.value.code == "already_running"
    assert not running.server_log.exists()


def test_config_prints_toml_that_means_the_settings_in_force(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUPOLA_REGISTRY_MIRRORS", "docker.io=https://m")
    monkeypatch.setenv("CUPOLA_INSECURE_REGISTRIES", "a,b")
    server.config()
    printed = capsys.readouterr().out
    assert "[CUPOLA_REGISTRY_MIRRORS]" in printed
    assert "[default]" in printed
    file = tmp_path / "printed.toml"
    file.write_text(printed)
    before, _ = load({}, None)
    after, values = load({}, {"CUPOLA_CONFIG": str(file)})
    assert after == before
    assert isinstance(after, Settings)
    assert {value.source for value in values} == {str(file)}
