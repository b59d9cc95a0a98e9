from __future__ import annotations

from pathlib import Path

import pytest

from cupola.sandbox.base import SandboxError
from cupola.sandbox.oci.authorities import LONGEST, Authorities, public_roots


def test_a_file_has_the_private_authority_and_the_public_ones(tmp_path: Path) -> None:
    authorities = Authorities(tmp_path)
    path = authorities.file("the private one\n")
    assert path.read_text() == "the private one\n" + public_roots().read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat()
    assert Authorities(tmp_path).file("the private one\n") == path
    assert path.stat() == before


def test_each_private_authority_has_a_file_of_its_own(tmp_path: Path) -> None:
    authorities = Authorities(tmp_path)
    assert authorities.file("one") != authorities.file("../two")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_private_authority_has_a_limit(tmp_path: Path) -> None:
    with pytest.raises(SandboxError):
        Authorities(tmp_path).file("x" * (LONGEST + 1))
    assert list(tmp_path.iterdir()) == []
