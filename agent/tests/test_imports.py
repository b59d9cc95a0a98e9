"""What an agent costs at its start is what it imports; this is the list of what it may."""

import http.client
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

StartAgent = Callable[..., Any]

_TOPS = """
import json, sys
def third_party():
    tops = {name.partition(".")[0] for name in sys.modules}
    return sorted(top for top in tops - before if top not in sys.stdlib_module_names and "cython" not in top)
before = {name.partition(".")[0] for name in sys.modules}
"""
_IMPORT = "import cupola_agent\nprint(json.dumps(third_party()))\n"
_HELLO = """
import atexit
from cupola_agent import Agent
agent = Agent()
@agent.responses
def reply(input):
    return "hi"
@atexit.register
def told():
    heavy = [name for name in ("urllib.request", "http.client", "email", "unittest", "argparse") if name in sys.modules]
    print(json.dumps([third_party(), heavy]))
"""
# msgspec imports typing_extensions where it is installed, and does without it elsewhere.
_ALLOWED = {"cupola_agent", "msgspec", "typing_extensions"}


def test_what_importing_the_library_loads() -> None:
    probe = subprocess.run([sys.executable, "-c", _TOPS + _IMPORT], capture_output=True, text=True, check=True)
    assert set(json.loads(probe.stdout)) <= _ALLOWED


@pytest.mark.parametrize("stored", [False, True])
def test_what_a_running_agent_loads(start_agent: StartAgent, stored: bool) -> None:
    agent = start_agent(_TOPS + _HELLO)
    with closing(http.client.HTTPConnection("127.0.0.1", agent.port, timeout=10)) as connection:
        connection.request("POST", "/responses", json.dumps({"input": "x", "store": stored}))
        assert json.load(connection.getresponse())["status"] == "completed"
    agent.process.terminate()
    output, _ = agent.process.communicate(timeout=10)
    tops, heavy = json.loads(output)
    assert set(tops) - {"main"} <= _ALLOWED | {"httptools", "uvloop"}
    # The command line parses its arguments; what serves does not.
    assert set(heavy) <= {"argparse"}
