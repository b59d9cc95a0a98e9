"""The node's images, for the server."""

from __future__ import annotations

from collections.abc import Callable, Collection

from cupola.images.model import Image
from cupola.images.reference import Reference
from cupola.node import messages as wire
from cupola.node.client import NodeClient


class NodeImages:
    """Images are pulled and unpacked by the node, because their files belong to it. The methods are those of `Images`."""

    def __init__(self, client: NodeClient) -> None:
        self._client = client

    async def resolve(self, reference: Reference) -> str:
        digest: str = await self._client.ask(wire.Resolve(str(reference)), str)
        return digest

    async def pull(self, reference: Reference, digest: str, report: Callable[[str, str], None]) -> Image:
        image: Image = await self._client.ask(wire.Pull(str(reference), digest), Image, report)
        return image

    async def load(self, digest: str) -> Image | None:
        image: Image | None = await self._client.ask(wire.Load(digest), Image | None)
        return image

    async def prune(self, keep: Collection[str]) -> None:
        await self._client.ask(wire.Prune(tuple(keep)), None)
