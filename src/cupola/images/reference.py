"""What an image string means: a name in a registry, or a place on this machine.

Names follow the grammar of Docker and of the OCI distribution specification (section "Pulling manifests");
the places are spelt as in containers-transports(5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from cupola.domain.errors import CupolaError
from cupola.images.failures import invalid_image

Transport = Literal["registry", "oci", "oci-archive", "docker-archive", "docker-daemon"]

DOCKER_HUB = "docker.io"
MAX_REFERENCE_LENGTH = 512
MAX_NAME_LENGTH = 255

_REGISTRY = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?",
    re.ASCII | re.IGNORECASE,
)
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """One image, by name.

    `registry`, `repository`, `tag` and `digest` are set for names; `path` for directories and archives. An
    OCI layout's `tag` is the `org.opencontainers.image.ref.name` looked for. Without a tag or name, an
    archive or layout is expected to hold one image.
    """

    transport: Transport
    registry: str = ""
    repository: str = ""
    tag: str | None = None
    digest: str | None = None
    path: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the image is read from this machine."""
        return self.transport != "registry"

    @property
    def name(self) -> str:
        """Registry, repository, tag and digest, with every default written out; empty for a bare path."""
        if not self.repository:
            return ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    def __str__(self) -> str:
        if self.transport == "registry":
            return self.name
        selected = self.name if self.repository else self.tag
        return f"{self.transport}:{':'.join(part for part in (self.path, selected) if part)}"


def is_digest(text: str) -> bool:
    """Whether this is a digest of the one algorithm in use: `sha256:` and 64 lower-case hexadecimals."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Read an image string.

    Raises CupolaError `InvalidContainerImage`, which says what is wrong and shows a right example.
    """
    if not text:
        raise _refusal(text, "it is empty")
    if len(text) > MAX_REFERENCE_LENGTH:
        raise _refusal(text, f"it is longer than {MAX_REFERENCE_LENGTH} characters")
    if not text.isprintable() or " " in text:
        raise _refusal(text, "it contains whitespace or control characters")
    transport, colon, rest = text.partition(":")
    if colon and transport in get_args(Transport)[1:]:
        return _parse_local(text, cast("Transport", transport), rest)
    if "://" in text:
        raise _refusal(text, f"leave out {text.partition('://')[0] + '://'!r}")
    return _parse_name(text, text, "registry")


def _parse_local(text: str, transport: Transport, rest: str) -> Reference:
    if transport == "docker-daemon":
        return _parse_name(text, rest, transport)
    path, colon, selected = rest.partition(":")
    if not path:
        raise _refusal(text, f"a path must follow {transport + ':'!r}", f"{transport}:/srv/images/agent.tar")
    if colon and not selected:
        raise _refusal(text, "nothing follows the last colon", f"{transport}:{path}")
    if transport == "docker-archive" and selected:
        return _parse_name(text, selected, transport, path)
    return Reference(transport, tag=selected or None, path=path)


def _parse_name(text: str, name: str, transport: Transport, path: str = "") -> Reference:
    name, at, digest = name.partition("@")
    if at and not is_digest(digest):
        raise _refusal(text, "its digest is not sha256: followed by 64 lower-case hexadecimal digits")
    if at and transport != "registry":
        raise _refusal(text, f"{transport} finds images by name and tag, not by digest")
    registry, repository = _split_registry(name)
    repository, colon, tag = repository.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refusal(text, f"its tag {tag!r} is not 1 to 128 letters, digits, '_', '.' or '-'")
    if not _REGISTRY.fullmatch(registry):
        raise _refusal(text, f"{registry!r} is not a registry's host name")
    if repository != repository.lower():
        raise _refusal(
            text, "the repository name must be lower case", f"{registry}/{repository.lower()}:{tag or '1.0'}"
        )
    if not _REPOSITORY.fullmatch(repository):
        raise _refusal(text, f"{repository!r} is not a repository name")
    if len(registry) + 1 + len(repository) > MAX_NAME_LENGTH:
        raise _refusal(text, f"the name is longer than {MAX_NAME_LENGTH} characters")
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(transport, registry, repository, tag or (None if digest else "latest"), digest or None, path)


def _split_registry(name: str) -> tuple[str, str]:
    """The first component is a registry when it cannot be part of a repository's name, as in Docker."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry = first.lower()
        return (DOCKER_HUB if registry in ("index.docker.io", "registry-1.docker.io") else registry), rest
    return DOCKER_HUB, name


def _refusal(text: str, reason: str, example: str = "myregistry.azurecr.io/my-agent:1.0") -> CupolaError:
    shown = text if len(text) <= 120 else text[:120] + "…"
    return invalid_image(f"{shown!r} is not a container image reference: {reason}. A right one is {example!r}.")
