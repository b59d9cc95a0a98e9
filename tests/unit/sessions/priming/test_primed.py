"""A primed interpreter does what a cold one does: every program here is run by both, and what they print is compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cupola.sessions.priming.plan import make_plan
from tests.unit.sessions.priming.interpreters import (
    ENVIRONMENT,
    INTERPRETERS,
    Result,
    entry_point,
    record,
    run_cold,
    run_primed,
    version_of,
)  # fmt: skip

OBSERVER = """
import atexit, asyncio, builtins, gc, importlib.util, json, logging, os, os.path, signal, sys, threading, time, warnings
import helper

def observe():
    main = sys.modules["__main__"]
    names = [n for n in vars(main) if n not in ("__builtins__", "observe")]
    print("argv", sys.argv, getattr(sys, "orig_argv", None))
    print("flags", sys.flags, sys.warnoptions, sys._xoptions, warnings.filters)
    print("path", sys.path, [p for p in sorted(sys.path_importer_cache) if sys.prefix not in p], sys.meta_path, sys.path_hooks)
    print("main", names, __name__, __doc__, __package__, __spec__, globals().get("__file__"), globals().get("__cached__", 0))
    print("loader", type(__loader__), getattr(__loader__, "name", 0), getattr(__loader__, "path", 0))
    print("builtins", sorted(vars(builtins)), __builtins__ is builtins, __import__, print)
    print("same", main.__dict__ is globals(), getattr(main, "observe", 0) is observe)
    print("executable", sys.executable, sys.prefix, sys.exec_prefix, sys.base_prefix)
    print("environ", list(os.environ.items()), list(os.environb), type(os.environ), os.environ)
    with os.popen("/usr/bin/env") as child:
        print("child", child.read())
    print("directory", os.getcwd(), os.umask(0o22))
    print("descriptors", sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/fd/0"))
    print("threads", threading.enumerate(), os.listdir("/proc/self/task") == [str(os.getpid())])
    print("signals", [signal.getsignal(n) for n in range(1, 65)], signal.pthread_sigmask(signal.SIG_BLOCK, []))
    print("modules", sorted(sys.modules), [n for n, m in sys.modules.items() if m is None])
    print("hooks", sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__)
    print("tracing", sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), sys.getswitchinterval())
    print("last", [hasattr(sys, n) for n in ("last_type", "last_value", "last_traceback", "last_exc")], sys.exc_info())
    print("gc", gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.callbacks)
    for stream in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__):
        print("stream", stream, stream.name, stream.mode, stream.encoding, stream.errors, stream.newlines, stream.isatty())
        print(stream.line_buffering, stream.write_through, stream.seekable(), stream.fileno(), stream.buffer, stream.closed)
    print("stdin", repr(sys.stdin.read()), sys.stdin is sys.__stdin__, helper.STDIN is sys.stdin)
    print("functions", time.time, os.stat, signal.signal, importlib.util.find_spec.__module__, threading._start_new_thread
          if hasattr(threading, "_start_new_thread") else None)
    print("helper", helper.SEEN, helper.__file__, hash("text") == hash("text"))
    print("session", os.environ.get("SESSION"), os.getenv("SESSION"))
    print("depth", sys._getframe(1).f_code.co_name, sys._getframe(1).f_globals is globals())

