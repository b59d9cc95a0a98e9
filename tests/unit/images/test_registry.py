"""A registry that asks for tokens, redirects, breaks connections and lies."""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from cupola.domain.errors import CupolaError
from cupola.images.model import Image
from cupola.images.reference import parse_reference
from cupola.images.registry_errors import explained
from cupola.images.store import ImageStore
from tests.unit.images.samples import Published, entry, ignore, tar
from tests.unit.images.servers import Answer, Request, serve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

LAYER = tar(entry("random", os.urandom(300_000)))


class Registry:
    """The images of `published` as repository `demo`, every one of them tagged `1`."""

    def __init__(self) -> None:
        self.published = Published()
        self.digest = self.published.add(LAYER)
        self.requests: list[Request] = []
        self.layer = next(key for key, value in self.published.blobs.items() if value.startswith(b"\x1f\x8b"))

    def __call__(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.answer(request)

    def answer(self, request: Request) -> Answer:
        *_, repository, kind, name = request.path.split("/")
        digest = self.digest if name == "1" else name
        if not kind or repository != "demo" or digest not in self.published.blobs:
            return Answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
        return self.blob(digest, request)

    def blob(self, digest: str, request: Request) -> Answer:
        return Answer(200, self.published.blobs[digest])


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cupola.images.download._FIRST_PAUSE", 0.001)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


async def pull(store: ImageStore, text: str) -> Image:
    reference = parse_reference(text)
    return await store.pull(reference, await store.resolve(reference), ignore)


async def failure(store: ImageStore, text: str, code: str = "ImagePullBackOff") -> str:
    with pytest.raises(CupolaError) as caught:
        await pull(store, text)
    assert caught.value.code == code
    return caught.value.message


def log_in(tmp_path: Path, registry: str, **entry: str) -> None:
    directory = tmp_path / "docker"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"auths": {registry: entry}}))


async def test_tags_and_digests(store: ImageStore) -> None:
    registry = Registry()
    async with serve(registry) as host:
        image = await pull(store, f"{host}/demo:1")
        assert image.digest == registry.digest
        assert (image.layers[0] / "random").stat().st_size == 300_000
        assert await pull(store, f"{host}/demo@{registry.digest}") == image
        assert "does not have" in await failure(store, f"{host}/demo:2", "InvalidContainerImage")
        assert "does not have" in await failure(store, f"{host}/other:1", "InvalidContainerImage")


async def test_nobody_there(store: ImageStore) -> None:
    async with serve(Registry()) as host:
        pass
    assert f"registry {host} cannot be reached" in await failure(store, f"{host}/demo:1")


async def test_a_mirror(tmp_path: Path) -> None:
    registry = Registry()
    async with serve(registry) as host:
        mirrors = {"myregistry.azurecr.io": f"http://{host}", "docker.io": f"http://{host}/cache/"}
        store = ImageStore(tmp_path / "store", mirrors=mirrors)
        assert (await pull(store, "myregistry.azurecr.io/demo:1")).digest == registry.digest
        await store.resolve(parse_reference("someone/demo:1"))
        assert registry.requests[-1].path.startswith("/v2/cache/someone/demo/blobs/")
        await store.close()


async def test_an_insecure_registry_is_not_asked_over_tls(tmp_path: Path) -> None:
    registry = Registry()
    async with serve(registry) as host:
        store = ImageStore(tmp_path / "store", insecure_registries=[host])
        await pull(store, f"{host}/demo:1")
        assert all(request.path.startswith("/v2/demo/") for request in registry.requests)
        await store.close()


class Guarded(Registry):
    """Asks for a bearer token, and hands one out at /token to those who may have it."""

    def __init__(self, allowed: Callable[[Request], bool]) -> None:
        super().__init__()
        self.allowed = allowed
        self.host = ""

    def answer(self, request: Request) -> Answer:
        if request.path.startswith("/token"):
            if not self.allowed(request):
                return Answer(401, b"{}")
            return Answer(200, b'{"token": "top-secret"}')
        if request.headers.get("authorization") != "Bearer top-secret":
            challenge = f'Bearer realm="http://{self.host}/token",service="here",scope="repository:demo:pull"'
            return Answer(401, b"{}", {"WWW-Authenticate": challenge})
        return super().answer(request)


async def test_anonymous_tokens(store: ImageStore) -> None:
    registry = Guarded(lambda request: "authorization" not in request.headers)
    async with serve(registry) as host:
        registry.host = host
        await pull(store, f"{host}/demo:1")
    tokens = [request for request in registry.requests if request.path.startswith("/token")]
    assert [request.path for request in tokens] == ["/token?scope=repository%3Ademo%3Apull&service=here"]


async def test_stored_logins(store: ImageStore, tmp_path: Path) -> None:
    login = base64.b64encode(b"me:pass:word").decode()
    registry = Guarded(lambda request: request.headers.get("authorization") == f"Basic {login}")
    async with serve(registry) as host:
        registry.host = host
        message = await failure(store, f"{host}/demo:1")
        assert f"docker login {host}" in message
        log_in(tmp_path, f"https://{host}/v1/", auth=login)
        await pull(store, f"{host}/demo:1")


async def test_identity_tokens(store: ImageStore, tmp_path: Path) -> None:
    registry = Guarded(lambda request: request.method == "POST" and b"refresh_token=refresh-me" in request.body)
    async with serve(registry) as host:
        registry.host = host
        log_in(tmp_path, host, auth=base64.b64encode(b"0:").decode(), identitytoken="refresh-me")
        await pull(store, f"{host}/demo:1")


