"""The identity this library announces in `x-platform-server` (contract section 1.5)."""

import sys


def server_identity() -> str:
    from cupola_agent import __version__

    return f"cupola-agent/{__version__} (python/{sys.version_info.major}.{sys.version_info.minor})"
