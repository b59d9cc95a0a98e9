from __future__ import annotations

import os
from pathlib import Path

import pytest

from cupola.images.extract import OPAQUE
from cupola.sessions.priming.entry_point import EntryPoint, NotPrimable, find_entry_point
from cupola.sessions.priming.image_files import ImageFiles

ELF = b"\x7fELF rest"
PATH = {"PATH": "/usr/local/bin:/usr/bin:relative"}
FILES: dict[str, bytes] = {
    "usr/bin/python3.11": ELF,
    "usr/bin/sh": ELF,
    "usr/bin/node": ELF,
    "usr/bin/env": ELF,
    "usr/local/bin/pythonwrapper": b"#!/bin/sh\n",
    "fake/python3": b"#!/bin/sh\nexec /usr/bin/python3 $@\n",
    "app/main.py": b"print()\n",
    "app/start": b"#!/usr/bin/python3 -u\nprint()\n",
    "app/start-env": b"#!/usr/bin/env python3\nprint()\n",
    "app/start-split": b"#!/usr/bin/env -S python3 -u -X dev\nprint()\n",
    "app/start-sh": b"#!/bin/sh\nexec python3 main.py\n",
    "app/start-windows": b"#!/usr/bin/python3\r\nprint()\n",
    "app/start-relative": b"#!python3\nprint()\n",
    "app/archive": b"#!/usr/bin/python3\nPK\x03\x04 PK\x05\x06" + bytes(18),
    "app/main.pyc": b"\0\0",
    "app/zeros.py": b"x\0y",
    "app/plain": b"text",
    "opt/venv/bin/uvicorn": b"#!/opt/venv/bin/python\nprint()\n",
}


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("layer")
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        (root / name).chmod(0o755)
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "opt/venv/bin/python").symlink_to("/usr/bin/python3")
    (root / "bin").symlink_to("usr/bin")
    (root / "app/plain").chmod(0o644)
    return [root]


def find(layers: list[Path], *arguments: str, **environment: str) -> EntryPoint:
    return find_entry_point(arguments, {**PATH, **environment}, "/app", layers)


@pytest.mark.parametrize(
    ("arguments", "interpreter", "options", "kind", "target", "rest"),
    [
        (("python3", "main.py"), "python3", (), "script", "main.py", ()),
        (("/bin/python3", "/app/main.py", "-x", "a"), "/bin/python3", (), "script", "/app/main.py", ("-x", "a")),
        (("python3", "-u", "-Wignore", "-X", "dev", "main.py"), "python3", ("-u", "-W", "ignore", "-X", "dev"), "script",
         "main.py", ()),
        (("python3", "-uBm", "package", "-m"), "python3", ("-uB",), "module", "package", ("-m",)),
        (("python3", "-mpackage"), "python3", (), "module", "package", ()),
        (("python3", "-Ic", "print()", "a"), "python3", ("-I",), "command", "print()", ("a",)),
        (("python3", "--check-hash-based-pycs", "never", "main.py"), "python3", ("--check-hash-based-pycs", "never"),
         "script", "main.py", ()),
        (("python3", "--", "main.py"), "python3", (), "script", "main.py", ()),
        (("env", "python3", "main.py"), "python3", (), "script", "main.py", ()),
        (("/app/start", "a"), "/usr/bin/python3", ("-u",), "script", "/app/start", ("a",)),
        (("/app/start-env",), "python3", (), "script", "/app/start-env", ()),
        (("/app/start-split",), "python3", ("-u", "-X", "dev"), "script", "/app/start-split", ()),
        (("/opt/venv/bin/uvicorn", "main:app"), "/opt/venv/bin/python", (), "script", "/opt/venv/bin/uvicorn",
         ("main:app",)),
    ],
)  # fmt: skip
def test_what_an_image_runs(
    layers: list[Path], arguments: tuple[str, ...], interpreter: str, options: tuple[str, ...], kind: str, target: str,
    rest: tuple[str, ...],
) -> None:  # fmt: skip
    found = find(layers, *arguments)
    assert (found.interpreter, found.options, found.kind, found.target, found.arguments) == (
        interpreter, options, kind, target, rest,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "no entry point"),
        (("",), "no entry point"),
        (("sh", "-c", "python3 main.py"), "runs sh, which is not Python"),
        (("node", "main.js"), "runs node, which is not Python"),
        (("nothing",), "not an executable file"),
        (("/app/plain",), "not an executable file"),
        (("/app",), "not an executable file"),
        (("/app/start-sh",), "a script for /bin/sh"),
        (("/app/start-windows",), "does not name an interpreter"),
        (("/app/start-relative",), "does not name an interpreter"),
        (("./start",), "relative path"),
        (("/fake/python3", "main.py"), "a script and not the interpreter itself"),
        (("python3",), "without a program"),
        (("python3", "-"), "without a program"),
        (("python3", "-c"), "the option -c"),
        (("python3", "-i", "main.py"), "the option -i"),
        (("python3", "-ux", "main.py"), "the option -ux"),
        (("python3", "-V"), "the option -V"),
        (("python3", "nothing.py"), "not a file of the image"),
        (("python3", "/app"), "not a file of the image"),
        (("python3", "main.pyc"), "not Python source"),
        (("python3", "zeros.py"), "not Python source"),
        (("/app/archive",), "not Python source"),
        (("env", "-i", "python3", "main.py"), "env with options"),
        (("env", "A=b", "python3", "main.py"), "env with options"),
        (("env", "-S", "python3 '-u'", "main.py"), "quotes or variables"),
    ],
)
def test_what_cannot_wait_is_refused_with_a_reason(layers: list[Path], arguments: tuple[str, ...], reason: str) -> None:
    with pytest.raises(NotPrimable) as refused:
        find(layers, *arguments)
    assert reason in refused.value.reason


