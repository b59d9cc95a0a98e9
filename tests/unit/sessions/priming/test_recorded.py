"""What a watched start tells of each module: why it must not be imported ahead, and which others it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cupola.sessions.priming.plan import Imported, Recording, make_plan
from tests.unit.sessions.priming.interpreters import (
    ENVIRONMENT,
    OURS,
    VERSIONS,
    entry_point,
    interpreter_of,
    record,
    run_cold,
    run_primed,
)
from tests.unit.sessions.priming.programs import dedented

SESSION = {**ENVIRONMENT, "SESSION": "ours", "OTHER": "1"}

HARMLESS = dedented(
    {
        "reading another variable": """
            import os
            os.environ['OTHER'], os.getenv('NONE'), 'NONE' in os.environ
            """,
        "setting another variable": """
            import os
            os.environ.setdefault('NEW', '1')
            os.environ['NEW'] = '2'
            del os.environ['NEW']
            """,
        "a clock that only measures": """
            import time
            time.monotonic(); time.perf_counter(); time.sleep(0)
            """,
        "converting a given time": """
            import time, datetime
            time.localtime(0); datetime.datetime.fromtimestamp(0)
            """,
        "naming a clock": """
            import datetime, time
            def now(): return datetime.datetime.now()
            factory = datetime.datetime.now, time.time
            """,
        "a class with a method of that name": """
            class A:
              def now(self): pass
              def today(self): return self.now()
            """,
        "a thread that has ended": """
            import threading
            t = threading.Thread(target=print, args=('', ))
            t.start()
            t.join()
            """,
        "a pool that has ended": """
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(2) as e: list(e.map(abs, [1]))
            """,
        "a socket that is closed": """
            import socket
            s = socket.socket()
            s.bind(('127.0.0.1', 0))
            s.close()
            """,
        "a file": """
            import os
            open('/etc/passwd').close(); os.stat('/etc'); os.path.exists('/nonexistent'); os.listdir('/')
            """,
        "the platform": """
            import platform
            platform.platform(), platform.processor()
            """,
        "a library that is looked for": """
            import ctypes.util
            ctypes.util.find_library('c')
            """,
        "logging": """
            import logging
            logging.getLogger('x').warning('hello')
            """,
        "the interface of gateways": "import wsgiref.handlers",
        "a warning that is not shown": """
            import warnings
            warnings.warn('x', PendingDeprecationWarning)
            """,
        "an event loop": """
            import asyncio
            loop = asyncio.new_event_loop()
            loop.run_until_complete(asyncio.sleep(0, None))
            loop.close()
            """,
        "a name that is no identifier": """
            import importlib
            importlib.import_module('odd-name')
            """,
        "a module that is not there": """
            try: import nothing
            except ImportError: pass
            """,
        "the clock afterwards": """
            import time
            def f(): return time.time()
            """,
        "random numbers": """
            import random, uuid, os
            random.random(); uuid.uuid4(); os.urandom(1)
            """,
    }
)

REASONS = {
    "import os\nos.environ['SESSION']": "uses the variable SESSION",
    "import os\nos.environ.get('SESSION')": "uses the variable SESSION",
    "import os\nos.getenv('SESSION', 'x')": "uses the variable SESSION",
    "import os\n'SESSION' in os.environ": "uses the variable SESSION",
    "import os\nos.environb[b'SESSION']": "uses the variable SESSION",
    "import os\nos.environ['SESSION'] = 'x'": "uses the variable SESSION",
    "import os\ndel os.environ['SESSION']": "uses the variable SESSION",
    "import os\nos.environ.setdefault('SESSION', 'x')": "uses the variable SESSION",
    "import os\ndict(os.environ)": "reads all environment variables",
    "import os\nos.environ.copy()": "reads all environment variables",
    "import os\n{**os.environ}": "reads all environment variables",
    "import os\nfor n in os.environ: break": "reads all environment variables",
    "import os\nlen(os.environ)": "reads all environment variables",
    "import os\nrepr(os.environ)": "reads all environment variables",
    "import os\nlist(os.environ.items())": "reads all environment variables",
    "open('/proc/self/environ').close()": "reads /proc/self/environ",
    "import time\ntime.time()": "reads the clock",
    "from time import time_ns\ntime_ns()": "reads the clock",
    "import time\ntime.localtime()": "reads the clock",
    "import datetime\nSTART = datetime.datetime.now()": "reads the clock",
    "from datetime import date\nclass A:\n  day = date.today()": "reads the clock",
    "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()": "starts a thread",
    "import _thread, time\n_thread.start_new_thread(time.sleep, (60,))": "starts a thread",
    "import threading, os\nt = threading.Thread(target=os.getenv, args=('SESSION',))\nt.start()\nt.join()": "variable SESSION",
    "import socket\nS = socket.socket()": "opens a socket",
    "import socket\ntry: socket.create_connection(('127.0.0.1', 1))\nexcept OSError: pass": "uses the network",
    "import subprocess\nsubprocess.run(['/bin/true'])": "starts a process",
    "import os\nos.system('true')": "starts a process",
    "import os\nif not os.fork(): os._exit(0)\nos.wait()": "starts a process",
    "import signal\nsignal.signal(signal.SIGTERM, print)": "changes the handling of signals",
    "import warnings\nwarnings.warn('x')": "warns",
    "import __main__": "uses the module __main__",
    "from __main__ import __name__": "uses the module __main__",
    "open('{files}/x', 'w').close()": "looks at",
    "import os\nos.path.exists('{files}/x')": "looks at",
    "import pathlib\npathlib.Path('{files}').is_dir()": "looks at",
    "import os\nos.makedirs('{files}/a', exist_ok=True)": "looks at",
}


SESSION_READER = "import os\nSEEN = os.environ['SESSION']"


@dataclass(frozen=True)
class Agent:
    """A program in files, the modules of it that may be imported ahead, in order, and those that must not."""

    files: Mapping[str, str]
    ahead: tuple[str, ...]
    not_ahead: tuple[str, ...]


AGENTS = {
    "whoever needs a module with a reason": Agent(
        {"main.py": "import a, b, c\nprint(a.b.SEEN)", "a.py": "import b", "b.py": SESSION_READER, "c.py": ""},
        ("c",), ("a", "b"),
    ),
    "whoever needs a module that was imported before": Agent(
        {"main.py": "import b, a, c", "a.py": "import c, b", "b.py": SESSION_READER, "c.py": ""}, ("c",), ("a", "b"),
    ),
    "whoever needs a module that gets its reason later": Agent(
        {"main.py": "import b", "b.py": "x = 1\nimport a, c\n" + SESSION_READER, "a.py": "from b import x", "c.py": ""},
        ("c",), ("a", "b"),
    ),
    "needs by every kind of import": Agent(
        {
            "main.py": "import package.b, a, c, d, e, f, g",
            "package/__init__.py": "__all__ = ['b']",
            "package/b.py": SESSION_READER,
            "package/x.py": "from . import b",
            "a.py": "import package.b",
            "c.py": "from package import b",
            "d.py": "from package import *",
            "e.py": "import importlib\nimportlib.import_module('package.b')",
            "f.py": "import package.x",
            "g.py": "import importlib\nimportlib.import_module('.x', 'package')",
        },
        ("package",), ("package.b", "package.x", "a", "c", "d", "e", "f", "g"),
    ),
    "what is below a package with a reason": Agent(
        {"main.py": "import package.a", "package/__init__.py": SESSION_READER, "package/a.py": ""},
        (), ("package", "package.a"),
    ),
    "whatever needs a module whose import never ends": Agent(
        {"main.py": "import a", "a.py": "x = 1\nimport b, c\nprint('runs')\nraise SystemExit", "b.py": "from a import x",
         "c.py": ""},
        ("c",), ("a", "b"),
    ),
    "a module that tries one which fails and needs another": Agent(
        {"main.py": "import b, a", "a.py": "try: import c\nexcept ImportError: pass", "b.py": SESSION_READER,
         "c.py": "import b\nraise ImportError"},
        (), ("a", "b"),
    ),
    "late imports, in functions and in threads": Agent(
        {"main.py": "import threading\ndef f():\n  import a\nf()\nt = threading.Thread(target=lambda: __import__('b'))\n"
         "t.start()\nt.join()", "a.py": "", "b.py": "import c", "c.py": ""},
        ("a", "b", "c"), (),
    ),
    "a variable that the program sets before": Agent(
        {"main.py": "import os\nos.environ['MODE'] = 'x'\nimport a, b\nprint(a.mode)",
         "a.py": "import os\nmode = os.environ.get('MODE')", "b.py": ""},
        ("b",), ("a",),
    ),
    "a variable that another module sets before": Agent(
        {"main.py": "import b\nprint(b.a.mode)", "a.py": "import os\nmode = os.environ.get('MODE')",
         "b.py": "import os\nos.environ['MODE'] = 'x'\nimport a"},
        ("b", "a"), (),
    ),
    "a variable that a module with a reason sets before": Agent(
        {"main.py": "import b, a\nprint(a.mode)", "a.py": "import os\nmode = os.environ.get('MODE')",
         "b.py": SESSION_READER + "\nos.environ['MODE'] = 'x'"},
        (), ("a", "b"),
    ),
    "a place that the program adds": Agent(
        {"main.py": "import sys\nsys.path.insert(0, sys.path[0] + '/more')\nimport a, c\nprint(a.x)", "a.py": "x = 1",
         "more/a.py": "x = 2", "c.py": ""},
        ("c",), ("a",),
    ),
    "a place that a module adds": Agent(
        {"main.py": "import b, a\nprint(a.x)", "b.py": "import sys\nsys.path.insert(0, sys.path[0] + '/more')",
         "more/a.py": "x = 2"},
        ("b", "a"), (),
    ),
    "a finder that the program installs": Agent(
        {"main.py": "import b, sys, importlib.abc\nclass F(importlib.abc.MetaPathFinder):\n  def find_spec(*a): return None\n"
         "sys.meta_path.insert(0, F())\nimport a", "a.py": "", "b.py": ""},
        ("b",), ("a",),
    ),
    "a finder that a module installs": Agent(
        {"main.py": "import b, a", "b.py": "import sys, importlib.abc\nclass F(importlib.abc.MetaPathFinder):\n"
         "  def find_spec(*a): return None\nsys.meta_path.insert(0, F())", "a.py": ""},
        ("b", "a"), (),
    ),
    "a module that the program makes": Agent(
        {"main.py": "import sys, types\nsys.modules['b'] = types.ModuleType('b')\nimport a, c", "a.py": "import b",
         "b.py": "1/0", "c.py": ""},
        ("c",), ("a",),
    ),
    "a module that the program replaces": Agent(
        {"main.py": "import sys, types, b\nsys.modules['b'] = types.SimpleNamespace(x=2)\nimport a, c\nprint(a.x)",
         "a.py": "from b import x", "b.py": "x = 1", "c.py": ""},
        ("b", "c"), ("a",),
    ),
    "a module that another one makes": Agent(
        {"main.py": "import b, a\nprint(a.x)", "a.py": "import b.moves\nfrom b.moves import x",
         "b.py": "import sys, types\n__path__ = []\nsys.modules['b.moves'] = m = types.ModuleType('b.moves')\nm.x = 1\n"
         "import c",
         "c.py": ""},
        ("b", "c", "a"), (),
    ),
    "a module that replaces itself": Agent(
        {"main.py": "import b, a\nprint(a.x)", "a.py": "from b import x",
         "b.py": "import sys, types\nsys.modules[__name__] = types.SimpleNamespace(x=3)"},
        ("b", "a"), (),
    ),
    "everything, where parts of the standard library are replaced": Agent(
        {"main.py": "import gevent.monkey, a", "gevent/__init__.py": "", "gevent/monkey.py": "", "a.py": ""},
        (), ("a", "gevent", "gevent.monkey"),
    ),
    "the program itself as a module": Agent(
        {"main.py": "import a\nif __name__ == '__main__':\n  import main\n  print(main.__name__, a.SEEN)",
         "a.py": "SEEN = []"},
        ("a", "main"), (),
    ),
    "what modules do to variables": Agent(
        {"main.py": "import a, os\nprint(list(os.environ.items()))\nos.system('/usr/bin/env')",
         "a.py": "import os\nos.environ['NEW'] = '1'\ndel os.environ['OTHER']\nos.environ.setdefault('HOME', '/x')\n"
         "os.environ['HOME'] += '/y'"},
        ("a",), (),
    ),
    "what modules print": Agent(
        {"main.py": "print('first')\nimport a\nprint('last')",
         "a.py": "import sys\nsys.stderr.write('on the way')"}, ("a",), (),
    ),
}  # fmt: skip


async def _record(tmp_path: Path, files: Mapping[str, str], interpreter: str = OURS) -> dict[str, Imported]:
    recording = await _recording(tmp_path, files, interpreter)
    return {module.name: module for module in recording.imported}


async def _recording(tmp_path: Path, files: Mapping[str, str], interpreter: str = OURS) -> Recording:
    directory = tmp_path / "application"
    directory.mkdir(exist_ok=True)
    (tmp_path / "files").mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content.replace("{files}", str(tmp_path / "files")))
    result, recording = await record(
        entry_point(interpreter, "main.py"), SESSION, directory, directories=(str(tmp_path / "files"),)
    )
    assert result.code == 0, result.stderr
    return recording


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_the_same_in_every_session_is_no_reason(tmp_path: Path, version: str) -> None:
    files = {f"m{number}.py": program for number, program in enumerate(HARMLESS.values())} | {"odd-name.py": ""}
    main = "\n".join(f"import m{number}" for number in range(len(HARMLESS)))
    imported = await _record(tmp_path, {**files, "main.py": main}, interpreter_of(version))
    for number, name in enumerate(HARMLESS):
        assert imported[f"m{number}"].reasons == (), name


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_differs_between_sessions_is_a_reason(tmp_path: Path, version: str) -> None:
    files = {f"m{number}.py": program for number, program in enumerate(REASONS)}
    main = "\n".join(f"import m{number}" for number in range(len(REASONS)))
    imported = await _record(tmp_path, {**files, "main.py": f"{main}\nimport os\nos._exit(0)"}, interpreter_of(version))
    for number, (program, reason) in enumerate(REASONS.items()):
        assert reason in " ".join(imported[f"m{number}"].reasons), program


@pytest.mark.parametrize("name", AGENTS)
async def test_the_plan_leaves_out(name: str, tmp_path: Path) -> None:
    agent = AGENTS[name]
    plan = make_plan(await _recording(tmp_path, agent.files))
    names = {*agent.ahead, *agent.not_ahead}
    assert tuple(module for module, _ in plan.modules if module in names) == agent.ahead, plan.skipped
    entry = entry_point(OURS, "main.py")
    cold = await run_cold(entry, SESSION, tmp_path / "application")
    primed, report = await run_primed(entry, plan, SESSION, tmp_path / "application")
    assert report.skipped == {}
    assert primed == cold