observe()
"""

HELPER = """
import os, sys
SEEN = (list(sys.argv[1:]), os.getcwd(), __name__, __package__, sys.path[:1])
STDIN = sys.stdin
"""


@dataclass(frozen=True)
class Case:
    """A program: `files` by name, and the command that runs it, without the interpreter."""

    files: Mapping[str, str]
    command: tuple[str, ...] = ("main.py",)
    environment: Mapping[str, str] = field(default_factory=dict)
    newest: tuple[int, int] | None = None
    oldest: tuple[int, int] = (3, 8)


OBSERVED = {"main.py": OBSERVER, "helper.py": HELPER}
PACKAGE = {"package/__init__.py": "import helper", "package/__main__.py": OBSERVER, "helper.py": HELPER}

LOOKS = {
    "script": Case(OBSERVED),
    "arguments": Case(OBSERVED, ("main.py", "-c", "--", "", "ünï", "a b", "'\"\\")),
    "script in a directory": Case(
        {"bin/main.py": OBSERVER, "bin/helper.py": HELPER, "helper.py": "wrong"}, ("bin/main.py",)
    ),
    "dotted path": Case({"bin/main.py": OBSERVER, "bin/helper.py": HELPER}, ("./bin/../bin/main.py",)),
    "script without a suffix": Case({"tool": "#!/usr/bin/python3\n" + OBSERVER, "helper.py": HELPER}, ("tool", "x")),
    "package": Case(PACKAGE, ("-m", "package", "a", "b")),
    "package in a package": Case(
        {
            "outer/__init__.py": "import sys; print(sys.argv[0])",
            "outer/inner/__init__.py": "import sys; print(sys.argv[0])",
            "outer/inner/__main__.py": OBSERVER,
            "helper.py": HELPER + "\nprint(sys.argv[0])",
        },
        ("-um", "outer.inner", "a"),
    ),
    "module": Case({"program.py": OBSERVER, "helper.py": HELPER}, ("-m", "program")),
    "module that its package imports": Case(
        {"package/__init__.py": "", "package/program.py": OBSERVER + "\nimport package.program", "helper.py": HELPER},
        ("-m", "package.program"),
    ),
    "module that its helper imports": Case(
        {"package/__init__.py": "", "package/program.py": OBSERVER, "helper.py": HELPER + "\nimport package.program"},
        ("-m", "package.program"),
    ),
    "text": Case({"helper.py": HELPER}, ("-c", OBSERVER, "a")),
    **{f"option {' '.join(options)}": Case(OBSERVED, (*options, "main.py")) for options in (
        ("-u",), ("-O",), ("-OO",), ("-B",), ("-s",), ("-S",), ("-E",), ("-b",), ("-q",), ("-Xdev",), ("-X", "utf8=0"),
        ("-W", "error"), ("-Wignore", "-Wdefault"), ("-uBs",), ("--",),
    )},
    "option -I": Case({"main.py": OBSERVER.replace("import helper", "").replace("helper.", "os.")
                       .replace("os.SEEN, os.__file__,", "").replace("os.STDIN is", "0 is")}, ("-I", "main.py")),
    "option -P": Case({"main.py": OBSERVER, "library/helper.py": HELPER}, ("-P", "main.py"),
                      {"PYTHONPATH": "library"}, oldest=(3, 11)),
    **{f"variable {name}={value}": Case(OBSERVED, ("main.py",), {name: value}) for name, value in (
        ("PYTHONUNBUFFERED", "1"), ("PYTHONOPTIMIZE", "2"), ("PYTHONUTF8", "0"), ("PYTHONUTF8", "1"), ("LC_ALL", "C"),
        ("LC_ALL", "C.UTF-8"), ("PYTHONIOENCODING", "latin-1:replace"), ("PYTHONPATH", "/nonexistent:library"),
        ("PYTHONDEVMODE", "1"), ("PYTHONHASHSEED", "7"), ("PYTHONWARNINGS", "error"), ("PYTHONNOUSERSITE", "1"),
        ("PYTHONCOERCECLOCALE", "0"), ("ODD", "a=b ünï\n'\"\\"),
    )},
}  # fmt: skip

ENDS = {
    "a number": "sys.exit(3)",
    "nothing": "sys.exit()",
    "text": "sys.exit('sorry')",
    "falling off": "print('done')",
    "at once": "os._exit(7)",
    "an exception": "raise ValueError('wrong')",
    "an exception in functions": "def f(): g()\ndef g(): [][1]\nf()",
    "chained exceptions": "try: 1/0\nexcept Exception as e: raise KeyError('x') from e",
    "an exception while another is handled": "try: 1/0\nexcept Exception: raise KeyError('x')",
    "an exception in an imported module": "import broken",
    "a module that does not exist": "import nothing_of_that_name",
    "a syntax error in an imported module": "import crooked",
    "an interrupt": "raise KeyboardInterrupt",
    "a signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "an interrupt by signal": "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
    "a hook of the program": "sys.excepthook = lambda k, e, t: print('hook', k, e, t.tb_lineno, t.tb_frame.f_code.co_name)\n1/0",
    "a hook that fails": "def hook(*a): raise OSError\nsys.excepthook = hook\n1/0",
    "the traceback kept": "import atexit\n@atexit.register\ndef last():\n"
    "  t = sys.last_traceback\n  print(t.tb_frame.f_code.co_filename, t.tb_next, sys.excepthook)\n1/0",
    "functions registered for the end": "import atexit\natexit.register(print, 'end')\nprint('x', end='')",
    "an exception at the end": "import atexit\natexit.register(lambda: 1/0)",
    "a thread that is not waited for": "import threading\nthreading.Thread(target=lambda: (time.sleep(.05), print('late'))).start()",
    "a thread that fails": "import threading\nt = threading.Thread(target=lambda: 1/0, name='t')\nt.start()\nt.join()",
    "an exception of no class": "class Odd(BaseException): pass\nraise Odd('x')",
    "an exit by exception group": "raise SystemExit(ValueError('x'))",
}

WORKS = {
    "pickle": "import pickle\nclass A:\n  x = 1\nprint(pickle.loads(pickle.dumps(A())).x, pickle.dumps(A))",
    "source": "import inspect\ndef f():\n  return 1\nprint(inspect.getsource(f), inspect.getfile(f), inspect.getmodule(f))\n"
    "print(inspect.getsource(sys.modules['__main__'])[:20])",
    "asyncio": "import asyncio\nasync def f():\n  await asyncio.sleep(0)\n  return asyncio.get_running_loop().is_running()\n"
    "print(asyncio.run(f()))",
    "asyncio subprocess": "import asyncio\nasync def f():\n  p = await asyncio.create_subprocess_exec('/bin/echo', 'x')\n"
    "  print(await p.wait())\nasyncio.run(f())",
    "server": "import socketserver, threading, socket\ns = socketserver.TCPServer(('127.0.0.1', 0), socketserver.StreamRequestHandler)\n"
    "t = threading.Thread(target=s.handle_request)\nt.start()\nsocket.create_connection(s.server_address).close()\nt.join()\nprint(s.fileno())",
    "spawn": "import multiprocessing as m\ndef f(x): print('in', x, __name__, sys.argv, os.environ['SESSION'], flush=True)\n"
    "if __name__ == '__main__':\n  m.set_start_method('spawn')\n  p = m.Process(target=f, args=(1,))\n  p.start(); p.join(); print(p.exitcode)",
    "fork": "import multiprocessing as m\ndef f(x): print('in', x, __name__, flush=True)\n"
    "p = m.get_context('fork').Process(target=f, args=(1,))\np.start(); p.join(); print(p.exitcode)",
    "pool": "from concurrent.futures import ProcessPoolExecutor\nimport multiprocessing as m\ndef f(x): return x * x, __name__\n"
    "if __name__ == '__main__':\n  with ProcessPoolExecutor(1, m.get_context('spawn')) as e: print(list(e.map(f, [1, 2])))",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as e: print(list(e.map(abs, [-1])))",
    "resources": "import pkgutil\nprint(pkgutil.get_data('data', 'x.txt'))\nimport importlib.resources as r\n"
    "print(r.read_text('data', 'x.txt') if sys.version_info < (3, 9) else (r.files('data') / 'x.txt').read_text())",
    "runpy": "import runpy\nprint(runpy.run_path('data/__init__.py')['__file__'], runpy.run_module('data.inner')['__name__'])",
    "main imported": "import main\nprint(main is sys.modules['__main__'], __name__) if __name__ == '__main__' else print('again')",
    "input": "try: input()\nexcept EOFError: print('nothing there')",
    "subprocess": "import subprocess\nprint(subprocess.run([sys.executable, '-c', 'import os,sys; print(os.environ[\"SESSION\"], sys.stdin.read())'], "
    "stdout=-1).stdout)",
    "exec of another": "os.execv(sys.executable, [sys.executable, '-c', 'import os; print(sorted(os.listdir(\"/proc/self/fd\")), os.environ[\"SESSION\"])'])",
    "handler": "signal.signal(signal.SIGTERM, lambda *a: print('term'))\nos.kill(os.getpid(), signal.SIGTERM)",
    "warning": "import warnings\nwarnings.warn('here')\ndef f(): warnings.warn('there', stacklevel=2)\nf()",
    "gateway interface": "import wsgiref.handlers as h\nprint(h.BaseHandler.os_environ['SESSION'], list(h.BaseHandler.os_environ))",
    "lazy": "print(int.__name__)\ndef f():\n  import decimal, fractions\n  return decimal.Decimal(1)\nprint(f())",
    "future": "from __future__ import annotations\ndef f(x: int): pass\nprint(f.__annotations__)",
    "no future": "def f(x: int): pass\nprint(f.__annotations__)",
    "typing": "import dataclasses, typing, enum, collections\n@dataclasses.dataclass\nclass A:\n  x: int\nN = collections.namedtuple('N', 'a')\n"
    "print(A(1), N(1).__class__.__module__, enum.Enum('E', 'a').__module__, typing.get_type_hints(A))",
    "doctest": "'''Text.\n\n>>> 1 + 1\n2\n'''\nimport doctest\nprint(doctest.testmod(), __doc__)",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertEqual(__name__, '__main__')\n"
    "unittest.main(argv=['x', '-q'], exit=False)",
}

SUPPORT = {
    "broken.py": "1/0",
    "crooked.py": "def (:",
    "data/__init__.py": "",
    "data/inner.py": "",
    "data/x.txt": "content",
}
START = "import os, signal, sys, time\n"


async def _compare(case: Case, interpreter: str, directory: Path) -> Result:
    """Run a program cold, watched and primed; what they print must be the same."""
    for name, content in case.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    environment = {**ENVIRONMENT, "SESSION": "ours", **case.environment, "LAST": "1"}
    entry = entry_point(interpreter, *case.command)
    cold = run_cold(entry, environment, directory)
    watched, recording = await record(entry, {**environment, "SESSION": "watched"}, directory)
    assert watched.code == cold.code, watched.stderr
    plan = make_plan(recording)
    primed, report = await run_primed(entry, plan, environment, directory)
    assert report.skipped == {}
    assert primed.cold is None
    assert _lines(primed) == _lines(cold)
    return primed


def _lines(result: Result) -> list[str]:
    """Whatever a program has shown, without what differs from run to run."""
    text = re.sub(r"0x[0-9a-f]+|[0-9]{10,}|pid=\d+", "…", f"{result.stdout}\n{result.stderr}\n{result.code}")
    return text.splitlines()


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize("name", LOOKS)
async def test_nothing_looks_different(name: str, interpreter: str, tmp_path: Path) -> None:
    case = LOOKS[name]
    if version_of(interpreter) < case.oldest:
        pytest.skip(f"{interpreter} does not have this")
    result = await _compare(case, interpreter, tmp_path)
    assert result.code == 0, result.stderr
    assert "session ours ours" in result.stdout


@pytest.mark.parametrize("name", ENDS)
async def test_it_ends_in_the_same_way(name: str, tmp_path: Path) -> None:
    await _compare(Case({"main.py": START + ENDS[name], **SUPPORT}), INTERPRETERS[0], tmp_path)


@pytest.mark.parametrize("name", WORKS)
async def test_it_works_in_the_same_way(name: str, tmp_path: Path) -> None:
    future = WORKS[name].startswith("from __future__")
    program = WORKS[name] if future or name == "doctest" else START + WORKS[name]
    result = await _compare(Case({"main.py": program, **SUPPORT}), INTERPRETERS[0], tmp_path)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("interpreter", INTERPRETERS[1:])
async def test_programs_work_with_every_interpreter(interpreter: str, tmp_path: Path) -> None:
    for number, (name, program) in enumerate((*ENDS.items(), ("spawn", WORKS["spawn"]), ("pool", WORKS["pool"]))):
        await _compare(Case({"main.py": START + program, **SUPPORT}), interpreter, tmp_path / str(number)), name
