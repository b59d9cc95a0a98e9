"""The program of a waiting interpreter: it runs inside the image, never in the platform.

Its source is sent to an interpreter of the image (Python 3.8 or newer), so it uses what every interpreter has loaded
anyway and nothing else. It gets ready for the entry point as the interpreter itself would, imports ahead, waits for the
session's environment, removes what it made, and lets the entry point run in the same process.

The bootstrap in `client.py` executes this source, then runs `with guard: next(ready())`: what `ready` gives starts the
entry point from C, so that a single frame that is not the agent's lies at the bottom of its stack.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False  # the real one would import typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType, TracebackType
    from typing import Any, NoReturn

MESSAGE_LIMIT = 4 * 1024 * 1024
REASON_LIMIT = 200
CHANNEL_DESCRIPTOR = 1000
"""High, so that descriptors which the agent opens get the numbers they always get."""
BOOTSTRAP_NAMES = ("posix", "sys", "names", "program")

loaded: set[str]
"""Names of the modules that the interpreter had loaded before this program; set by the bootstrap."""


def read_exactly(channel: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = posix.read(channel, min(size - len(data), 1 << 16))
        if not piece:
            posix._exit(0)
        data += piece
    return data


def receive(channel: int) -> Any:
    """The next message of the platform, which is trusted. Ends the process when the platform has closed the channel."""
    size = int.from_bytes(read_exactly(channel, 4), "big")
    if size > MESSAGE_LIMIT:
        posix._exit(0)
    # JSON as an expression: the json module would have to be imported.
    constants = {"__builtins__": {}, "true": True, "false": False, "null": None}
    return eval(read_exactly(channel, size).decode(), constants)


def encode(value: object) -> str:
    """JSON of text, numbers, lists and dictionaries."""
    if isinstance(value, str):
        if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
            return f'"{value}"'
        return '"' + "".join("\\u%04x" % ord(letter) if letter < "\U00010000" else "?" for letter in value) + '"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{encode(name)}:{encode(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(encode, value)) + "]"
    return "null" if value is None else str(int(value))  # type: ignore[call-overload]


def send(channel: int, message: dict[str, object]) -> None:
    """Raises OSError when the platform has closed the channel."""
    body = encode(message).encode()
    data = len(body).to_bytes(4, "big") + body
    while data:
        data = data[posix.write(channel, data) :]


def describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"[:REASON_LIMIT]


def borrow(name: str) -> ModuleType:
    """A module for this program, which the agent will not find loaded unless it was."""
    known = name in sys.modules
    module = __import__(name)
    if not known:
        sys.modules.pop(name, None)
    return module


def take_channel() -> int:
    """Move the channel away from standard input, which becomes what it is in every sandbox: empty."""
    try:
        channel = posix.dup2(0, CHANNEL_DESCRIPTOR, inheritable=False)
    except OSError:  # the limit of descriptors is lower
        channel = posix.dup(0)
    null = posix.open("/dev/null", posix.O_RDONLY)
    posix.dup2(null, 0)
    posix.close(null)
    # What the interpreter made for the socket would say that it cannot be sought.
    import _io

    was = sys.stdin
    buffer = _io.open(0, "rb", closefd=False)
    buffer.raw.name = "<stdin>"  # type: ignore[misc]
    stdin = _io.TextIOWrapper(buffer, was.encoding, was.errors, newline="\n", line_buffering=was.line_buffering)
    stdin.mode = "r"  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = stdin  # type: ignore[misc]
    return channel


class EntryPoint:
    """What the interpreter would have run, as its command line says."""

    def __init__(self, kind: str, target: str, arguments: list[str], command: list[str]) -> None:
        self.kind = kind
        self.target = target
        self.arguments = arguments
        self.command = command
        self.directory = posix.getcwd()

    def prepare(self) -> Iterator[object]:
        """Make the interpreter look as if it had been started with this; gives what runs it when it is asked for an item.

        Raises whatever reading and compiling a script raises.
        """
        main = sys.modules["__main__"].__dict__
        for name in BOOTSTRAP_NAMES:
            main.pop(name, None)
        if hasattr(sys, "orig_argv"):
            sys.orig_argv[:] = self.command
        if self.kind == "script":
            first, path, running = self.target, self._import_path(), self._script(main)
        elif self.kind == "module":
            first, path, running = "-m", self.directory, self._module()
        else:
            first, path, running = "-c", "", self._command(main)
        sys.argv[:] = [first, *self.arguments]
        if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
            sys.path.insert(0, path)
        return running

    def _import_path(self) -> str:
        real: str = borrow("posixpath").realpath(self.target)
        return real[: real.rindex("/")] or "/"

    def _script(self, main: dict[str, object]) -> Iterator[object]:
        path = self.target
        if sys.version_info >= (3, 9) and not path.startswith("/"):
            path = self.directory.rstrip("/") + "/" + (path[2:] if path.startswith("./") else path)
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        forget_registered_source()
        import _frozen_importlib_external

        main["__file__"] = path
        main["__cached__"] = None
        main["__loader__"] = _frozen_importlib_external.SourceFileLoader("__main__", path)
        sys.path_importer_cache.setdefault(path, None)
        return map(exec, (code,), (main,))

    def _module(self) -> Iterator[object]:
        forget_registered_source()
        import runpy

        return map(runpy._run_module_as_main, (self.target,))  # type: ignore[attr-defined]

    def _command(self, main: dict[str, object]) -> Iterator[object]:
        code = compile(self.target + "\n", "<string>", "exec", dont_inherit=True)
        if sys.version_info >= (3, 13):
            # As the interpreter does it; what is registered now is the bootstrap.
            import linecache

            key = code if sys.version_info >= (3, 14) else "<string>"
            linecache._register_code(key, self.target + "\n", "<string>")  # type: ignore[attr-defined]
        return map(exec, (code,), (main,))

    def name_program(self) -> None:
        """Once runpy has imported the packages above a module, `sys.argv[0]` is its file."""
        above = self.target.rpartition(".")[0]
        if self.kind == "module" and sys.argv[0] == "-m" and (not above or above in sys.modules):
            spec = sys.modules["importlib.util"].find_spec(self.target)
            if spec is not None and spec.submodule_search_locations is not None:
                spec = sys.modules["importlib.util"].find_spec(self.target + ".__main__")
            if spec is not None:
                sys.argv[0] = spec.origin

    def run_cold(self, environment: dict[bytes, bytes]) -> NoReturn:
        """Start again from nothing, in the same process and with the same identity."""
        import _signal

        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        posix.execve(sys.executable, self.command, environment)


def forget_registered_source() -> None:
    """From 3.13 on an interpreter imports linecache to keep what it was given by `-c`."""
    if sys.version_info >= (3, 13):
        sys.modules.pop("linecache", None)
        loaded.discard("linecache")


class Guard:
    """Around the entry point's run: what it raises is shown without the frame of the bootstrap."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or issubclass(kind, SystemExit):
            return
        hook = sys.excepthook

        def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            sys.excepthook = hook
            trace = trace and trace.tb_next
            error.__traceback__ = sys.last_traceback = trace
            hook(kind, error, trace)

        sys.excepthook = show


