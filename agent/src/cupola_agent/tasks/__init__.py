"""Records of long work that outlive a process, and the leases that say who does it (contract section 4.14)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cupola_agent.environment import Environment

if TYPE_CHECKING:
    from cupola_agent.tasks.base import TaskStore


def usual_tasks(environment: Environment, variables: Mapping[str, str]) -> "TaskStore":
    """The platform's tasks inside one, else those of a file below the state root.

    `AGENTSERVER_TASKS_BACKEND` chooses: `hosted` or `local`. Raises ValueError for anything else.
    """
    backend = variables.get("AGENTSERVER_TASKS_BACKEND") or ("hosted" if environment.hosted else "local")
    if backend == "hosted":
        from cupola_agent.platform.api import Platform
        from cupola_agent.tasks.platform import PlatformTaskStore

        return PlatformTaskStore(Platform.from_environment(variables))
    if backend != "local":
        raise ValueError(f"AGENTSERVER_TASKS_BACKEND must be 'hosted' or 'local', not {backend!r}")
    from cupola_agent.stores.sqlite import state_root
    from cupola_agent.tasks.local import LocalTaskStore

    return LocalTaskStore(state_root(variables))
