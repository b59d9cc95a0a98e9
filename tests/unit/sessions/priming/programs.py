"""Programs whose output tells whether they run in a primed interpreter. They need Python 3.8 and the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import dedent

START = "import os, signal, sys, time\n"

OBSERVER = """
import builtins, gc, importlib.util, json, logging, os, os.path, signal, sys, threading, time, warnings
import helper

def observe():
    main = sys.modules["__main__"]
    names = [n for n in vars(main) if n not in ("__builtins__", "observe")]
    print("argv", sys.argv, getattr(sys, "orig_argv", None))
    print("flags", sys.flags, sys.warnoptions, sys._xoptions, warnings.filters)
    print("path", sys.path, [p for p in sorted(sys.path_importer_cache) if sys.prefix not in p])
    print("finders", sys.meta_path, sys.path_hooks)
    print("main", names, __name__, __doc__, __package__, __spec__)
    print("file", globals().get("__file__"), globals().get("__cached__", 0))
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
    last = "last_type", "last_value", "last_traceback", "last_exc"
    print("last", [hasattr(sys, n) for n in last], sys.exc_info())
    print("gc", gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.callbacks)
    for stream in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__):
        print("stream", stream, stream.name, stream.mode, stream.encoding, stream.errors, stream.newlines)
        print(stream.line_buffering, stream.write_through, stream.seekable(), stream.isatty())
        print(stream.fileno(), stream.buffer, stream.closed)
    print("stdin", repr(sys.stdin.read()), sys.stdin is sys.__stdin__)
    print("functions", time.time, os.stat, signal.signal, importlib.util.find_spec.__module__)
    print("threads start by", getattr(threading, "_start_new_thread", None))
    print("helper", helper.SEEN, helper.__file__, helper.STDIN is sys.stdin)
    print("session", os.environ.get("SESSION"), os.getenv("SESSION"))
    print("depth", sys._getframe(1).f_code.co_name, sys._getframe(1).f_globals is globals())

