"""What a recording watches beside the imports themselves: whatever may be another in another session, or must not wait."""

# ruff: noqa: TC004 - what is imported for the type checker is in the namespace already

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False  # the real one would import typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, ModuleType
    from typing import Any

    from cupola.sessions.priming.inside.interpreter import borrow, open_sockets
    from cupola.sessions.priming.inside.recorder import Recorder

_PROCESS_EVENTS = frozenset({
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "os.spawn", "pty.spawn",
})  # fmt: skip
_NETWORK_EVENTS = frozenset({
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr",
})  # fmt: skip
_FILE_EVENTS = frozenset({
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink",
    "os.truncate", "os.utime", "os.chmod", "os.chown", "os.chdir", "sqlite3.connect",
})  # fmt: skip
_ASKERS = frozenset({"platform", "ctypes.util"})
"""Modules of the standard library that run a program of the image to ask it for what is the same in every session."""
_RESTARTED = frozenset({"logging", "wsgiref.handlers"})
"""What these note of the clock and the environment is set anew when the entry point runs."""

_CLOCK_METHODS = frozenset({"now", "utcnow", "today"})
_NEWER = sys.version_info >= (3, 12)
_OPCODES = borrow("opcode").opmap
_FUNCTION_BODY = 1


class Replacement:
    """Stands for a function of C, which is given to `function` together with its arguments.

    Unlike a function of Python, and like one of C, it does not become a method when a class has it. It equals the
    function, because `os` has sets of functions to look in.
    """

    def __init__(self, function: Callable[..., object], original: Callable[..., object]) -> None:
        self._function = function
        self._original = original

    def __call__(self, *arguments: object, **options: object) -> object:
        return self._function(self._original, *arguments, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._original, name)

    def __eq__(self, other: object) -> bool:
        return other is self or other == self._original

    def __hash__(self) -> int:
        return hash(self._original)


def watch_clock(recorder: Recorder, time: ModuleType) -> None:
    """The time of day. Clocks that only measure are not watched: what waits for a thread reads them."""

    def read(original: Callable[..., object], *arguments: object) -> object:
        # A given time is converted.
        if not arguments and recorder.stack() and not _called_from(_RESTARTED, 2):
            recorder.note("It reads the clock")
        return original(*arguments)

    for name in ("time", "time_ns", "localtime", "gmtime", "ctime"):
        recorder.replace(time, name, Replacement(read, getattr(time, name)))


def watch_signals(recorder: Recorder, module: ModuleType) -> None:
    """Signal handlers and timers."""

    def change(original: Callable[..., object], *arguments: object, **options: object) -> object:
        recorder.note("It changes the handling of signals")
        return original(*arguments, **options)

    for name in ("signal", "setitimer", "alarm", "set_wakeup_fd", "pthread_sigmask"):
        recorder.replace(module, name, Replacement(change, getattr(module, name)))


def watch_threads(recorder: Recorder, module: ModuleType) -> None:
    """Threads: what they do is done by the import that has started them, and none may outlive it."""

    def start(
        original: Callable[..., object], function: Callable[..., object], *arguments: object, **options: object
    ) -> object:
        return original(recorder.in_thread(function), *arguments, **options)

    # The module threading has them under names of its own.
    for name in ("start_new_thread", "_start_new_thread", "start_joinable_thread", "_start_joinable_thread"):
        original = getattr(module, name, None)
        if original is not None and not isinstance(original, Replacement):
            recorder.replace(module, name, Replacement(start, original))


def watch_warnings(recorder: Recorder, warnings: ModuleType) -> None:
    """A warning that is shown names the line of the import, which it could not when imported ahead."""
    original = warnings._showwarnmsg

    def show(message: object) -> None:
        recorder.note("It warns")
        original(message)

    recorder.replace(warnings, "_showwarnmsg", show)


def watch_os(recorder: Recorder, os: Any) -> None:
    """Environment variables, and the files of the session where no audit event tells of them."""

    def look(original: Callable[..., object], path: object, *arguments: object, **options: object) -> object:
        if recorder.stack():
            _note_path(recorder, path)
        return original(path, *arguments, **options)

    for name in ("stat", "lstat", "access"):
        recorder.replace(os, name, Replacement(look, getattr(os, name)))
    writers: dict[str, str] = {}
    for environment in (os.environ, os.environb):
        recorder.replace(environment, "__class__", _watched_environment(recorder, type(environment), writers))