class Surroundings:
    """What must not change while modules are imported ahead, and what may not change until the entry point runs."""

    def __init__(self) -> None:
        self._signals = self._handlers()
        self._sockets = self._open_sockets()

    def problem(self) -> str | None:
        """What an import has started or changed that an interpreter must not wait with."""
        if len(sys._current_frames()) != 1:
            return "a thread was started"
        if self._open_sockets() - self._sockets:
            return "a socket was opened"
        if self._handlers() != self._signals:
            return "a signal handler was changed"
        try:
            posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        except ChildProcessError:
            return None
        return "a process was started"

    @staticmethod
    def _handlers() -> list[object]:
        import _signal

        return [_signal.getsignal(number) for number in range(1, 32)]

    @staticmethod
    def _open_sockets() -> set[str]:
        found = set()
        for name in posix.listdir("/proc/self/fd"):
            try:
                target = posix.readlink(f"/proc/self/fd/{name}")
            except OSError:  # the one that listed them
                continue
            if target.startswith("socket:"):
                found.add(target)
        return found


class Places:
    """Where imports look, as it is now. Durable directories are mounted later and may change it."""

    def __init__(self, entry: EntryPoint) -> None:
        site = sys.modules.get("site")
        paths = [entry.directory if path == "" else path for path in sys.path if isinstance(path, str)]
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


def origin_of(name: str) -> str | None:
    """Where a loaded module is from."""
    origin = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None)
    return origin if isinstance(origin, str) else None


