"""The documentation names everything that exists, and its links lead somewhere."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from cyclopts import App

from cupola.cli.main import app
from cupola.sandbox.oci.runtime_config import CAPABILITIES
from cupola.sandbox.oci.seccomp import ALLOWED
from cupola.settings import Settings

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cupola"
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

CODE_LITERALS = (
    r'(?:CupolaError|unauthorized)\(\s*"(\w+)"',
    r'not_found\([^\n]*, "(\w+)"\)',
    r'code: str = "(\w+)"',
    r'_fail\(version, log, "(\w+)"',
    r'\bcode = "(\w+)" if [^\n]* else "\w+"',
    r'\bcode = (?:"\w+" if )?[^\n]* else "(\w+)"',
    r'"type": "error",\s*"code": "(\w+)"',
)


def prose(name: str) -> str:
    return (DOCS / name).read_text()


def first_cells(text: str) -> list[str]:
    """What stands in backquotes in the first cell of each row of a page's tables."""
    return re.findall(r"^\| `([^`|]+)`[^|]*\|", text, re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(page.read_text()))
    return [link for link in found if not link.startswith(("https://", "http://"))]


def commands(below: App, prefix: str = "cupola") -> Iterator[tuple[str, App]]:
    for name in below:
        if name.startswith("-"):
            continue
        found = below[name]
        if found.default_command is None:
            yield from commands(found, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", found


def error_codes() -> set[str]:
    texts = [path.read_text() for path in SOURCE.rglob("*.py")]
    return {code for text in texts for pattern in CODE_LITERALS for code in re.findall(pattern, text)}


def requirement_names(requirements: list[str]) -> list[str]:
    return [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), f"{link} does not exist"
        assert not anchor or anchor in anchors(target), f"{link} has no such heading"


def test_every_page_is_on_the_map() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "index.md")}
    assert set(DOCS.rglob("*.md")) - {DOCS / "index.md"} <= linked


def test_every_setting_is_described() -> None:
    text = prose("reference/settings.md")
    names = [entry.name for entry in fields(Settings)]
    for name in names:
        assert re.search(rf"^\| `{name}` \| `CUPOLA_{name.upper()}` \|", text, re.MULTILINE), f"{name} is not described"
    assert set(first_cells(text)) <= set(names)


def test_every_command_and_option_is_described() -> None:
    sections = re.split(r"^## ", prose("reference/command-line.md"), flags=re.MULTILINE)[1:]
    described = {section.splitlines()[0].strip("`"): section for section in sections}
    existing = dict(commands(app))
    assert set(described) == set(existing)
    for name, command in existing.items():
        for argument in command.assemble_argument_collection():
            if argument.parameter.name and argument.field_info.kind is inspect.Parameter.KEYWORD_ONLY:
                for option in argument.names:
                    assert f"`{option}" in described[name], f"{name}: {option} is not described"


def test_every_error_code_is_described() -> None:
    described = set(first_cells(prose("reference/errors.md")))
    existing = error_codes()
    assert existing - described == set(), "not described"
    assert described - existing == set(), "described, but no code gives it"


def test_the_rights_of_a_sandbox_are_described() -> None:
    text = prose("explanation/isolation.md")
    assert set(re.findall(r"`(CAP_\w+)`", text)) == set(CAPABILITIES)
    calls = text.partition("**Files.**")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", calls)) == set(ALLOWED)


def test_every_dependency_is_described() -> None:
    described = set(first_cells(prose("explanation/dependencies.md")))
    existing: set[str] = set()
    for path in (ROOT / "pyproject.toml", ROOT / "agent" / "pyproject.toml"):
        project = tomllib.loads(path.read_text())
        groups = project.get("dependency-groups", {}).values()
        for requirements in (project["project"]["dependencies"], project["build-system"]["requires"], *groups):
            existing.update(requirement_names(requirements))
    assert described == existing
