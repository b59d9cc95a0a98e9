"""The program that watches a smoke start from inside: which modules are imported, and which must not be imported ahead.

It runs inside the image like `interpreter.py`, which executes this source in the process that then runs the entry point.
Each module is reported when its import ends, with the reasons not to import it without the session and with the
modules it needs. Reasons hold for every module whose import was under way when they arose. What cannot be taken back
(an audit hook) does nothing once the platform has closed the channel.
"""

from __future__ import annotations

import _frozen_importlib
import _signal
import _thread
import builtins
import posix
import sys
import time

TYPE_CHECKING = False  # the real one would import typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, ModuleType
    from typing import Any

REASON_LIMIT = 200
REASONS_LIMIT = 5
PROGRAM = ""
"""Stands for the program itself, outside of any import, where a module's name stands for the import of that module."""

_STARTS_A_THREAD = ("_thread.start_new_thread", "_thread.start_joinable_thread")
_STARTS_A_PROCESS = (
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "os.spawn", "pty.spawn",
)  # fmt: skip
_USES_THE_NETWORK = (
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.gethostbyaddr",
)  # fmt: skip
_TOUCHES_FILES = (
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink",
    "os.truncate", "os.utime", "os.chmod", "os.chown", "os.chdir", "sqlite3.connect",
)  # fmt: skip
_CLOCKS = ("time", "time_ns", "localtime", "gmtime", "ctime")
_CLOCK_METHODS = frozenset({"now", "utcnow", "today"})
_SIGNALS = ("signal", "setitimer", "alarm", "set_wakeup_fd", "pthread_sigmask")
_STATUS = ("stat", "lstat", "access")
_LOAD_METHOD = 160
_EXTENDED_ARG = 144
"""Numbers of Python 3.8 to 3.11."""
_FUNCTION_BODY = 1


