"""What each store costs an image that uses it, and one that does not."""

import json
import subprocess
import sys

import pytest

_PROBE = """
import json, sys
import cupola_agent, cupola_agent.jsons
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""

HEAVY = {"azure", "email", "hashlib", "http", "httptools", "sqlite3", "urllib", "zlib", "datetime", "ipaddress"}


def loaded(module: str) -> set[str]:
    """The modules that importing this one adds to those of every agent, by their first names."""
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE.format(module=module)], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(probe.stdout)}


@pytest.mark.parametrize("module", ["call", "stores.base", "stores.records", "stores.memory", "tasks.base"])
def test_what_every_agent_imports_loads_nothing_heavy(module: str) -> None:
    assert not loaded(f"cupola_agent.{module}") & HEAVY


@pytest.mark.parametrize("module", ["stores.local", "tasks.local", "state", "state.local", "tasks.lease"])
def test_sqlite_and_the_platform_are_loaded_by_their_first_use_only(module: str) -> None:
    assert not loaded(f"cupola_agent.{module}") & {"sqlite3", "httptools", "azure", "email", "hashlib"}


@pytest.mark.parametrize("module", ["platform.api", "stores.platform", "tasks.platform", "state.platform"])
def test_the_platforms_client_needs_no_package_but_httptools(module: str) -> None:
    foreign = {name for name in loaded(f"cupola_agent.{module}") if name not in sys.stdlib_module_names}
    assert foreign <= {"cupola_agent"} | loaded("httptools")
