import json
import subprocess
import sys

_PROBE = """
import json, sys
before = {name.partition(".")[0] for name in sys.modules}
import cupola_agent
tops = {name.partition(".")[0] for name in sys.modules} - before
print(json.dumps(sorted(top for top in tops if top not in sys.stdlib_module_names)))
"""


def test_importing_the_library_loads_nothing_but_itself_and_the_standard_library() -> None:
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    assert json.loads(probe.stdout) == ["cupola_agent"]
