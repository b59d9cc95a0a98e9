"""A client for registries: the pull half of the OCI distribution specification 1.1."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from cupola.images.credentials import authorization, stored_login
from cupola.images.download import download
from cupola.images.failures import invalid_image
from cupola.images.manifest import MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES, Descriptor, Manifest
from cupola.images.reference import DOCKER_HUB, Reference
from cupola.images.registry_errors import check_status, explained
from cupola.images.sources import Blob, resolve_platform, verified

_MANIFEST_TYPES = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_TIMEOUT = httpx2.Timeout(60, connect=15, pool=None)
_PROBE_TIMEOUT = httpx2.Timeout(2)
_DOCUMENT_SECONDS = 120
_MAX_REDIRECTS = 5


@dataclass(frozen=True)
class Endpoint:
    """Where a repository is read from: `base` is scheme and host, `registry` the name that logins are stored
    under.
    """

    base: str
    registry: str
    repository: str

    @property
    def url(self) -> str:
        return f"{self.base}/v2/{self.repository}"


class Registries:
    """Every registry, through one pool of connections.

    `mirrors` maps a registry's host to the base URL that is read instead of it; a path in that URL is put
    before the repository's name. `insecure` lists the hosts that are spoken to over plain HTTP. A host on the
    loopback interface is spoken to over plain HTTP when HTTPS does not answer there. Logins come from
    `docker_config`.
    """

    def __init__(self, mirrors: Mapping[str, str], insecure: Collection[str], docker_config: Path) -> None:
        self._mirrors = dict(mirrors)
        self._insecure = frozenset(insecure)
        self._docker_config = docker_config
        self._tokens: dict[Endpoint, str] = {}
        self._loopback_bases: dict[str, str] = {}
        direct = ("localhost", "127.0.0.1", "[::1]")
        self._client = httpx2.AsyncClient(
            timeout=_TIMEOUT,
            follow_redirects=True,
            max_redirects=_MAX_REDIRECTS,
            headers={"User-Agent": "cupola", "Accept-Encoding": "identity"},
            mounts={f"all://{host}": None for host in direct},
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def endpoint(self, reference: Reference) -> Endpoint:
        """Where to read `reference` from."""
        mirror = self._mirrors.get(reference.registry)
        if mirror is not None:
            url = httpx2.URL(mirror)
            prefix = url.path.strip("/")
            repository = f"{prefix}/{reference.repository}" if prefix else reference.repository
            return Endpoint(f"{url.scheme}://{url.netloc.decode()}", url.netloc.decode(), repository)
        host = "registry-1.docker.io" if reference.registry == DOCKER_HUB else reference.registry
        return Endpoint(await self._base(host), reference.registry, reference.repository)

    async def _base(self, host: str) -> str:
        if host in self._insecure:
            return f"http://{host}"
        if not _is_loopback(host):
            return f"https://{host}"
        for base in (f"https://{host}", f"http://{host}"):
            if host not in self._loopback_bases and await self._answers(base):
                self._loopback_bases[host] = base
        return self._loopback_bases.get(host, f"http://{host}")

    async def _answers(self, base: str) -> bool:
        try:
            async with self._client.stream("GET", f"{base}/v2/", timeout=_PROBE_TIMEOUT, follow_redirects=False):
                return True
        except httpx2.TransportError as error:
            # A certificate that is not trusted is an answer too: plain HTTP would only hide the reason.
            return "CERTIFICATE_VERIFY_FAILED" in str(error)

    @asynccontextmanager
    async def get(self, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """GET `path` of the repository, answering the registry's challenge. Raises httpx2.TransportError."""
        response = await self._send(endpoint, path, headers)
        if response.status_code == 401 and not response.history:
            await response.aclose()
            self._tokens.pop(endpoint, None)
            login = stored_login(endpoint.registry, self._docker_config)
            challenge = response.headers.get("WWW-Authenticate", "")
            secure = endpoint.base.startswith("https://")
            token = await authorization(
                self._client, challenge, endpoint.registry, endpoint.repository, login, secure=secure
            )
            if token:
                self._tokens[endpoint] = token
                response = await self._send(endpoint, path, headers)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(self, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> httpx2.Response:
        request = self._client.build_request("GET", f"{endpoint.url}/{path}", headers=dict(headers))
        if endpoint in self._tokens:
            request.headers["Authorization"] = self._tokens[endpoint]
        return await self._client.send(request, stream=True)


class RegistrySource:
    """One image in a registry."""

    def __init__(self, registries: Registries, reference: Reference) -> None:
        self._registries = registries
        self._reference = reference

    async def resolve(self) -> str:
        return await resolve_platform(self, str(self._reference))

    async def root(self) -> bytes:
        """The manifest or index that the reference names."""
        if self._reference.digest:
            return await self.manifest(self._reference.digest)
        return await self._document(f"manifests/{self._reference.tag}", MAX_MANIFEST_BYTES)

    async def manifest(self, digest: str) -> bytes:
        content = await self._document(f"manifests/{digest}", MAX_MANIFEST_BYTES)
        return verified(content, digest, f"The registry {self._reference.registry}")

    async def config(self, descriptor: Descriptor) -> bytes:
        content = await self._document(f"blobs/{descriptor.digest}", MAX_CONFIG_BYTES)
        return verified(content, descriptor.digest, f"The registry {self._reference.registry}")

    async def layer(self, descriptor: Descriptor, destination: Path) -> Blob:
        endpoint = await self._registries.endpoint(self._reference)

        def open_stream(headers: Mapping[str, str]) -> AbstractAsyncContextManager[httpx2.Response]:
            return self._open(endpoint, f"blobs/{descriptor.digest}", headers)

        with explained(endpoint.registry):
            await download(open_stream, descriptor, destination, f"The registry {endpoint.registry}")
        return Blob(await asyncio.to_thread(destination.open, "rb"), 0, descriptor.size)

    async def size(self, manifest: Manifest) -> int:
        return manifest.size

    async def close(self) -> None:
        """The connections belong to `Registries`."""

    async def _document(self, path: str, limit: int) -> bytes:
        endpoint = await self._registries.endpoint(self._reference)
        content = bytearray()
        with explained(endpoint.registry):
            async with (
                asyncio.timeout(_DOCUMENT_SECONDS),
                self._open(endpoint, path, {"Accept": _MANIFEST_TYPES}) as response,
            ):
                async for piece in response.aiter_raw():
                    content += piece
                    if len(content) > limit:
                        raise invalid_image(f"{self._reference}: {path} is larger than {limit} bytes.")
        return bytes(content)

    @asynccontextmanager
    async def _open(self, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        async with self._registries.get(endpoint, path, headers) as response:
            check_status(response, endpoint.registry, str(self._reference))
            yield response


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
