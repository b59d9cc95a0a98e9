from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cupola.domain.errors import CupolaError
from cupola.settings import Settings, Value, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cupola.toml"


def values(file: Path, content: str = "", **environment: str) -> dict[str, Value]:
    """Every setting by name, with nothing from the machine that runs the tests."""
    file.write_text(content)
    _, found = load({}, {"CUPOLA_CONFIG": str(file), **environment})
    return {value.name: value for value in found}


def refusal(file: Path, content: str = "", **environment: str) -> str:
    with pytest.raises(CupolaError) as caught:
        values(file, content, **environment)
    assert caught.value.code == "bad_setting"
    return caught.value.message


def test_a_flag_beats_a_variable_which_beats_the_file_which_beats_the_default(file: Path) -> None:
    file.write_text("https_port = 3\nhttp_port = 3\nstop_grace = 3")
    environment = {"CUPOLA_CONFIG": str(file), "CUPOLA_HTTPS_PORT": "2", "CUPOLA_HTTP_PORT": "2"}
    settings, found = load({"https_port": 1, "http_port": None}, environment)
    assert (settings.https_port, settings.http_port, settings.stop_grace) == (1, 2, 3.0)
    assert settings.startup_timeout == 60.0
    sources = {value.name: value.source for value in found}
    assert sources["https_port"] == "--https-port"
    assert sources["http_port"] == "CUPOLA_HTTP_PORT"
    assert sources["stop_grace"] == str(file)
    assert sources["startup_timeout"] == "default"


def test_every_setting_has_a_value_a_source_and_a_line_of_help(file: Path) -> None:
    found = values(file)
    assert list(found) == [entry.name for entry in fields(Settings)]
    assert all(value.help for value in found.values())


def test_a_variable_that_is_empty_is_not_given(file: Path) -> None:
    assert values(file, CUPOLA_HTTP_PORT="")["http_port"].source == "default"


@pytest.mark.parametrize(
    ("name", "written", "in_toml", "value"),
    [
        ("data", "/srv/x", '"/srv/x"', Path("/srv/x")),
        ("https_port", "0", "0", 0),
        ("https_port", "65535", "65535", 65535),
        ("startup_timeout", "0.5", "0.5", 0.5),
        ("startup_timeout", "7", "7", 7.0),
        ("driver", "docker", '"docker"', "docker"),
        ("local_images", "false", "false", False),
        ("local_images", "off", '"off"', False),
        ("local_images", "YES", "true", True),
        ("insecure_registries", "a, b:5000,", '["a", "b:5000"]', ("a", "b:5000")),
        (
            "registry_mirrors",
            "docker.io=https://m/?a=b, ghcr.io = http://n",
            '{"docker.io" = "https://m/?a=b", "ghcr.io" = "http://n"}',
            {"docker.io": "https://m/?a=b", "ghcr.io": "http://n"},
        ),
    ],
)
def test_a_value_reads_the_same_in_a_variable_and_in_the_file(
    file: Path, name: str, written: str, in_toml: str, value: Any
) -> None:
    assert values(file, **{f"CUPOLA_{name.upper()}": written})[name].value == value
    assert values(file, f"{name} = {in_toml}")[name].value == value


def test_a_path_is_made_absolute(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert values(file, CUPOLA_DATA="here")["data"].value == tmp_path / "here"
    assert values(file, CUPOLA_DATA="~/there")["data"].value == Path("/home/ada/there")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("HTTPS_PORT", "x", "expected a whole number, got 'x'"),
        ("HTTPS_PORT", "1.5", "expected a whole number, got '1.5'"),
        ("HTTPS_PORT", "65536", "expected 0 to 65535, got 65536"),
        ("HTTP_PORT", "-1", "expected 0 to 65535, got -1"),
        ("STARTUP_TIMEOUT", "soon", "expected a number, got 'soon'"),
        ("STARTUP_TIMEOUT", "-1", "expected at least 0, got -1.0"),
        ("STARTUP_TIMEOUT", "nan", "expected at least 0, got nan"),
        ("MAX_REQUEST_BODY", "-5", "expected at least 0, got -5"),
        ("LOCAL_IMAGES", "maybe", "expected true or false, got 'maybe'"),
        ("REGISTRY_MIRRORS", "docker.io", "expected pairs such as host=url, got 'docker.io'"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(file: Path, variable: str, value: str, said: str) -> None:
    assert refusal(file, **{f"CUPOLA_{variable}": value}) == f"{variable.lower()} (from CUPOLA_{variable}): {said}."


def test_a_driver_that_does_not_exist_is_told(file: Path) -> None:
    assert (
        refusal(file, CUPOLA_DRIVER="magic")
        == "driver (from CUPOLA_DRIVER): 'magic' is unknown; the drivers are auto, oci, docker."
    )


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        ("https_port = true", "https_port", "expected a whole number, got True"),
        ("https_port = 1.0", "https_port", "expected a whole number, got 1.0"),
        ("startup_timeout = true", "startup_timeout", "expected a number, got True"),
        ("startup_timeout = []", "startup_timeout", "expected a number, got []"),
        ("data = 5", "data", "expected a path, got 5"),
        ("driver = 5", "driver", "expected text, got 5"),
        ("insecure_registries = 5", "insecure_registries", "expected a list, got 5"),
        ("insecure_registries = [5]", "insecure_registries", "expected a list, got [5]"),
        ("registry_mirrors = 5", "registry_mirrors", "expected pairs such as host=url, got 5"),
        ("registry_mirrors = {a = 5}", "registry_mirrors", "expected pairs such as host=url, got {'a': 5}"),
        ("local_images = []", "local_images", "expected true or false, got []"),
    ],
)
def test_a_line_of_the_file_that_cannot_be_used_is_named(file: Path, line: str, name: str, said: str) -> None:
    assert refusal(file, line) == f"{name} (from {file}): {said}."


def test_a_line_that_is_no_setting_is_named(file: Path) -> None:
    assert refusal(file, "port = 1") == f"{file}: 'port' is not a setting; `cupola config` lists them."


@pytest.mark.parametrize("content", [b"port 1", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_told(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(CupolaError, match="is not TOML"):
        load({}, {"CUPOLA_CONFIG": str(file)})


def test_a_file_that_was_named_must_exist(file: Path) -> None:
    with pytest.raises(CupolaError, match=f"CUPOLA_CONFIG names {file}, which does not exist"):
        load({}, {"CUPOLA_CONFIG": str(file)})


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(CupolaError, match=f"{tmp_path} cannot be read: "):
        load({}, {"CUPOLA_CONFIG": str(tmp_path)})


def test_a_misspelled_variable_is_refused_and_those_of_others_are_ignored(file: Path) -> None:
    assert values(file, HTTP_PORT="1")["http_port"].value == 8080
    with pytest.raises(CupolaError, match="CUPOLA_SOMETHING is not a setting"):
        values(file, CUPOLA_SOMETHING="1")


def test_a_mirror_without_a_scheme_is_refused(file: Path) -> None:
    with pytest.raises(CupolaError, match=r"registry_mirrors \(from CUPOLA_REGISTRY_MIRRORS\): '1.2.3.4:5000' for a.b"):
        values(file, CUPOLA_REGISTRY_MIRRORS="a.b=1.2.3.4:5000")
