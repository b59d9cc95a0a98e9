"""What a sandbox runs: all attempts are registered by importing their modules."""

from __future__ import annotations

from tests.attacks.attempts import files, kernel, network, processes, resources
from tests.attacks.attempts.registry import ATTEMPTS, main

MODULES = (files, kernel, network, processes, resources)
__all__ = ["ATTEMPTS", "MODULES"]

if __name__ == "__main__":
    main()
