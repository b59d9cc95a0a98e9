"""The program of a waiting interpreter: imports ahead, waits for the session's environment, and makes it its own."""

# ruff: noqa: TC004 - what is imported for the type checker is in the namespace already

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False  # the real one would import typing
if TYPE_CHECKING:
    from typing import Any

    from cupola.sessions.priming.inside.interpreter import (
        REASON_LIMIT,
        EntryPoint,
        borrow,
        describe,
        loaded,
        open_sockets,
        origin_of,
        receive,
        send,
    )  # fmt: skip

EARLY_VARIABLES = frozenset({b"HOME", b"LANG", b"PATH", b"TZ"})
EARLY_PREFIXES = (b"PYTHON", b"LC_", b"LD_", b"MALLOC_", b"GLIBC_")
"""Variables that matter before the first import: to the interpreter itself or to the C library."""


class Surroundings:
    """What must not change while modules are imported ahead."""

    def __init__(self) -> None:
        self._signals = self._handlers()
        self._sockets = open_sockets()

    def problem(self) -> str | None:
        """What an import has started or changed that an interpreter must not wait with."""
        if len(sys._current_frames()) != 1:
            return "A thread was started while modules were imported"
        if open_sockets() - self._sockets:
            return "A socket was opened while modules were imported"
        if self._handlers() != self._signals:
            return "A signal handler was changed while modules were imported"
        try:
            posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        except ChildProcessError:
            return None
        return "A process was started while modules were imported"

    @staticmethod
    def _handlers() -> list[object]:
        signals: Any = sys.modules["_signal"]
        return [signals.getsignal(number) for number in range(1, signals.NSIG)]


class Places:
    """Where imports look, as it is now. Durable directories are mounted later and may change it."""

    def __init__(self, entry: EntryPoint) -> None:
        site = sys.modules.get("site")
        entries: list[object] = [*sys.path]
        paths = [path or entry.directory for path in entries if isinstance(path, str)]
        if site is not None and getattr(site, "ENABLE_USER_SITE", None):
            paths.append(site.USER_SITE)
        if entry.kind == "script":
            paths.append(entry.target)
        self._seen = [(path, self._look(path)) for path in paths]

    def changed(self) -> str | None:
        """The first of them that is another one now."""
        return next((path for path, seen in self._seen if self._look(path) != seen), None)

    @staticmethod
    def _look(path: str) -> tuple[int, ...] | None:
        try:
            status = posix.stat(path)
        except (OSError, ValueError):
            return None
        return (status.st_mode, status.st_dev, status.st_ino, status.st_mtime_ns)


def prime(channel: int, entry: EntryPoint, request: dict[str, Any]) -> None:
    """Import ahead, report, and wait until the entry point is to run."""
    monotonic = borrow("time").monotonic
    started = monotonic()
    surroundings = Surroundings()
    modules = [(name, origin) for name, origin in request["modules"] if not is_main(entry, name, origin)]
    failed = import_ahead(entry, modules)
    # What the imports left behind is not to be collected after the wait.
    borrow("gc").collect()
    wrong = wrong_modules(modules, request["unwanted"])
    problem = surroundings.problem()
    if wrong or problem:
        message = problem or "What was imported is not what was recorded"
        send(channel, {"type": "failed", "reason": message, "modules": wrong})
        posix._exit(0)
    entry.directory = posix.getcwd()
    places = Places(entry)
    took = int(1000 * (monotonic() - started))
    send(channel, {"type": "primed", "milliseconds": took, "count": len(modules) - len(failed), "skipped": failed})
    given = receive(channel)["environment"]
    known = {name.encode(): value.encode() for name, value in request["environment"]}
    environment = {name.encode(): value.encode() for name, value in given}
    reason = unforeseen(environment, known, request["variables"], places, entry)
    if reason is None:
        replace_environment(environment, known)
        restart_standard_library()
        if entry.kind == "module":
            sys.argv[0] = "-m"
    send(channel, {"type": "running", "cold": reason})
    if reason is not None:
        entry.run_cold(environment)
    posix.close(channel)


def is_main(entry: EntryPoint, name: str, origin: str | None) -> bool:
    """Whether a module is the one that runs as `__main__`, of which runpy warns when it is loaded already."""
    if entry.kind != "module":
        return False
    package = origin is not None and origin.endswith("/__init__.py")
    return name == entry.target + ".__main__" or (name == entry.target and not package)


def import_ahead(entry: EntryPoint, modules: list[tuple[str, str | None]]) -> dict[str, str]:
    """Import modules in order; gives those that could not be, with reasons."""
    failed = {}
    for name, _ in modules:
        name_program(entry)
        try:
            __import__(name)
        except BaseException as error:
            failed[name] = describe(error)
    name_program(entry)
    return failed


def name_program(entry: EntryPoint) -> None:
    """For `-m`, make `sys.argv[0]` the module's file once the packages above it are imported, as runpy does."""
    if entry.kind != "module" or sys.argv[0] != "-m":
        return
    name = entry.target
    above = name.rpartition(".")[0]
    if above and above not in sys.modules:
        return
    find_spec = sys.modules["importlib.util"].find_spec
    spec = find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = find_spec(name + ".__main__") if name in sys.modules else None
    if spec is not None and spec.origin is not None:
        sys.argv[0] = spec.origin


def wrong_modules(wanted: list[tuple[str, str | None]], unwanted: list[str]) -> dict[str, str]:
    """What is loaded although it must not be, or from elsewhere than it should."""
    wrong = {name: "it must not be imported ahead" for name in unwanted if name in sys.modules and name not in loaded}
    for name, origin in wanted:
        if name in sys.modules and origin_of(name) != origin:
            wrong[name] = f"it was found in {origin_of(name)} instead of {origin}"[:REASON_LIMIT]
    return wrong


def unforeseen(
    environment: dict[bytes, bytes], known: dict[bytes, bytes], variables: list[str], places: Places, entry: EntryPoint
) -> str | None:
    """Why what was imported ahead is of no use for this environment, if it is not."""
    watched = {name.encode() for name in variables}
    for name in environment.keys() | known.keys():
        early = name in EARLY_VARIABLES or name.startswith(EARLY_PREFIXES)
        if environment.get(name) != known.get(name) and (early or name not in watched):
            return f"The variable {name.decode()} must not change from session to session"
    # The working directory may be below a directory that was mounted since.
    posix.chdir(entry.directory)
    changed = places.changed()
    return None if changed is None else f"{changed} has changed since modules were looked for there"


def replace_environment(environment: dict[bytes, bytes], known: dict[bytes, bytes]) -> None:
    """Exactly these variables, with what the interpreter and imported modules did to the ones that they knew."""
    current = posix.environ
    final = dict(environment)
    for name in known.keys() - current.keys():
        final.pop(name, None)
    final.update((name, value) for name, value in current.items() if known.get(name) != value)
    for name in list(current):
        posix.unsetenv(name)
    # `os.environ` is a view of this dictionary.
    current.clear()
    for name, value in final.items():
        posix.putenv(name, value)
        current[name] = value


def restart_standard_library() -> None:
    """What modules of the standard library note about the clock and the environment when they are imported."""
    logging = sys.modules.get("logging")
    started = getattr(logging, "_startTime", None)
    if started is not None:
        time = borrow("time")
        logging._startTime = time.time_ns() if isinstance(started, int) else time.time()  # type: ignore[union-attr]
    handlers = sys.modules.get("wsgiref.handlers")
    if hasattr(handlers, "read_environ"):
        handlers.BaseHandler.os_environ = handlers.read_environ()  # type: ignore[union-attr]
