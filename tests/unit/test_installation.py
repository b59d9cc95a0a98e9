from __future__ import annotations

import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.installation import DataFolder, ServerState

STATE = ServerState(pid=1234, https_port=8443, http_port=8080)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    return folder


def test_a_folder_is_made_private_with_an_id_that_stays(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "some" / "where")
    made = folder.create()
    assert str(uuid.UUID(made)) == made
    assert folder.create() == made
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_folders_have_different_ids(tmp_path: Path) -> None:
    assert DataFolder(tmp_path / "a").create() != DataFolder(tmp_path / "b").create()


@pytest.mark.parametrize("content", ["", "not an id"])
def test_an_id_that_was_spoilt_is_told(folder: DataFolder, content: str) -> None:
    (folder.path / "installation").write_text(content)
    with pytest.raises(CupolaError, match=r"cannot be used: .* Choose another with --data or CUPOLA_DATA"):
        folder.create()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CupolaError, match=r"cannot be used: .* Choose another") as caught:
        DataFolder(tmp_path / "file" / "data").create()
    assert caught.value.code == "data_folder"


def test_what_is_kept_is_inside_the_folder(folder: DataFolder) -> None:
    named = {
        folder.database,
        folder.certificates,
        folder.signing_key,
        folder.administrator_secret,
        folder.logs,
    }
    beside = {folder.images, folder.volumes, folder.trials, folder.sandboxes, folder.server_log, folder.server}
    assert (len(named), len(beside)) == (5, 6)
    assert {path.parent for path in named} == {folder.server}
    assert {path.parent for path in beside} == {folder.path}


def test_one_server_at_a_time_uses_a_folder(folder: DataFolder) -> None:
    assert not folder.is_locked()
    with folder.lock():
        assert folder.is_locked()
        with (
            pytest.raises(CupolaError, match=r"already running on .*; `cupola down` stops it") as caught,
            folder.lock(),
        ):
            raise AssertionError("there are two servers")
        assert caught.value.code == "already_running"
        assert folder.is_locked()
    assert not folder.is_locked()
    with folder.lock():
        assert folder.is_locked()


def test_a_server_that_fails_gives_the_folder_back(folder: DataFolder) -> None:
    def fail() -> None:
        with folder.lock():
            folder.write_state(STATE)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert not folder.is_locked()
    assert folder.running_server() is None


ASKING = "import sys; from cupola.installation import *; folder = DataFolder(Path(sys.argv[1])); print(flush=True)\n"
ASKING += "while True: folder.is_locked()"


def test_asking_whether_a_server_runs_disturbs_neither_servers_nor_others_who_ask(folder: DataFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", ASKING, str(folder.path)], stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()
        try:
            for _ in range(300):
                assert not folder.is_locked()
                with folder.lock():
                    pass
        finally:
            asking.kill()


def test_a_server_is_found_once_it_is_ready_until_it_stops(folder: DataFolder) -> None:
    assert folder.running_server() is None
    with folder.lock():
        assert folder.running_server() is None
        folder.write_state(STATE)
        assert folder.running_server() == STATE
    assert folder.running_server() is None
    assert not (folder.server / "server.json").exists()


def test_a_server_that_was_killed_is_not_taken_for_the_one_that_starts(folder: DataFolder) -> None:
    folder.write_state(STATE)
    assert folder.running_server() is None
    with folder.lock():
        assert folder.running_server() is None


def test_a_folder_that_does_not_exist_has_no_server(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "missing")
    assert not folder.is_locked()
    assert folder.running_server() is None
    assert not folder.path.exists()


def test_a_server_says_where_it_listens() -> None:
    assert STATE.http_url == "http://127.0.0.1:8080"
    assert STATE.https_url == "https://localhost:8443"
