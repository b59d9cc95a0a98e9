"""Where responses are kept: in memory, in a local file, or on the platform."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cupola_agent.environment import Environment

if TYPE_CHECKING:
    from cupola_agent.stores.base import ResponseStore


def usual_store(environment: Environment, variables: Mapping[str, str]) -> "ResponseStore":
    """The platform's store inside one, else a file below the state root. Nothing is opened before its first use."""
    if environment.hosted and variables.get("FOUNDRY_PROJECT_ENDPOINT"):
        from cupola_agent.platform.api import Platform
        from cupola_agent.stores.platform import PlatformResponseStore

        return PlatformResponseStore(Platform.from_environment(variables))
    from cupola_agent.stores.local import LocalResponseStore
    from cupola_agent.stores.sqlite import state_root

    return LocalResponseStore(state_root(variables))
