"""Network namespaces for tests that ask the kernel: a thread of their own enters them, so that no other is moved."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from cupola.sandbox.oci.network.namespace import make_namespace

Result = TypeVar("Result")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")


def in_a_namespace(work: Callable[[], Result]) -> Result:
    """What `work` gives in a new network namespace, which is gone afterwards."""

    def run() -> Result:
        namespace = make_namespace()
        try:
            return work()
        finally:
            os.close(namespace)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()