def import_ahead(entry: EntryPoint, modules: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Import modules in order; gives those that could not be, with reasons."""
    failed = {}
    for name, _ in modules:
        entry.name_program()
        try:
            __import__(name)
        except BaseException as error:
            failed[name] = describe(error)
    entry.name_program()
    return failed


def wrong_modules(wanted: Iterable[tuple[str, str | None]], unwanted: Iterable[str]) -> dict[str, str]:
    """What is loaded although it must not be, or from elsewhere than it should."""
    wrong = {name: "it must not be imported ahead" for name in unwanted if name in sys.modules and name not in loaded}
    for name, origin in wanted:
        if name in sys.modules and origin_of(name) != origin:
            wrong[name] = f"it was found in {origin_of(name)} instead of {origin}"[:REASON_LIMIT]
    return wrong


def prime(channel: int, entry: EntryPoint, request: dict[str, Any]) -> None:
    """Import ahead, report, wait for the environment, and make it this process's."""
    monotonic = borrow("time").monotonic
    gc = borrow("gc")
    started = monotonic()
    surroundings = Surroundings()
    known = {name.encode(): value.encode() for name, value in request["environment"]}
    collecting = gc.isenabled()
    gc.disable()
    failed = import_ahead(entry, request["modules"])
    if collecting:
        gc.enable()
    wrong = wrong_modules(request["modules"], request["unwanted"])
    problem = surroundings.problem()
    if wrong or problem:
        send(channel, {"type": "failed", "reason": problem or "modules are not the recorded ones", "modules": wrong})
        posix._exit(0)
    gc.collect()
    # Whether they may be collected needs no second look: modules live as long as the process.
    gc.freeze()
    entry.directory = posix.getcwd()
    places = Places(entry)
    took = int(1000 * (monotonic() - started))
    send(channel, {"type": "primed", "milliseconds": took, "count": len(request["modules"]), "skipped": failed})
    given = receive(channel)["environment"]
    environment = {name.encode(): value.encode() for name, value in given}
    reason = unforeseen(environment, known, request["variables"], places, entry)
    send(channel, {"type": "running", "cold": reason})
    if reason is not None:
        entry.run_cold(environment)
    replace_environment(environment, known)
    if entry.kind == "module":
        sys.argv[0] = "-m"
    restart_clocks()


def unforeseen(
    environment: dict[bytes, bytes], known: dict[bytes, bytes], variables: list[str], places: Places, entry: EntryPoint
) -> str | None:
    """Why what was imported ahead is of no use for this environment, if it is not."""
    watched = {name.encode() for name in variables}
    for name in environment.keys() | known.keys():
        if environment.get(name) != known.get(name) and name not in watched:
            return f"the variable {name.decode(errors='replace')} was not known to change"
    # The working directory may be below a directory that was mounted since.
    posix.chdir(entry.directory)
    changed = places.changed()
    return None if changed is None else f"{changed} is another one now"


def replace_environment(environment: dict[bytes, bytes], known: dict[bytes, bytes]) -> None:
    """Exactly these variables, with what the interpreter and imported modules did to the ones that they knew."""
    current = posix.environ
    for name in known.keys() | current.keys():
        if current.get(name) != known.get(name):
            if name in current:
                environment[name] = current[name]
            else:
                environment.pop(name, None)
    for name in list(current):
        posix.unsetenv(name)
    # `os.environ` is a view of this dictionary.
    current.clear()
    for name, value in environment.items():
        posix.putenv(name, value)
        current[name] = value


def restart_clocks() -> None:
    """The one clock of the standard library that starts with its import: that of relative times in log records."""
    handlers = sys.modules.get("wsgiref.handlers")
    if handlers is not None:
        handlers.BaseHandler.os_environ = handlers.read_environ()
    logging = sys.modules.get("logging")
    started = getattr(logging, "_startTime", None)
    if started is not None:
        time = borrow("time")
        logging._startTime = time.time_ns() if isinstance(started, int) else time.time()  # type: ignore[union-attr]


guard = Guard()


def ready() -> Iterator[object]:
    """Do what the platform asks; gives what runs the entry point when it is asked for an item."""
    for name in set(sys.modules) - loaded:
        del sys.modules[name]
    channel = take_channel()
    request = receive(channel)
    entry = EntryPoint(**request["entry_point"])
    try:
        running = entry.prepare()
        if request["type"] == "record":
            names: dict[str, Any] = {"__name__": "recorder"}
            exec(compile(request["recorder"], "<recorder>", "exec"), names)
            names["start"](lambda message: send(channel, message), request["variables"], request["directories"])
        else:
            prime(channel, entry, request)
            posix.close(channel)
    except BaseException as error:
        if request["type"] == "record":
            entry.run_cold(posix.environ)
        try:
            send(channel, {"type": "failed", "reason": describe(error), "modules": {}})
        finally:
            posix._exit(0)
    return running
