"""The engine's images of one installation: one for each stack of layers, made when it is first needed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from pathlib import Path
from weakref import WeakValueDictionary

from cupola.sandbox.docker.engine import Engine, EngineError
from cupola.sandbox.docker.rootfs import merged_tar

logger = logging.getLogger(__name__)

NOT_FOUND = 404
CONFLICT = 409


class EngineImages:
    """What `cupola-{installation}:{hash of the layers' paths}` names. A layer's content never changes under its path."""

    def __init__(self, engine: Engine, installation: str) -> None:
        self._engine = engine
        self._repository = f"cupola-{installation}"
        self._layers: dict[str, tuple[Path, ...]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ensure(self, layers: tuple[Path, ...]) -> str:
        """The name of the image of these layers, imported if the engine does not have it. Raises EngineError."""
        tag = hashlib.sha256(b"\0".join(os.fsencode(path) for path in layers)).hexdigest()[:32]
        name = f"{self._repository}:{tag}"
        async with self._locks.setdefault(name, asyncio.Lock()):
            if not await self._exists(name):
                await self._remove_outdated()
                await self._engine.import_image(self._repository, tag, merged_tar(layers))
            self._layers[name] = layers
        return name

    async def _exists(self, name: str) -> bool:
        async with self._engine.asked("look for an image", fine=(NOT_FOUND,)) as docker:
            await docker.images.inspect(name)
            return True
        return False

    async def _remove_outdated(self) -> None:
        """Remove the images whose layers the image store has removed."""
        for name, layers in list(self._layers.items()):
            if not all(layer.is_dir() for layer in layers):
                await self._remove(name)
                self._layers.pop(name, None)

    async def remove_all(self) -> None:
        """Remove every image of this installation, those of a dead server too. Raises EngineError."""
        async with self._engine.asked("list images") as docker:
            found = await docker.images.list(filters={"reference": [self._repository]})
        for name in {name for image in found for name in image["RepoTags"] or ()}:
            await self._remove(name)

    async def _remove(self, name: str) -> None:
        try:
            async with self._engine.asked("remove an image", fine=(NOT_FOUND,)) as docker:
                await docker.images.delete(name)
        except EngineError as error:
            if error.status != CONFLICT:
                raise
            logger.warning("the image %s is still in use: %s", name, error)
