"""A node in this process, for tests of what the server has of it. Directories of a test move into its data folder."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cupola.images.store import ImageStore
from cupola.node.process import Node, Parts, Sockets, serve_node
from cupola.sandbox.base import Driver, Output, Sandbox, SandboxSpec
from cupola.sessions.volumes import LocalVolumes


@asynccontextmanager
async def node_of(driver: Driver, folder: Path) -> AsyncIterator[Node]:
    """What a server has of a node that works with `driver`."""
    server_end, node_end = Sockets.pairs()
    volumes = LocalVolumes(folder / "volumes")
    trials = LocalVolumes(folder / "trials")
    parts = Parts(driver, ImageStore(folder / "images"), {"volumes": volumes, "trials": trials})
    serving = asyncio.create_task(serve_node(node_end, folder, parts))
    node = Node(server_end, folder)
    running = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        node.close()
        await asyncio.gather(serving, running)


class MovingDriver(Driver):
    """A node's driver that takes any directory: it moves it to where the node looks, and leaves a link behind."""

    def __init__(self, inner: Driver, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        await self._inner.open()
        self.isolation, self.can_attach = self._inner.isolation, self._inner.can_attach
        self.can_freeze = self._inner.can_freeze

    async def close(self) -> None:
        await self._inner.close()

    async def make(self, spec: SandboxSpec, output: Output) -> Sandbox:
        spec = dataclasses.replace(spec, layers=tuple(self._layer(layer) for layer in spec.layers))
        if spec.home is not None and spec.files is not None:
            home, files = self._volume(spec.home, spec.files)
            spec = dataclasses.replace(spec, home=home, files=files)
        return await self._inner.make(spec, output)

    async def remove(self, name: str, grace: float) -> None:
        await self._inner.remove(name, grace)

    async def freeze(self, name: str) -> None:
        await self._inner.freeze(name)

    def thaw(self, name: str) -> None:
        self._inner.thaw(name)

    async def attach(self, name: str, home: Path, files: Path) -> None:
        await self._inner.attach(name, *self._volume(home, files))

    def hurry(self) -> None:
        self._inner.hurry()

    async def names(self) -> frozenset[str]:
        return await self._inner.names()

    def _layer(self, path: Path) -> Path:
        link = self._folder / "images" / "layers" / hashlib.sha256(bytes(path)).hexdigest()
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path)
        return link

    def _volume(self, home: Path, files: Path) -> tuple[Path, Path]:
        if home.is_symlink():
            return home.readlink(), files.readlink()
        volume = self._folder / "volumes" / f"v{next(self._numbers)}"
        volume.mkdir(parents=True)
        for name, path in (("home", home), ("files", files)):
            path.mkdir(parents=True, exist_ok=True)
            path.rename(volume / name)
            path.symlink_to(volume / name)
        return volume / "home", volume / "files"
