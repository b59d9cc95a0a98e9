"""`python -m cupola_agent run main:agent`: serves the agent of a module."""

import importlib
import sys

from cupola_agent.app import Agent

USAGE = "usage: python -m cupola_agent run MODULE[:NAME]    (NAME is 'agent' unless given; PORT says where)"


def load(target: str) -> Agent:
    """The agent named `module:name`. Raises ValueError when there is none; its module's errors pass."""
    module_name, _, name = target.partition(":")
    name = name or "agent"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise ValueError(f"there is no module named {module_name!r}") from None
    agent = getattr(module, name, None)
    if not isinstance(agent, Agent):
        raise ValueError(f"{module_name!r} has no cupola_agent.Agent named {name!r}")
    return agent


def main(arguments: list[str]) -> None:
    if len(arguments) != 2 or arguments[0] != "run":
        raise SystemExit(USAGE)
    try:
        agent = load(arguments[1])
    except ValueError as error:
        raise SystemExit(f"cupola-agent: {error}") from None
    agent.run()


if __name__ == "__main__":
    main(sys.argv[1:])