def _watched_environment(recorder: Recorder, kind: type[Any], writers: dict[str, str]) -> type[Any]:
    """`writers` says who has set a variable last: whoever reads it depends on that."""

    def note(name: object, reads: bool) -> None:
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        if text in recorder.variables and not _called_from(_RESTARTED, 6):
            recorder.note(f"It uses the variable {text}")
        if not reads:
            writers[text] = recorder.writer()
        elif text in writers:
            recorder.depend(writers[text], f"The variable {text} was set")

    def note_all() -> None:
        if recorder.stack() and not _called_from(_RESTARTED, 6):
            recorder.note("It reads all environment variables")

    class Watched(kind):  # type: ignore[misc]
        def __getitem__(self, name: object) -> object:
            note(name, reads=True)
            return super().__getitem__(name)

        def __setitem__(self, name: object, value: object) -> None:
            note(name, reads=False)
            super().__setitem__(name, value)

        def __delitem__(self, name: object) -> None:
            note(name, reads=False)
            super().__delitem__(name)

        def __iter__(self) -> Iterator[object]:
            note_all()
            return iter(list(super().__iter__()))

        def __len__(self) -> int:
            note_all()
            return int(super().__len__())

        def __repr__(self) -> str:
            note_all()
            return str(super().__repr__())

    Watched.__name__, Watched.__qualname__, Watched.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Watched


WATCHES: dict[str, Callable[[Recorder, Any], None]] = {
    "time": watch_clock,
    "_signal": watch_signals,
    "_thread": watch_threads,
    "threading": watch_threads,
    "warnings": watch_warnings,
    "os": watch_os,
}
"""By the module that has to be loaded for it."""


def watch_audit_events(recorder: Recorder) -> None:
    """What the interpreter itself tells. The hook cannot be removed; it does nothing once the recording has ended."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if not recorder.stack():
            return
        if event in _FILE_EVENTS:
            _note_path(recorder, arguments[0])
        elif event == "exec":
            if reads_date(arguments[0]):
                recorder.note("It reads the clock")
        elif event == "socket.__new__":
            for entry in recorder.stack():
                if entry.sockets is None:
                    entry.sockets = open_sockets()
        elif event in _PROCESS_EVENTS:
            if not _called_from(_ASKERS, 20):
                recorder.note("It starts a process")
        elif event in _NETWORK_EVENTS:
            recorder.note("It uses the network")

    sys.addaudithook(audit)


def _note_path(recorder: Recorder, path: object) -> None:
    """A file that each session has its own of, or that shows the environment."""
    try:
        text = posix.fspath(path)  # type: ignore[call-overload]
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if not text.startswith("/"):
            text = posix.getcwd() + "/" + text
    except (TypeError, OSError):  # a descriptor, or a directory that is gone
        return
    if text.startswith("/proc/") and text.endswith(("/environ", "/cmdline")):
        recorder.note(f"It reads {text}")
    elif any(text == directory or text.startswith(directory + "/") for directory in recorder.directories):
        recorder.note(f"It looks at {text}")


def _called_from(modules: frozenset[str], depth: int) -> bool:
    """Whether one of `modules` is among the callers of the function that asks, at most `depth` above its caller."""
    frame: Any = sys._getframe(2)
    while frame is not None and depth:
        if frame.f_globals.get("__name__") in modules:
            return True
        frame, depth = frame.f_back, depth - 1
    return False


def reads_date(code: CodeType) -> bool:
    """Whether the body of a module, or of a class in it, calls `datetime.now()` or the like: no hook tells that."""
    called = _CLOCK_METHODS.intersection(code.co_names)
    if called and any(name in called for name in method_calls(code)):
        return True
    return any(
        isinstance(inner, type(code)) and not inner.co_flags & _FUNCTION_BODY and reads_date(inner)
        for inner in code.co_consts
    )


def method_calls(code: CodeType) -> Iterator[str]:
    """Names of the methods that a code object calls itself."""
    load, extended = _OPCODES["LOAD_ATTR" if _NEWER else "LOAD_METHOD"], _OPCODES["EXTENDED_ARG"]
    instructions, high = code.co_code, 0
    for place in range(0, len(instructions), 2):
        argument = high | instructions[place + 1]
        high = argument << 8 if instructions[place] == extended else 0
        if instructions[place] != load:
            continue
        if not _NEWER:
            yield code.co_names[argument]
        elif argument & 1:
            yield code.co_names[argument >> 1]
