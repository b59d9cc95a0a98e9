from __future__ import annotations

from pathlib import Path

import pytest

from cupola import app


def test_a_clean_stop_leaves_no_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "RUN_ROOT", tmp_path)
    with app._run_directory("unit-clean") as (directory, _):
        (directory / "bundles").mkdir()
    assert not directory.exists()


def test_what_a_failed_stop_has_left_is_swept_by_the_next_start_of_any_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "RUN_ROOT", tmp_path)
    with app._run_directory("unit-failed") as (failed, _):
        (failed / "bundles" / "s-1").mkdir(parents=True)
    assert failed.exists()
    with app._run_directory("unit-other"):
        assert not failed.exists()
