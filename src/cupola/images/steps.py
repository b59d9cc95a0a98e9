"""What every builder is made of: a command that has to succeed, and a folder that is made once."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_SHOWN_COMMAND = 400
_SHOWN_LINES = 20


class BuildError(RuntimeError):
    """An image could not be built. The message names the command, where there was one, and its last lines."""


def run(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> bytes:
    """Runs `command` in `folder`, with `environment` added to ours and `content` as its input.

    Gives its output. Raises BuildError when it cannot be started or ends with anything but 0.
    """
    arguments = [str(argument) for argument in command]
    try:
        result = subprocess.run(
            arguments,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            input=b"" if content is None else content,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise BuildError(f"{arguments[0]} cannot be started: {error}") from error
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip()).decode(errors="replace").splitlines()
        shown = shlex.join(arguments)
        shown = shown if len(shown) <= _SHOWN_COMMAND else shown[:_SHOWN_COMMAND] + " ..."
        raise BuildError("\n".join([f"exit status {result.returncode}: {shown}", *lines[-_SHOWN_LINES:]]))
    return result.stdout


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, filled by `make` unless it is there already.

    It is whole or absent: `make` gets an empty folder beside it, which is renamed when done. One process at a
    time makes, the others wait and find the result.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            partial = folder.parent / f".{folder.name}.partial"
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder
