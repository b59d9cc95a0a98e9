from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cupola.images.model import Image
from cupola.images.reference import parse_reference
from cupola.images.store import ImageStore
from tests.unit.images.samples import Published, ignore

Unpack = Callable[..., Awaitable[Path]]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    store = ImageStore(tmp_path / "store")
    yield store
    await store.close()


@pytest.fixture
def pull_layers(tmp_path: Path, store: ImageStore) -> Callable[..., Awaitable[Image]]:
    """Publish layers as an image in an OCI layout, and pull it."""

    async def pull(*layers: bytes, **options: Any) -> Image:
        published = Published()
        published.add(*layers, **options)
        reference = parse_reference(f"oci:{published.write(tmp_path / 'layout')}")
        return await store.pull(reference, await store.resolve(reference), ignore)

    return pull
