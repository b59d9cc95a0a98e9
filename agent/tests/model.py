"""A fixture that several folders of tests share."""

import threading
from collections.abc import Iterator

import pytest

from samples.model_stub import ModelStub


@pytest.fixture
def model() -> Iterator[ModelStub]:
    """A model to talk to."""
    stub = ModelStub()
    thread = threading.Thread(target=stub.serve_forever, args=[0.01])
    thread.start()
    yield stub
    stub.shutdown()
    thread.join()
    stub.server_close()