async def test_wrong_logins_are_not_shown(store: ImageStore, tmp_path: Path) -> None:
    registry = Guarded(lambda request: False)
    async with serve(registry) as host:
        registry.host = host
        log_in(tmp_path, host, auth=base64.b64encode(b"me:hunter2").decode())
        message = await failure(store, f"{host}/demo:1")
        assert "hunter2" not in message
        assert "Basic" not in message
        log_in(tmp_path, host, auth="!!!")
        assert "damaged" in await failure(store, f"{host}/demo:1")
        (tmp_path / "docker/config.json").write_text("{")
        assert "cannot be read" in await failure(store, f"{host}/demo:1")


async def test_basic_challenges(store: ImageStore, tmp_path: Path) -> None:
    login = base64.b64encode(b"me:word").decode()

    class Basic(Registry):
        def answer(self, request: Request) -> Answer:
            if request.headers.get("authorization") != f"Basic {login}":
                return Answer(401, b"", {"WWW-Authenticate": 'Basic realm="here"'})
            return super().answer(request)

    async with serve(Basic()) as host:
        assert "refused access" in await failure(store, f"{host}/demo:1")
        log_in(tmp_path, host, auth=login)
        await pull(store, f"{host}/demo:1")


async def test_a_redirect_does_not_carry_the_token(store: ImageStore) -> None:
    storage = Registry()

    class Redirecting(Guarded):
        def blob(self, digest: str, request: Request) -> Answer:
            if digest == self.layer:
                return Answer(307, b"", {"Location": f"http://{storage_host}/demo/blobs/{digest}?signature=x"})
            return super().blob(digest, request)

    registry = Redirecting(lambda request: True)
    storage.published = registry.published
    storage.answer = lambda request: Answer(200, registry.published.blobs[registry.layer])  # type: ignore[method-assign]
    async with serve(storage) as storage_host, serve(registry) as host:
        registry.host = host
        await pull(store, f"{host}/demo:1")
    assert len(storage.requests) == 1
    assert "authorization" not in storage.requests[0].headers


async def test_redirects_without_end(store: ImageStore) -> None:
    async with serve(lambda request: Answer(302, b"", {"Location": request.path})) as host:
        assert "broke" in await failure(store, f"{host}/demo:1")


class Breaking(Registry):
    """Cuts every transfer of the layer after 100,000 bytes."""

    ranges = True

    def blob(self, digest: str, request: Request) -> Answer:
        content = self.published.blobs[digest]
        if digest != self.layer:
            return Answer(200, content)
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if not start or not self.ranges:
            return Answer(200, content, sent=100_000)
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return Answer(206, content[start:], headers, sent=100_000)


async def test_broken_transfers_are_continued(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola.images.download._PIECE_BYTES", 10_000)
    registry = Breaking()
    async with serve(registry) as host:
        image = await pull(store, f"{host}/demo:1")
    assert (image.layers[0] / "random").stat().st_size == 300_000
    ranges = [request.headers.get("range") for request in registry.requests if registry.layer in request.path]
    assert ranges[:3] == [None, "bytes=100000-", "bytes=200000-"]


async def test_transfers_that_never_end(store: ImageStore, tmp_path: Path) -> None:
    registry = Breaking()
    registry.ranges = False
    async with serve(registry) as host:
        assert "broke" in await failure(store, f"{host}/demo:1")
    assert len([request for request in registry.requests if registry.layer in request.path]) == 5
    assert list((tmp_path / "store/tmp").iterdir()) == []


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"?", lambda content: content + b"?"])
async def test_other_bytes(store: ImageStore, change: Callable[[bytes], bytes]) -> None:
    registry = Registry()
    content = registry.published.blobs
    for digest in list(content):
        original = content[digest]
        content[digest] = change(original)
        async with serve(registry) as host:
            reference = parse_reference(f"{host}/demo:1")
            with pytest.raises(CupolaError, match="other bytes than the digest") as caught:
                await store.pull(reference, registry.digest, ignore)
            assert caught.value.code == "ImagePullBackOff"
        content[digest] = original


async def test_a_short_layer(store: ImageStore) -> None:
    registry = Registry()
    registry.published.blobs[registry.layer] = registry.published.blobs[registry.layer][:-1]
    async with serve(registry) as host:
        assert "ended the transfer" in await failure(store, f"{host}/demo:1")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "limits how often"), (503, "internal failure"), (403, "refused"), (418, "HTTP 418")],
)
async def test_unhappy_answers(store: ImageStore, status: int, reason: str) -> None:
    async with serve(lambda request: Answer(status, b"")) as host:
        assert reason in await failure(store, f"{host}/demo:1")


async def test_a_huge_manifest(store: ImageStore) -> None:
    registry = Registry()
    registry.published.blobs[registry.digest] = b" " * (4 * 1024**2 + 1)
    async with serve(registry) as host:
        assert "larger than" in await failure(store, f"{host}/demo:1", "InvalidContainerImage")


async def test_what_is_no_registry(store: ImageStore) -> None:
    async with serve(lambda request: Answer(200, b"<html>hello</html>")) as host:
        assert "not valid" in await failure(store, f"{host}/demo:1", "InvalidContainerImage")


def fail_tls() -> None:
    with explained("r.example"):
        try:
            raise ssl.SSLCertVerificationError("self-signed certificate")
        except ssl.SSLError as error:
            raise httpx2.ConnectError(str(error)) from error


def test_a_certificate_nobody_vouches_for() -> None:
    with pytest.raises(CupolaError, match="No trustworthy TLS connection") as caught:
        fail_tls()
    assert caught.value.code == "ImagePullBackOff"


def test_no_answer_in_time() -> None:
    with pytest.raises(CupolaError, match="did not answer in time"), explained("r.example"):
        raise httpx2.ReadTimeout("")