observe()
"""

HELPER = """
import os, sys
SEEN = (list(sys.argv[1:]), os.getcwd(), __name__, __package__, sys.path[:1])
STDIN = sys.stdin
"""


ALONE = "\n".join(line for line in OBSERVER.splitlines() if "helper" not in line)
"""For an interpreter that does not look for modules beside the program."""


def dedented(programs: Mapping[str, str]) -> dict[str, str]:
    return {name: dedent(text).strip() for name, text in programs.items()}


@dataclass(frozen=True)
class Case:
    """A program: `files` by name, and the command that runs it, without the interpreter."""

    files: Mapping[str, str]
    command: tuple[str, ...] = ("main.py",)
    environment: Mapping[str, str] = field(default_factory=dict)
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
    **{
        f"options {' '.join(options)}": Case(OBSERVED, (*options, "main.py"))
        for options in (
            ("-uOBsbq",), ("-OO", "-S"), ("-E",), ("-Xdev",), ("-X", "utf8=0", "-W", "error"), ("-Wignore", "-Wdefault"),
            ("--",),
        )
    },
    "option -I": Case({"main.py": ALONE}, ("-I", "main.py")),
    "option -P": Case(
        {"main.py": OBSERVER, "library/helper.py": HELPER}, ("-P", "main.py"), {"PYTHONPATH": "library"}, oldest=(3, 11)
    ),
    **{
        f"variables {' '.join(variables)}": Case(OBSERVED, ("main.py",), variables)
        for variables in (
            {"PYTHONUNBUFFERED": "1", "PYTHONOPTIMIZE": "2", "PYTHONHASHSEED": "7", "PYTHONNOUSERSITE": "1"},
            {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1:replace"},
            {"PYTHONUTF8": "1", "PYTHONWARNINGS": "error"},
            {"LC_ALL": "C"},
            {"LC_CTYPE": "C", "PYTHONCOERCECLOCALE": "0"},
            {"LC_ALL": "C.UTF-8", "PYTHONPATH": "/nonexistent:library"},
            {"PYTHONDEVMODE": "1", "ODD": "a=b ünï\n'\"\\"},
        )
    },
}  # fmt: skip

ENDS = dedented(
    {
        "a number": "sys.exit(3)",
        "nothing": "sys.exit()",
        "text": "sys.exit('sorry')",
        "falling off": "print('done')",
        "at once": "os._exit(7)",
        "an exception": "raise ValueError('wrong')",
        "an exception in functions": """
            def f(): g()
            def g(): [][1]
            f()
            """,
        "chained exceptions": """
            try: 1/0
            except Exception as e: raise KeyError('x') from e
            """,
        "an exception while another is handled": """
            try: 1/0
            except Exception: raise KeyError('x')
            """,
        "an exception in an imported module": "import broken",
        "a module that does not exist": "import nothing_of_that_name",
        "a syntax error in an imported module": "import crooked",
        "an interrupt": "raise KeyboardInterrupt",
        "a signal": "os.kill(os.getpid(), signal.SIGTERM)",
        "an interrupt by signal": "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)",
        "a hook of the program": """
            sys.excepthook = lambda k, e, t: print('hook', k, e, t.tb_lineno, t.tb_frame.f_code.co_name)
            1/0
            """,
        "a hook that fails": """
            def hook(*a): raise OSError
            sys.excepthook = hook
            1/0
            """,
        "the traceback kept": """
            import atexit
            @atexit.register
            def last():
              t = sys.last_traceback
              print(t.tb_frame.f_code.co_filename, t.tb_next, sys.excepthook)
            1/0
            """,
        "functions registered for the end": """
            import atexit
            atexit.register(print, 'end')
            print('x', end='')
            """,
        "an exception at the end": """
            import atexit
            atexit.register(lambda: 1/0)
            """,
        "a thread that is not waited for": """
            import threading
            threading.Thread(target=lambda: (time.sleep(.05), print('late'))).start()
            """,
        "a thread that fails": """
            import threading
            t = threading.Thread(target=lambda: 1/0, name='t')
            t.start()
            t.join()
            """,
        "an exception of no class": """
            class Odd(BaseException): pass
            raise Odd('x')
            """,
        "an exit by exception group": "raise SystemExit(ValueError('x'))",
    }
)

WORKS = dedented(
    {
        "pickle": """
            import pickle
            class A:
              x = 1
            print(pickle.loads(pickle.dumps(A())).x, pickle.dumps(A))
            """,
        "source": """
            import inspect
            def f():
              return 1
            print(inspect.getsource(f), inspect.getfile(f), inspect.getmodule(f))
            print(inspect.getsource(sys.modules['__main__'])[:20])
            """,
        "asyncio": """
            import asyncio
            async def f():
              await asyncio.sleep(0)
              return asyncio.get_running_loop().is_running()
            print(asyncio.run(f()))
            """,
        "asyncio subprocess": """
            import asyncio
            async def f():
              p = await asyncio.create_subprocess_exec('/bin/echo', 'x')
              print(await p.wait())
            asyncio.run(f())
            """,
        "server": """
            import socketserver, threading, socket
            s = socketserver.TCPServer(('127.0.0.1', 0), socketserver.StreamRequestHandler)
            t = threading.Thread(target=s.handle_request)
            t.start()
            socket.create_connection(s.server_address).close()
            t.join()
            print(s.fileno())
            """,
        "spawn": """
            import multiprocessing as m
            def f(x): print('in', x, __name__, sys.argv, os.environ['SESSION'], flush=True)
            if __name__ == '__main__':
              m.set_start_method('spawn')
              p = m.Process(target=f, args=(1,))
              p.start(); p.join(); print(p.exitcode)
            """,
        "fork": """
            import multiprocessing as m
            def f(x): print('in', x, __name__, flush=True)
            p = m.get_context('fork').Process(target=f, args=(1,))
            p.start(); p.join(); print(p.exitcode)
            """,
        "pool": """
            from concurrent.futures import ProcessPoolExecutor
            import multiprocessing as m
            def f(x): return x * x, __name__
            if __name__ == '__main__':
              with ProcessPoolExecutor(1, m.get_context('spawn')) as e: print(list(e.map(f, [1, 2])))
            """,
        "thread pool": """
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(2) as e: print(list(e.map(abs, [-1])))
            """,
        "resources": """
            import pkgutil
            print(pkgutil.get_data('data', 'x.txt'))
            import importlib.resources as r
            old = sys.version_info < (3, 9)
            print(r.read_text('data', 'x.txt') if old else (r.files('data') / 'x.txt').read_text())
            """,
        "runpy": """
            import runpy
            print(runpy.run_path('data/__init__.py')['__file__'], runpy.run_module('data.inner')['__name__'])
            """,
        "main imported": """
            import main
            print(main is sys.modules['__main__'], __name__) if __name__ == '__main__' else print('again')
            """,
        "input": """
            try: input()
            except EOFError: print('nothing there')
            """,
        "subprocess": """
            import subprocess
            child = 'import os, sys; print(os.environ["SESSION"], sys.stdin.read())'
            print(subprocess.run([sys.executable, '-c', child], stdout=-1).stdout)
            """,
        "exec of another": """
            child = 'import os; print(sorted(os.listdir("/proc/self/fd")), os.environ["SESSION"])'
            os.execv(sys.executable, [sys.executable, '-c', child])
            """,
        "handler": """
            signal.signal(signal.SIGTERM, lambda *a: print('term'))
            os.kill(os.getpid(), signal.SIGTERM)
            """,
        "warning": """
            import warnings
            warnings.warn('here')
            def f(): warnings.warn('there', stacklevel=2)
            f()
            """,
        "gateway interface": """
            import wsgiref.handlers as h
            print(h.BaseHandler.os_environ['SESSION'], list(h.BaseHandler.os_environ))
            """,
        "lazy": """
            print(int.__name__)
            def f():
              import decimal, fractions
              return decimal.Decimal(1)
            print(f())
            """,
        "future": """
            from __future__ import annotations
            def f(x: int): pass
            print(f.__annotations__)
            """,
        "no future": """
            def f(x: int): pass
            print(f.__annotations__)
            """,
        "typing": """
            import dataclasses, typing, enum, collections
            @dataclasses.dataclass
            class A:
              x: int
            N = collections.namedtuple('N', 'a')
            print(A(1), N(1).__class__.__module__, enum.Enum('E', 'a').__module__, typing.get_type_hints(A))
            """,
        "doctest": """
            '''Text.

            >>> 1 + 1
            2
            '''
            import doctest
            print(doctest.testmod(), __doc__)
            """,
        "unittest": """
            import unittest
            class T(unittest.TestCase):
              def test(self): self.assertEqual(__name__, '__main__')
            unittest.main(argv=['x', '-q'], exit=False)
            """,
    }
)

SUPPORT = {
    "broken.py": "1/0",
    "crooked.py": "def (:",
    "data/__init__.py": "",
    "data/inner.py": "",
    "data/x.txt": "content",
}
