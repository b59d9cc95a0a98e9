"""The program of a smoke start that is watched: which modules are imported, and which must not be imported ahead.

Each module is reported when its import ends, with the reasons not to import it without the session and with the modules
that it needs. A reason holds for every module whose import was under way when it arose.
"""

# ruff: noqa: TC004 - what is imported for the type checker is in the namespace already

from __future__ import annotations

import _frozen_importlib
import _thread
import builtins
import posix
import sys

TYPE_CHECKING = False  # the real one would import typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from cupola.sessions.priming.inside.interpreter import REASON_LIMIT, EntryPoint, open_sockets, origin_of, send
    from cupola.sessions.priming.inside.watches import WATCHES, watch_audit_events

REASONS_LIMIT = 5
PROGRAM = ""
"""Stands for the program itself, outside of any import, where a module's name stands for the import of that module."""


class Import:
    """An import that is under way. `sockets` are those that were open when it made its first, `threads` those it runs."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.reasons: dict[str, None] = {}
        self.needs: dict[str, None] = {}
        self.provides: list[str] = []
        self.sockets: set[str] | None = None
        self.threads: set[object] = set()


class Recorder:
    """Watches imports by replacing what they go through, until the platform closes the channel."""

    def __init__(self, channel: int, variables: list[str], directories: list[str]) -> None:
        self.variables = frozenset(variables)
        self.directories = tuple(directories)
        self.active = True
        self._channel = channel
        self._process = posix.getpid()
        self._count = 0
        self._under_way: dict[int, list[Import]] = {}
        self._pending: set[str] = set()
        self._done: set[str] = set()
        self._bare = frozenset(sys.modules)
        self._seen = set(sys.modules)
        self._loaded = dict(sys.modules)
        """Modules as they were when they had been imported, to find those that are replaced."""
        self._path_writers: dict[str, str] = {}
        self._finder_writers: dict[str, None] = {}
        self._import_state = _import_state()
        self._undo: list[tuple[object, str, object, object]] = []

    # For those who watch: what happens while something is imported

    def stack(self) -> list[Import]:
        """What this thread is importing, innermost last. A thread that an import starts belongs to it."""
        return self._under_way.get(_thread.get_ident(), []) if self.active else []

    def note(self, reason: str) -> None:
        """A reason for all modules whose import is under way."""
        for entry in self.stack():
            if len(entry.reasons) < REASONS_LIMIT:
                entry.reasons[reason[:REASON_LIMIT]] = None

    def need(self, name: str) -> None:
        """The module whose import is under way makes use of another one."""
        stack = self.stack()
        if not stack or name == stack[-1].name:
            return
        if name not in self._bare:
            stack[-1].needs[name] = None
        if name in self._loaded and sys.modules.get(name) is not self._loaded[name]:
            self.note(f"It uses {name}, which was replaced")

    def depend(self, writer: str, what: str) -> None:
        """The module whose import is under way makes use of what `writer` has done."""
        if writer == PROGRAM:
            self.note(f"{what} by the program")
        else:
            self.need(writer)

    def writer(self) -> str:
        """Who is at work: the module whose import is under way, or the program."""
        stack = self.stack()
        return stack[-1].name if stack else PROGRAM

    def replace(self, holder: object, name: str, replacement: object) -> None:
        """Replace an attribute for as long as the recording lasts. Who kept a reference keeps the replacement."""
        self._undo.append((holder, name, getattr(holder, name), replacement))
        setattr(holder, name, replacement)

    def in_thread(self, function: Callable[..., object]) -> Callable[..., object]:
        """For a thread that the import under way starts with `function`: what it does is done by the import."""
        stack = list(self.stack())
        if not stack:
            return function
        token = object()
        for entry in stack:
            entry.threads.add(token)

        def run(*arguments: object, **options: object) -> object:
            self._under_way[_thread.get_ident()] = stack
            try:
                return function(*arguments, **options)
            finally:
                del self._under_way[_thread.get_ident()]
                for entry in stack:
                    entry.threads.discard(token)

        return run

    # Imports

    def start(self) -> None:
        """Begin to watch."""
        self._find_and_load = _frozen_importlib._find_and_load  # type: ignore[attr-defined]
        self.replace(_frozen_importlib, "_find_and_load", self._watched_find_and_load)
        self.replace(_frozen_importlib, "_gcd_import", self._watched_gcd_import())
        self.replace(builtins, "__import__", self._watched_import())
        for name in WATCHES:
            if name in sys.modules:
                WATCHES[name](self, sys.modules[name])
        watch_audit_events(self)

    def stop(self) -> None:
        """Undo what can be undone."""
        self.active = False
        for holder, name, original, replacement in self._undo:
            if getattr(holder, name) is replacement:
                setattr(holder, name, original)
        self._undo.clear()

    def _watched_find_and_load(self, name: str, import_: object) -> ModuleType:
        """In place of what every import of a module that is not loaded goes through."""
        if name in self._pending or name in self._done or not self.active or posix.getpid() != self._process:
            module: ModuleType = self._find_and_load(name, import_)
            self.need(name)
            return module
        stack = self._under_way.setdefault(_thread.get_ident(), [])
        self._notice_import_state(self.writer())
        self._notice_modules(stack[-1] if stack else None)
        self._count += 1
        entry = Import(name, self._count)
        stack.append(entry)
        self._pending.add(name)
        try:
            module = self._find_and_load(name, import_)
            self._finish(entry)
        except BaseException:
            if len(stack) > 1:
                # Whoever lives without this module tries to import it all the same.
                stack[-2].needs.update(entry.needs)
            raise
        finally:
            stack.pop()
            self._pending.discard(name)
        self._done.add(name)
        self._report(entry)
        self.need(name)
        return module

    def _finish(self, entry: Import) -> None:
        name = entry.name
        self._loaded[name] = sys.modules[name]
        for writer in self._finder_writers:
            self.depend(writer, "The way modules are found was changed")
        self._notice_import_state(name)
        self._notice_modules(entry)
        origin = origin_of(name) or ""
        for path, writer in self._path_writers.items():
            if origin.startswith(path + "/"):
                self.depend(writer, f"It is found in {path}, which was added")
        if "." in name:
            self.need(name.rpartition(".")[0])
        if entry.threads:
            self.note("It starts a thread")
        if entry.sockets is not None and open_sockets() - entry.sockets:
            self.note("It opens a socket")
        if name in WATCHES:
            WATCHES[name](self, sys.modules[name])

    def _report(self, entry: Import) -> None:
        message = {
            "type": "imported",
            "name": entry.name,
            "number": entry.number,
            "origin": origin_of(entry.name),
            "reasons": list(entry.reasons),
            "needs": list(entry.needs),
            "provides": entry.provides,
        }
        try:
            send(self._channel, message)
        except OSError:
            self.stop()

    def _notice_modules(self, entry: Import | None) -> None:
        """Find out which modules have come into being since the last time, without an import of their own."""
        new = sys.modules.keys() - self._seen
        self._seen |= new
        if entry is not None:
            entry.provides += [name for name in new if name not in self._pending and name not in self._done]

    def _notice_import_state(self, writer: str) -> None:
        """Find out whether `writer`, who was at work since the last time, has changed how modules are found."""
        before, after = self._import_state, _import_state()
        if before == after:
            return
        self._import_state = after
        for path in after[0]:
            if path not in before[0] and isinstance(path, str):
                self._path_writers[path.rstrip("/")] = writer
        if before[1] != after[1]:
            self._finder_writers[writer] = None

    def _watched_import(self) -> Callable[..., ModuleType]:
        original = builtins.__import__

        def watched(
            name: str,
            globals: Any = None,  # noqa: A002 - the names of what is replaced
            locals: Any = None,  # noqa: A002
            fromlist: Any = (),
            level: int = 0,
        ) -> ModuleType:
            module = original(name, globals, locals, fromlist, level)
            if self.stack():
                # An import relative to a package always has a list of names, and gives the module they are from.
                self._need_imported(module.__name__ if level else name, module, fromlist or ())
            return module

        return watched

    def _watched_gcd_import(self) -> Callable[..., ModuleType]:
        """For `importlib.import_module`."""
        original = _frozen_importlib._gcd_import  # type: ignore[attr-defined]

        def watched(name: str, package: str | None = None, level: int = 0) -> ModuleType:
            module: ModuleType = original(name, package, level)
            if self.stack():
                self._need_imported(module.__name__ if level else name, module, ())
            return module

        return watched

    def _need_imported(self, name: str, module: ModuleType, items: Any) -> None:
        if name == "__main__":
            self.note("It uses the module __main__")
        self.need(name)
        for item in getattr(module, "__all__", ()) if "*" in items else items:
            if f"{name}.{item}" in sys.modules:
                self.need(f"{name}.{item}")


def _import_state() -> tuple[tuple[object, ...], tuple[int, ...]]:
    return tuple(sys.path), tuple(map(id, (*sys.meta_path, *sys.path_hooks)))


def record(channel: int, entry: EntryPoint, request: dict[str, Any]) -> None:
    """Watch what the rest of this process imports."""
    Recorder(channel, request["variables"], request["directories"]).start()
