"""Which Python program an image runs, found without running anything: its command line, and scripts with a shebang."""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cupola.sessions.priming.image_files import ImageFiles

SCRIPT_LIMIT = 4 * 1024 * 1024
SHEBANG_LIMIT = 256
"""Bytes of a first line that Linux looks at."""

_INTERPRETER = re.compile(r"python(3(\.[0-9]{1,2})?)?", re.ASCII)
_FLAGS = frozenset("bBdEIOPqsSu")
_OPTIONS_WITH_VALUE = "WX"
_LONG_OPTION_WITH_VALUE = "--check-hash-based-pycs"
_ELF = b"\x7fELF"
_ZIP_END = b"PK\x05\x06"
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH


class NotPrimable(Exception):
    """No interpreter can be made ready ahead for this image; `reason` is in words for the owner of the agent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class EntryPoint:
    """A Python program.

    `interpreter` is as the image writes it, `options` are the interpreter's own. `target` is a script's path, a
    module's name or a program's text. `command` is the whole command line that the interpreter would see.
    """

    interpreter: str
    options: tuple[str, ...]
    kind: Literal["script", "module", "command"]
    target: str
    arguments: tuple[str, ...]
    command: tuple[str, ...]


def find_entry_point(
    arguments: Sequence[str], environment: Mapping[str, str], working_directory: str, layers: Sequence[Path]
) -> EntryPoint:
    """What the command line of an image runs. Reads the image's files; raises NotPrimable."""
    if not arguments or not arguments[0]:
        raise NotPrimable("The image has no entry point.")
    if environment.get("PYTHONINSPECT"):
        raise NotPrimable("PYTHONINSPECT asks for an interactive interpreter.")
    image = _Image(ImageFiles(layers), environment.get("PATH", ""), working_directory or "/")
    command = image.python_command(tuple(arguments))
    entry_point = _parse(command)
    if entry_point.kind == "script":
        image.check_script(entry_point.target)
    return entry_point


@dataclass(frozen=True)
class _Image:
    files: ImageFiles
    path: str
    working_directory: str

    def python_command(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """The command line that an interpreter gets in the end, by way of `env` and of one shebang."""
        arguments = _without_env(arguments)
        if _is_interpreter(arguments[0]):
            self.check_interpreter(arguments[0])
            return arguments
        program = self.find(arguments[0])
        head = self.files.read(posixpath.join(self.working_directory, program), SHEBANG_LIMIT) or b""
        if not head.startswith(b"#!"):
            raise NotPrimable(
                f"The entry point runs {arguments[0]}, which is not Python. Only a Python interpreter or a Python script "
                f'can be made ready ahead: write it in the exec form, as in ["python3", "main.py"].'
            )
        shebang = _shebang(head, arguments[0])
        if "/" in arguments[0] and not arguments[0].startswith("/"):
            # Runtimes differ in what they make of such a path, and the script would see it.
            raise NotPrimable(
                f"The entry point names the script by the relative path {arguments[0]}: write it in full."
            )
        command = _without_env((*shebang, program, *arguments[1:]))
        if not _is_interpreter(command[0]):
            raise NotPrimable(f"The entry point runs {arguments[0]}, a script for {command[0]}, which is not Python.")
        self.check_interpreter(command[0])
        return command

    def find(self, name: str) -> str:
        """The path of a program, as the runtime finds it. Raises NotPrimable."""
        if "/" in name:
            candidates = [name]
        else:
            candidates = [f"{directory}/{name}" for directory in self.path.split(":") if directory.startswith("/")]
        for candidate in candidates:
            status = self.files.status(posixpath.join(self.working_directory, candidate))
            if status is not None and stat.S_ISREG(status.st_mode) and status.st_mode & _EXECUTABLE:
                return candidate
        raise NotPrimable(f"The entry point runs {name}, which is not an executable file of the image.")

    def check_interpreter(self, name: str) -> None:
        if self.files.read(posixpath.join(self.working_directory, self.find(name)), len(_ELF)) != _ELF:
            raise NotPrimable(f"The entry point runs {name}, which is a script and not the interpreter itself.")

    def check_script(self, target: str) -> None:
        content = self.files.read(posixpath.join(self.working_directory, target), SCRIPT_LIMIT + 1)
        if content is None:
            raise NotPrimable(f"The entry point runs {target}, which is not a file of the image.")
        if len(content) > SCRIPT_LIMIT:
            raise NotPrimable(f"The entry point runs {target}, which is larger than {SCRIPT_LIMIT} bytes.")
        if target.endswith(".pyc") or _ZIP_END in content[-65_557:] or b"\0" in content:
            raise NotPrimable(f"The entry point runs {target}, which is not Python source.")


def _is_interpreter(program: str) -> bool:
    return _INTERPRETER.fullmatch(program.rpartition("/")[2]) is not None


def _without_env(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """`env PROGRAM …` runs PROGRAM; `env` that does more is not looked through."""
    if arguments[0] not in ("env", "/usr/bin/env", "/bin/env"):
        return arguments
    rest = arguments[1:]
    if rest and rest[0] == "-S" and len(rest) > 1:
        rest = (*_split(rest[1]), *rest[2:])
    elif rest and rest[0].startswith("-S"):
        rest = (*_split(rest[0][2:]), *rest[1:])
    if not rest or rest[0].startswith("-") or "=" in rest[0]:
        raise NotPrimable("The entry point uses env with options: name the interpreter itself.")
    return rest


def _split(text: str) -> list[str]:
    if set(text) & set("\\\"'$#"):
        raise NotPrimable("The entry point uses env -S with quotes or variables: name the interpreter itself.")
    return text.split()


def _shebang(head: bytes, name: str) -> tuple[str, ...]:
    """The interpreter of a script and its one argument, as Linux takes them apart."""
    line, newline, _ = head[2:].partition(b"\n")
    text = line.decode(errors="replace").strip(" \t")
    interpreter, _, argument = text.replace("\t", " ").partition(" ")
    if not newline or not interpreter.startswith("/") or text.endswith("\r"):
        raise NotPrimable(f"The first line of {name} does not name an interpreter by its full path.")
    return (interpreter, argument.strip(" ")) if argument else (interpreter,)


def _parse(command: tuple[str, ...]) -> EntryPoint:
    """Take a command line apart as the interpreter does."""
    options: list[str] = []
    rest = list(command[1:])
    while rest:
        word = rest.pop(0)
        if word == "-" or not word.startswith("-"):
            if word == "-":
                break
            return _entry_point(command, options, "script", word, rest)
        if word == "--":
            options.append(word)
            if rest and rest[0] != "-":
                return _entry_point(command, options[:-1], "script", rest[0], rest[1:])
            break
        if word == _LONG_OPTION_WITH_VALUE and rest:
            options += [word, rest.pop(0)]
            continue
        found = _take_letters(word, options, rest)
        if found is not None:
            return _entry_point(command, options, found[0], found[1], rest)
    raise NotPrimable("The entry point starts an interpreter without a program.")


def _take_letters(word: str, options: list[str], rest: list[str]) -> tuple[Literal["module", "command"], str] | None:
    """The letters of one option word; gives what a `-m` or `-c` among them runs."""
    for index, letter in enumerate(word[1:], 1):
        if letter in _FLAGS:
            continue
        value = word[index + 1 :]
        if not value and letter in "cm" + _OPTIONS_WITH_VALUE:
            if not rest:
                break
            value = rest.pop(0)
        if letter in _OPTIONS_WITH_VALUE:
            options += [word[:index], f"-{letter}", value] if index > 1 else [f"-{letter}", value]
            return None
        if letter in "cm":
            options += [word[:index]] if index > 1 else []
            return ("module", value) if letter == "m" else ("command", value)
        break
    else:
        options.append(word)
        return None
    raise NotPrimable(f"The entry point gives the interpreter the option {word}, which cannot be made ready ahead.")


def _entry_point(
    command: tuple[str, ...],
    options: Sequence[str],
    kind: Literal["script", "module", "command"],
    target: str,
    arguments: Sequence[str],
) -> EntryPoint:
    return EntryPoint(command[0], tuple(options), kind, target, tuple(arguments), command)
