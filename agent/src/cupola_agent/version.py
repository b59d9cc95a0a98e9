"""The identity this library announces in `x-platform-server` (contract section 1.5)."""

import sys


def server_identity(more: str = "") -> str:
    """This library's name and version; `more` is what the developer adds."""
    from cupola_agent import __version__

    own = f"cupola-agent/{__version__} (python/{sys.version_info.major}.{sys.version_info.minor})"
    return f"{own} {more}" if more else own
