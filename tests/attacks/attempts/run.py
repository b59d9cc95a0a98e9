"""What a sandbox runs: every attempt is registered by importing its module."""

from tests.attacks.attempts import files, kernel, network, processes, resources  # noqa: F401
from tests.attacks.attempts.registry import main

if __name__ == "__main__":
    main()
