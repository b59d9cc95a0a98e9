"""The first program: makes the interpreter look as if it had been started with the entry point, and then runs that.

The bootstrap of `client.py` executes this and then runs `with guard: next(ready())`. What `ready` gives starts the entry
point from C, so that a single frame which is not the agent's lies at the bottom of its stack.
"""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False  # the real one would import typing
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType, TracebackType
    from typing import Any, NoReturn

MESSAGE_LIMIT = 4 * 1024 * 1024
REASON_LIMIT = 200
CHANNEL_DESCRIPTOR = 1000
"""High, so that descriptors which the agent opens get the numbers they always get."""
BOOTSTRAP_NAMES = ("posix", "sys", "names", "program")

loaded: set[str] = globals()["loaded"]
"""Names of the modules that the interpreter had loaded before this program; from the bootstrap."""


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
    return eval(read_exactly(channel, size).decode(), constants)  # noqa: S307 - the platform may do here what it likes


def encode(value: object) -> str:
    """JSON of text, whole numbers, lists and dictionaries."""
    if isinstance(value, str):
        if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
            return f'"{value}"'
        return '"' + "".join(f"\\u{ord(letter):04x}" if letter < "\U00010000" else "?" for letter in value) + '"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{encode(name)}:{encode(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(encode, value)) + "]"
    return "null" if value is None else str(value)


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
    known = set(sys.modules)
    module = __import__(name)
    for new in set(sys.modules) - known:
        del sys.modules[new]
    return module


def origin_of(name: str) -> str | None:
    """Where a loaded module is from."""
    origin = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None)
    return origin if isinstance(origin, str) else None


def open_sockets() -> set[str]:
    """What `/proc` calls the sockets of this process."""
    found = set()
    for name in posix.listdir("/proc/self/fd"):
        try:
            target = posix.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor that listed them
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def take_channel() -> int:
    """Move the channel away from standard input, which becomes what it is in every sandbox: empty."""
    try:
        channel = posix.dup2(0, CHANNEL_DESCRIPTOR, inheritable=False)
    except OSError:  # the limit of descriptors is lower
        channel = posix.dup(0)
    null = posix.open("/dev/null", posix.O_RDONLY)
    posix.dup2(null, 0)
    posix.close(null)
    # The object that the interpreter made for the socket would say that it cannot be sought.
    import _io

    was: Any = sys.stdin
    buffer: Any = _io.open(0, "rb", closefd=False)
    buffer.raw.name = "<stdin>"
    stdin: Any = _io.TextIOWrapper(buffer, was.encoding, was.errors, "\n", was.line_buffering, was.write_through)
    stdin.mode = "r"
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
        """Make the interpreter look as if it had been started with this; gives what runs it when asked for an item.

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
            first, path, running = "-c", "", self._text(main)
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
            path = self.directory.rstrip("/") + "/" + path
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not to be imported
            code = compile(file.read(), path, "exec", dont_inherit=True)
        _forget_registered_source()
        import _frozen_importlib_external

        main["__file__"] = path
        main["__cached__"] = None
        main["__loader__"] = _frozen_importlib_external.SourceFileLoader("__main__", path)
        sys.path_importer_cache.setdefault(path, None)
        return map(exec, (code,), (main,))

    def _module(self) -> Iterator[object]:
        _forget_registered_source()
        import runpy

        return map(runpy._run_module_as_main, (self.target,))  # type: ignore[attr-defined]

    def _text(self, main: dict[str, object]) -> Iterator[object]:
        code = compile(self.target + "\n", "<string>", "exec", dont_inherit=True)
        if sys.version_info >= (3, 13):
            # As the interpreter does it; what is registered now is the bootstrap.
            import linecache

            key = code if sys.version_info >= (3, 14) else "<string>"
            linecache._register_code(key, self.target + "\n", "<string>")  # type: ignore[attr-defined]
        return map(exec, (code,), (main,))

    def run_cold(self, environment: Mapping[bytes, bytes]) -> NoReturn:
        """Start again from nothing, as the same process."""
        signals: Any = sys.modules["_signal"]
        for number in (signals.SIGPIPE, signals.SIGXFSZ):
            signals.signal(number, signals.SIG_DFL)
        posix.execve(sys.executable, self.command, environment)


def _forget_registered_source() -> None:
    """From 3.13 on an interpreter imports linecache to keep what it was given by `-c`, and looks for it here first."""
    if sys.version_info >= (3, 13):
        sys.modules.pop("linecache", None)
        loaded.discard("linecache")
        sys.path_importer_cache.pop(posix.getcwd(), None)


class Guard:
    """Around the entry point's run: what it raises is shown without the frame of the bootstrap."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or isinstance(error, SystemExit) or trace is None:
            return
        error.__traceback__ = inner = trace.tb_next
        if sys.version_info >= (3, 11):  # noqa: UP036 - of the platform, not of an image
            return
        # Older interpreters go on with the traceback that they have had before.
        hook = sys.excepthook

        def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            sys.excepthook = hook
            error.__traceback__ = sys.last_traceback = inner
            try:
                hook(kind, error, inner)
            except BaseException:
                # What the hook raises is shown with the traceback that it has now. With a name for it in the clause above,
                # the interpreter would set that once more.
                failure: Any = sys.exc_info()[1]
                failure.__traceback__ = failure.__traceback__.tb_next
                raise

        sys.excepthook = show


guard = Guard()


def ready() -> Iterator[object]:
    """Do what the platform asks; gives what runs the entry point when it is asked for an item."""
    for name in set(sys.modules) - loaded:
        del sys.modules[name]
    channel = take_channel()
    request = receive(channel)
    entry = EntryPoint(**request["entry_point"])
    names = globals()
    try:
        running = entry.prepare()
        loaded.update(sys.modules)
        for program in request["programs"]:
            exec(compile(program, ready.__code__.co_filename, "exec"), names)  # noqa: S102 - a program of ours
        for name in set(sys.modules) - loaded:
            del sys.modules[name]
        names[request["task"]](channel, entry, request)
    except BaseException as error:
        try:
            send(channel, {"type": "failed", "reason": describe(error), "modules": {}})
        finally:
            posix._exit(0)
    return running
