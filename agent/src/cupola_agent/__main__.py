"""`python -m cupola_agent run main:agent`: serves the agent, or any ASGI app, of a module."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from cupola_agent.environment import checked_port
from cupola_agent.logs import configure_early_lines

_NAMES = ("agent", "app")


def load(target: str) -> Any:
    """What `module:name` names; without a name, the module's `agent` or `app`.

    Raises ValueError when there is none; its module's own errors pass.
    """
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"there is no module named {error.name!r} in {os.getcwd()}") from None  # noqa: PTH109
    names = (name,) if name else _NAMES
    for candidate in names:
        found = getattr(module, candidate, None)
        if found is None:
            continue
        if not callable(found):
            raise ValueError(f"{target!r} is {type(found).__name__}, neither an Agent nor an ASGI app")
        return found
    wanted = " or ".join(repr(candidate) for candidate in names)
    raise ValueError(f"{module_name!r} has no agent or ASGI app named {wanted}")


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.reload and "CUPOLA_AGENT_RELOADED" not in os.environ:
        from cupola_agent.server.reload import supervise

        sys.exit(supervise([sys.executable, "-m", "cupola_agent", *arguments]))
    configure_early_lines(as_json=bool(os.environ.get("FOUNDRY_HOSTING_ENVIRONMENT")))
    sys.path.insert(0, "")
    try:
        application = load(options.target)
    except ValueError as error:
        raise SystemExit(f"cupola-agent: {error}") from None
    from cupola_agent.server.process import run

    run(application, options.host, options.port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cupola_agent", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="serve an agent", description="Serves an agent until SIGTERM or Ctrl-C.")
    run.add_argument("target", metavar="MODULE[:NAME]", help="an Agent or an ASGI app; NAME is 'agent' or 'app'")
    run.add_argument("--host", default="0.0.0.0", help="the address to listen on (default: all of IPv4)")  # noqa: S104
    run.add_argument("--port", type=_port, help="the port to listen on (default: $PORT, else 8088)")
    run.add_argument("--reload", action="store_true", help="start again when a Python file below this folder changes")
    return parser


def _port(text: str) -> int:
    try:
        return checked_port(text, "port")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    main(sys.argv[1:])
