#!/usr/bin/env python3
"""Makes a container image of a sample, or of any folder with a Python agent in it, with no container engine.

Three layers, lowest first: a Debian root with Python, the dependencies in /opt/site, the folder in /app.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from cupola.images import build as layout_writer
from cupola.images.build import Layer, LayoutWriter
from cupola.images.debian import build_base, compile_python, python_version
from cupola.images.steps import BuildError, once, run

REPOSITORY = Path(__file__).resolve().parent.parent
AGENT = REPOSITORY / "agent"
CACHE = REPOSITORY / ".cache" / "images"
COMMAND = ("python3", "main.py")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/opt/site",
    "PYTHONUNBUFFERED": "1",
}
_UV = Path(sys.executable).parent / "uv"
_NOT_SOURCE = ("__pycache__", "*.pyc", ".*")


def build(
    sample: Path,
    layout: Path,
    tag: str,
    requirements: Sequence[str] = (),
    command: Sequence[str] = COMMAND,
    *,
    cache: Path = CACHE,
) -> str:
    """Adds the image of `sample` as `tag` to the OCI layout in `layout`; gives its manifest's digest.

    It installs what `requirements.txt` of the sample and `requirements` say, or cupola-agent if neither says
    anything. cupola-agent is always the one of this repository. Hidden files of the sample are left out.
    Raises BuildError.
    """
    if not sample.is_dir():
        raise BuildError(f"{sample} is not a folder")
    if tuple(command) == COMMAND and not (sample / "main.py").is_file():
        raise BuildError(f"{sample} has no main.py, which the image would start")
    writer = LayoutWriter(layout)
    base = build_base(cache)
    wanted = [*_requirements(sample), *requirements] or ["cupola-agent"]
    layers = [
        _cached_layer(writer, cache, _key("base", base.name), lambda packed: packed.add_layer(base)),
        _cached_layer(
            writer,
            cache,
            _key("site", base.name, platform.machine(), *sorted(wanted), *_agent_source(wanted)),
            lambda packed: _add_site(packed, base, wanted),
        ),
        _add_source(writer, base, sample),
    ]
    return writer.add_image(
        layers,
        tag=tag,
        entrypoint=command,
        environment=ENVIRONMENT,
        working_directory="/app",
        user="agent",
        architecture=ARCHITECTURES[platform.machine()],
    )


def _cached_layer(writer: LayoutWriter, cache: Path, key: str, make: Callable[[LayoutWriter], Layer]) -> Layer:
    """The layer that `make` adds to a layout, made once per `key` and copied from there."""

    def pack(folder: Path) -> None:
        (folder / "layer.json").write_text(json.dumps(asdict(make(LayoutWriter(folder)))))

    packed = once(cache.absolute() / "layers" / key, pack)
    layer = Layer(**json.loads((packed / "layer.json").read_text()))
    writer.copy_layer(layer, packed)
    return layer


def _key(kind: str, *inputs: str) -> str:
    recipe = [Path(str(file)).read_text() for file in (layout_writer.__file__, __file__)]
    return f"{kind}-{hashlib.sha256(json.dumps([*recipe, *inputs]).encode()).hexdigest()[:16]}"


def _requirements(sample: Path) -> list[str]:
    file = sample / "requirements.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    found = [text for line in lines if (text := re.sub(r"(^|\s)#.*", "", line).strip())]
    for text in found:
        if text.startswith("-"):
            raise BuildError(f"{file} may only name packages, and says {text!r}")
    return found


def _is_agent(requirement: str) -> bool:
    name = re.match(r"[\w.-]*", requirement)
    return name is not None and re.sub(r"[-_.]+", "-", name[0]).lower() == "cupola-agent"


def _agent_dependencies(requirements: Sequence[str]) -> list[str]:
    """What the library depends on, with the extras that the requirements name. Raises BuildError for one it lacks."""
    project = tomllib.loads((AGENT / "pyproject.toml").read_text())["project"]
    dependencies = list(project["dependencies"])
    for requirement in requirements:
        named = re.match(r"[\w.-]+\s*\[([^\]]*)\]", requirement)
        for extra in named[1].split(",") if named else ():
            name = re.sub(r"[-_.]+", "-", extra.strip()).lower()
            if name not in project["optional-dependencies"]:
                raise BuildError(f"cupola-agent has no extra named {extra.strip()!r}")
            dependencies += project["optional-dependencies"][name]
    return dependencies


def _agent_source(wanted: Sequence[str]) -> list[str]:
    """The names and contents that the library is built of, where it is wanted."""
    if not any(_is_agent(requirement) for requirement in wanted):
        return []
    files = [AGENT / "pyproject.toml", AGENT / "README.md", *sorted((AGENT / "src").rglob("*.py"))]
    return [part for file in files for part in (str(file.relative_to(AGENT)), file.read_text())]


def _add_site(writer: LayoutWriter, base: Path, wanted: Sequence[str]) -> Layer:
    with TemporaryDirectory(dir=writer.directory) as folder:
        root, wheels = Path(folder) / "root", Path(folder) / "wheels"
        site = root / "opt" / "site"
        site.mkdir(parents=True)
        install: list[str | Path] = [_UV, "pip", "install", "--quiet", "--target", site]
        install += ["--python", sys.executable, "--python-version", python_version(base)]
        install += ["--python-platform", f"{platform.machine()}-manylinux_2_28", "--only-binary", ":all:"]
        others = [requirement for requirement in wanted if not _is_agent(requirement)]
        if len(others) < len(wanted):
            run([_UV, "build", "--quiet", "--wheel", "--out-dir", wheels, AGENT])
            # Not by uv, which notes paths and times of this machine beside what it installs from files.
            for wheel in wheels.glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)
            others += _agent_dependencies([requirement for requirement in wanted if _is_agent(requirement)])
        run([*install, *others])
        # The scripts name this machine's interpreter in their first line.
        shutil.rmtree(site / "bin", ignore_errors=True)
        compile_python(base, root, "opt/site")
        return writer.add_layer(root, plain_modes=True)


def _add_source(writer: LayoutWriter, base: Path, sample: Path) -> Layer:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(sample, root / "app", symlinks=True, ignore=shutil.ignore_patterns(*_NOT_SOURCE))
        compile_python(base, root, "app")
        return writer.add_layer(root, plain_modes=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", type=Path, help="folder with main.py, and requirements.txt if it needs any")
    parser.add_argument("layout", type=Path, help="folder of an OCI image layout, made if it is not there")
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--requirement", action="append", default=[], help="a package more; may be repeated")
    arguments = parser.parse_args()
    try:
        print(build(arguments.sample, arguments.layout, arguments.tag, arguments.requirement))
    except BuildError as error:
        sys.exit(f"build_sample: {error}")


if __name__ == "__main__":
    main()