def test_an_interactive_interpreter_is_refused(layers: list[Path]) -> None:
    with pytest.raises(NotPrimable, match="PYTHONINSPECT"):
        find(layers, "python3", "main.py", PYTHONINSPECT="1")


# Files in the layers of an image


def layer(directory: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content)
    return directory


def test_an_upper_layer_beats_a_lower_one(tmp_path: Path) -> None:
    lower = layer(tmp_path / "1", {"a/x": "lower", "a/y": "lower"})
    upper = layer(tmp_path / "2", {"a/x": "upper"})
    image = ImageFiles([lower, upper])
    assert (image.read("/a/x", 99), image.read("/a/y", 3), image.read("/a/z", 99)) == (b"upper", b"low", None)
    assert image.read("/a", 99) is None


def test_links_lead_where_they_do_inside_and_never_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    lower = layer(tmp_path / "1", {"a/x": "inside", "secret": "inside"})
    upper = tmp_path / "2"
    upper.mkdir()
    links = {
        "absolute": "/a/x", "relative": "a/x", "up": "../../../../secret", "directory": "/a",
        "outside": str(tmp_path / "secret"), "loop": "loop", "dangling": "nothing",
    }  # fmt: skip
    for name, target in links.items():
        (upper / name).symlink_to(target)
    image = ImageFiles([lower, upper])
    for inside in ("/absolute", "/relative", "/up", "/directory/x", "/directory/../a/./x", "//a//x"):
        assert image.read(inside, 99) == b"inside", inside
    for nowhere in ("/outside", "/loop", "/dangling", "/absolute/more"):
        assert image.status(nowhere) is None, nowhere


@pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and opaque directories need root")
def test_what_an_upper_layer_hides_is_not_there(tmp_path: Path) -> None:
    lower = layer(tmp_path / "1", {"gone": "", "hidden/x": "", "file/x": ""})
    upper = layer(tmp_path / "2", {"hidden/y": "", "file": ""})
    os.mknod(upper / "gone", 0o600 | 0o020000, os.makedev(0, 0))
    os.setxattr(upper / "hidden", OPAQUE, b"y")
    image = ImageFiles([lower, upper])
    assert [image.status(path) is None for path in ("/gone", "/hidden/x", "/file/x")] == [True] * 3
    assert image.read("/hidden/y", 9) == b""


def test_special_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert ImageFiles([tmp_path]).read("/pipe", 9) is None


def test_more_parts_than_a_link_may_have_end_the_search(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("x/" + "a/" * 1500)
    assert ImageFiles([tmp_path]).status("/x") is None
