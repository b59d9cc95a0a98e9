"""The Debian base and the image of a sample, run where this machine lets us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cupola.images.debian import build_base
from cupola.images.steps import BuildError, run
from scripts.build_sample import CACHE, _agent_dependencies, _is_agent, _requirements, build

needs_apt = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "dpkg-deb"))),
    reason="the base is made of Debian packages, by apt-get",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")

PROOF = """
import asyncio, ctypes, json, lzma, sqlite3, ssl, sys, zlib
assert ssl.create_default_context().cert_store_stats()["x509_ca"] > 50
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
assert json.loads.__code__.co_filename.startswith("/usr/lib/python3")
with open(json.__cached__, "rb") as compiled:
    assert compiled.read(8)[4] == 1, "bytecode that depends on the time of its source"
print("fine")
"""


def inside(root: Path, *command: str) -> str:
    arguments = ["chroot", "--userspec=agent", str(root), *command]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": "/opt/site"}
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@needs_apt
@needs_root
def test_the_base_runs_python_and_a_shell() -> None:
    root = build_base(CACHE)
    assert inside(root, "python3", "-c", PROOF) == "fine"
    assert inside(root, "/bin/sh", "-c", "id -u; ls -ld /tmp | cut -c1-10; readlink /bin") == (
        "1000\ndrwxrwxrwt\nusr/bin"
    )


@needs_apt
def test_the_base_is_built_once() -> None:
    root = build_base(CACHE)
    before = root.stat().st_ino
    assert build_base(CACHE) == root
    assert root.stat().st_ino == before


@needs_apt
def test_the_image_of_a_sample(tmp_path: Path) -> None:
    sample, layout, root = tmp_path / "sample", tmp_path / "layout", tmp_path / "root"
    sample.mkdir()
    root.mkdir()
    (sample / "main.py").write_text("import helper\nprint(helper.answer())\n")
    (sample / "helper.py").write_text("import h11\ndef answer(): return h11.__name__\n")
    (sample / "requirements.txt").write_text("h11  # small, and pure Python\n")
    (sample / ".env").write_text("SECRET=1")
    digest = build(sample, layout, "one")
    assert build(sample, layout, "two", command=["python3", "helper.py"]) != digest
    assert build(sample, tmp_path / "again", "one") == digest

    def document(digest: str) -> Any:
        return json.loads((layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes())

    manifest = document(digest)
    config = document(manifest["config"]["digest"])["config"]
    assert (config["Entrypoint"], config["WorkingDir"], config["User"]) == (
        ["python3", "main.py"],
        "/app",
        "agent",
    )
    assert "PYTHONPATH=/opt/site" in config["Env"]
    for layer in manifest["layers"]:
        blob = layout / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")
        run(["tar", "-x", "-p", "-z", "-f", blob], folder=root)
    assert sorted(path.name for path in (root / "app").iterdir()) == [
        "__pycache__",
        "helper.py",
        "main.py",
        "requirements.txt",
    ]
    if os.geteuid() == 0:
        assert inside(root, "python3", "/app/main.py") == "h11"


def test_requirements_are_names_only(tmp_path: Path) -> None:
    assert _requirements(tmp_path) == []
    (tmp_path / "requirements.txt").write_text("# none\n\nCupola_Agent>=0.1\nx[y]==1; python_version>'3'  # why\n")
    assert _requirements(tmp_path) == ["Cupola_Agent>=0.1", "x[y]==1; python_version>'3'"]
    assert [_is_agent(text) for text in _requirements(tmp_path)] == [True, False]
    assert not _is_agent("cupola-agents")
    (tmp_path / "requirements.txt").write_text("-r other.txt\n")
    with pytest.raises(BuildError, match="may only name packages"):
        _requirements(tmp_path)


def test_a_sample_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="is not a folder"):
        build(tmp_path / "none", tmp_path / "layout", "t")


def test_extras_of_the_library_are_installed_with_it() -> None:
    plain = _agent_dependencies(["cupola-agent>=0.1"])
    assert [name for name in plain if name.startswith("openai")] == []
    more = set(_agent_dependencies(["cupola_agent[client, Pydantic_AI]"])) - set(plain)
    assert {name.partition(">")[0].partition("[")[0] for name in more} == {"openai", "pydantic-ai-slim"}
    with pytest.raises(BuildError, match="no extra named 'tools'"):
        _agent_dependencies(["cupola-agent[tools]"])