class Import:
    """An import that is under way."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.reasons: dict[str, None] = {}
        self.needs: dict[str, None] = {}
        self.sockets: set[str] | None = None


class Recorder:
    """Watches imports by replacing what they go through, and reports them by `send`."""

    def __init__(self, send: Callable[[dict[str, object]], None], variables: list[str], directories: list[str]) -> None:
        self._send = send
        self._process = posix.getpid()
        self._variables = frozenset(variables)
        self._directories = tuple(directories)
        self._active = True
        self._count = 0
        self._under_way: dict[int, list[Import]] = {}
        self._pending: set[str] = set()
        self._done: set[str] = set()
        self._loaded = dict(sys.modules)
        """Modules as they were when they had been imported, to find those that are replaced."""
        self._bare = frozenset(sys.modules)
        self._seen = set(sys.modules)
        self._writers: dict[str, str] = {}
        self._path_writers: dict[str, str] = {}
        self._finder_writers: dict[str, None] = {}
        self._import_state = self._look_at_import_state()
        self._undo: list[tuple[object, str, object, object]] = []

    # What happens while something is imported

    def _stack(self) -> list[Import]:
        return self._under_way.get(_thread.get_ident(), [])

    def note(self, reason: str) -> None:
        """A reason for all modules whose import is under way."""
        for entry in self._stack():
            if len(entry.reasons) < REASONS_LIMIT:
                entry.reasons[reason[:REASON_LIMIT]] = None

    def need(self, name: str) -> None:
        """The module whose import is under way makes use of another one, or of what the program itself has done."""
        stack = self._stack()
        if not stack or name == stack[-1].name:
            return
        if name not in self._bare:
            stack[-1].needs[name] = None
        if name in self._loaded and sys.modules.get(name) is not self._loaded[name]:
            self.note(f"uses {name}, which was replaced")

    def _depend(self, writer: str, what: str) -> None:
        if writer == PROGRAM:
            self.note(f"{what} the program before it")
        else:
            self.need(writer)

    def find_and_load(self, name: str, import_: object) -> ModuleType:
        """In place of the function that every import of a module that is not loaded goes through."""
        if not self._active or posix.getpid() != self._process or name in self._pending or name in self._done:
            module: ModuleType = self._original_find_and_load(name, import_)
            self.need(name)
            return module
        stack = self._under_way.setdefault(_thread.get_ident(), [])
        self._notice_import_state(stack[-1].name if stack else PROGRAM)
        if not stack:
            self._seen |= sys.modules.keys()
        self._count += 1
        entry = Import(name, self._count)
        stack.append(entry)
        self._pending.add(name)
        try:
            for writer in self._finder_writers:
                self._depend(writer, "is found by what was installed by")
            module = self._original_find_and_load(name, import_)
        except BaseException:
            stack.pop()
            raise
        else:
            self._finish(entry)
            stack.pop()
            self._done.add(name)
            self._report(entry)
        finally:
            self._pending.discard(name)
        self.need(name)
        return module

    def _finish(self, entry: Import) -> None:
        name = entry.name
        self._loaded[name] = sys.modules[name]
        origin = getattr(getattr(sys.modules[name], "__spec__", None), "origin", None)
        above = name.rpartition(".")[0]
        if above:
            self.need(above)
        for path, writer in self._path_writers.items():
            if isinstance(origin, str) and origin.startswith(path + "/"):
                self._depend(writer, f"is found in {path}, added by")
        if entry.sockets is not None and self._open_sockets() - entry.sockets:
            self.note("opens a socket")
        self._notice_import_state(name)
        if name == "os":
            self._watch_os()
        elif name == "warnings":
            self._watch_warnings()

    def _report(self, entry: Import) -> None:
        module = sys.modules[entry.name]
        origin = getattr(getattr(module, "__spec__", None), "origin", None)
        new = sys.modules.keys() - self._seen
        self._seen |= new
        self.send(
            {
                "type": "imported",
                "name": entry.name,
                "number": entry.number,
                "origin": origin if isinstance(origin, str) else None,
                "reasons": list(entry.reasons),
                "needs": list(entry.needs),
                "provides": [name for name in new if name not in self._pending and name not in self._done],
            }
        )

    def send(self, message: dict[str, object]) -> None:
        try:
            self._send(message)
        except OSError:
            self.stop()

    def _look_at_import_state(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return tuple(sys.path), tuple(map(id, (*sys.meta_path, *sys.path_hooks)))

    def _notice_import_state(self, writer: str) -> None:
        before, after = self._import_state, self._look_at_import_state()
        if before == after:
            return
        self._import_state = after
        for path in after[0]:
            if path not in before[0] and isinstance(path, str):
                self._path_writers[path.rstrip("/")] = writer
        if before[1] != after[1]:
            self._finder_writers[writer] = None

    @staticmethod
    def _open_sockets() -> set[str]:
        found = set()
        for name in posix.listdir("/proc/self/fd"):
            try:
                target = posix.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            if target.startswith("socket:"):
                found.add(target)
        return found

    # What is replaced for as long as the recording lasts

    def start(self) -> None:
        """Begin to watch."""
        self._original_find_and_load = _frozen_importlib._find_and_load  # type: ignore[attr-defined]
        self._replace(_frozen_importlib, "_find_and_load", self.find_and_load)
        self._replace(_frozen_importlib, "_gcd_import", self._watching_gcd_import())
        self._replace(builtins, "__import__", self._watching_import())
        for name in _SIGNALS:
            self._replace(_signal, name, self._noting(getattr(_signal, name), "changes the handling of signals"))
        for name in _CLOCKS:
            self._replace(time, name, self._watching_clock(getattr(time, name)))
        if "os" in sys.modules:
            self._watch_os()
        if "warnings" in sys.modules:
            self._watch_warnings()
        sys.addaudithook(self._audit)

    def stop(self) -> None:
        """Undo what can be undone; what someone has kept a reference to passes everything on."""
        self._active = False
        for holder, name, original, replacement in self._undo:
            if getattr(holder, name) is replacement:
                setattr(holder, name, original)
        self._undo.clear()

    def _replace(self, holder: object, name: str, replacement: object) -> None:
        self._undo.append((holder, name, getattr(holder, name), replacement))
        setattr(holder, name, replacement)

    def _noting(self, original: Callable[..., Any], reason: str) -> Callable[..., Any]:
        def noting(*arguments: Any, **options: Any) -> Any:
            self.note(reason)
            return original(*arguments, **options)

        return noting

    def _watching_clock(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*arguments: Any) -> Any:
            # A given time is converted. The clock of logging is set anew when the entry point runs.
            if not arguments and sys._getframe(1).f_globals.get("__name__") != "logging":
                self.note("reads the clock")
            return original(*arguments)

        return watching

    def _watching_import(self) -> Callable[..., Any]:
        original = builtins.__import__

        def watching(
            name: str,
            globals: Any = None,
            locals: Any = None,
            fromlist: Any = (),
            level: int = 0,  # noqa: A002
        ) -> ModuleType:
            module = original(name, globals, locals, fromlist, level)
            if self._stack():
                # An import relative to a package always has a list of names, and gives the module they are from.
                self._need_imported(module.__name__ if level else name, module, fromlist or ())
            return module

        return watching

    def _watching_gcd_import(self) -> Callable[..., Any]:
        original = _frozen_importlib._gcd_import  # type: ignore[attr-defined]

        def watching(name: str, package: str | None = None, level: int = 0) -> ModuleType:
            module: ModuleType = original(name, package, level)
            if self._stack():
                self._need_imported(module.__name__ if level else name, module, ())
            return module

        return watching

    def _need_imported(self, name: str, module: ModuleType, items: Any) -> None:
        if name == "__main__":
            self.note("uses the module __main__")
        self.need(name)
        for item in getattr(module, "__all__", ()) if "*" in items else items:
            if f"{name}.{item}" in sys.modules:
                self.need(f"{name}.{item}")

    def _watch_warnings(self) -> None:
        """A warning that is shown names the line of the import, which it could not when imported ahead."""
        warnings = sys.modules["warnings"]
        if hasattr(warnings, "_showwarnmsg"):
            self._replace(warnings, "_showwarnmsg", self._noting(warnings._showwarnmsg, "warns"))

    def _watch_os(self) -> None:
        os: Any = sys.modules["os"]
        for name in _STATUS:
            self._replace(os, name, self._watching_status(getattr(os, name)))
        for name in ("environ", "environb"):
            environ = getattr(os, name)
            self._replace(environ, "__class__", self._watching_environment(type(environ)))

    def _watching_status(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def watching(path: Any, *arguments: Any, **options: Any) -> Any:
            if self._stack():
                self._note_path(path)
            return original(path, *arguments, **options)

        return watching

    def _note_path(self, path: object) -> None:
        if isinstance(path, int):
            return
        text = posix.fspath(path)  # type: ignore[arg-type]
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if not text.startswith("/"):
            text = posix.getcwd() + "/" + text
        if text.startswith("/proc/") and text.endswith(("/environ", "/cmdline")):
            self.note(f"reads {text}")
        elif any(text == directory or text.startswith(directory + "/") for directory in self._directories):
            self.note(f"looks at {text}")

    # Environment variables

    def _read(self, name: object) -> None:
        if called_from("wsgiref.handlers", 6):
            return
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        if text in self._variables:
            self.note(f"reads {text}")
        if text in self._writers:
            self._depend(self._writers[text], f"reads {text}, set by")

    def _read_all(self) -> None:
        if self._stack() and not called_from("wsgiref.handlers", 6):
            self.note("reads all environment variables")

    def _write(self, name: object) -> None:
        stack = self._stack()
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        self._writers[text] = stack[-1].name if stack else PROGRAM
        if text in self._variables:
            self.note(f"sets {text}")

    def _watching_environment(self, kind: type[Any]) -> type[Any]:
        recorder = self

        class Watching(kind):  # type: ignore[misc]
            def __getitem__(self, name: object) -> object:
                if recorder._stack():
                    recorder._read(name)
                return super().__getitem__(name)

            def __setitem__(self, name: object, value: object) -> None:
                recorder._write(name)
                super().__setitem__(name, value)

            def __delitem__(self, name: object) -> None:
                recorder._write(name)
                super().__delitem__(name)

            def __iter__(self) -> Iterator[object]:
                recorder._read_all()
                yield from super().__iter__()

            def __len__(self) -> int:
                recorder._read_all()
                return int(super().__len__())

            def __repr__(self) -> str:
                recorder._read_all()
                return super().__repr__()

        Watching.__name__, Watching.__qualname__ = kind.__name__, kind.__qualname__
        Watching.__module__ = kind.__module__
        return Watching

    # What the interpreter itself tells

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active or not self._stack():
            return
        if event in _TOUCHES_FILES:
            if arguments and arguments[0] is not None:
                self._note_path(arguments[0])
        elif event == "exec":
            if reads_date(arguments[0]):
                self.note("reads the clock")
        elif event == "socket.__new__":
            for entry in self._stack():
                if entry.sockets is None:
                    entry.sockets = self._open_sockets()
        elif event in _STARTS_A_THREAD:
            self.note("starts a thread")
        elif event in _STARTS_A_PROCESS:
            if not called_from("platform"):
                self.note("starts a process")
        elif event in _USES_THE_NETWORK:
            self.note("uses the network")


def called_from(module: str, depth: int = 100) -> bool:
    frame = sys._getframe(1)
    while frame is not None and depth:
        if frame.f_globals.get("__name__") == module:
            return True
        frame, depth = frame.f_back, depth - 1
    return False


def reads_date(code: CodeType) -> bool:
    """Whether the body of a module, or of a class in it, calls `datetime.now()` or the like: no hook tells that."""
    called = _CLOCK_METHODS.intersection(code.co_names)
    if called and any(name in called for name in method_calls(code)):
        return True
    kind = type(code)
    return any(
        isinstance(inner, kind) and not inner.co_flags & _FUNCTION_BODY and reads_date(inner)
        for inner in code.co_consts
    )


def method_calls(code: CodeType) -> Iterator[str]:
    """Names of the methods that a code object calls itself."""
    newer = sys.version_info >= (3, 12)
    load, extended = _LOAD_METHOD, _EXTENDED_ARG
    if newer:
        opcode = sys.modules.get("opcode")
        if opcode is None:
            opcode = __import__("opcode")
            del sys.modules["opcode"]
        load, extended = opcode.opmap["LOAD_ATTR"], opcode.opmap["EXTENDED_ARG"]
    instructions, high = code.co_code, 0
    for place in range(0, len(instructions), 2):
        argument = high | instructions[place + 1]
        high = argument << 8 if instructions[place] == extended else 0
        if instructions[place] != load:
            continue
        if not newer:
            yield code.co_names[argument]
        elif argument & 1:
            yield code.co_names[argument >> 1]


def start(send: Callable[[dict[str, object]], None], variables: list[str], directories: list[str]) -> None:
    """Record what the rest of this process imports."""
    Recorder(send, variables, directories).start()
