"""The definition of a hosted agent version: every spelling in, one normal form inside, a superset out.

Three client generations are served at once (wire contract, section 3.4). What they name differently is normalised
here; what is wrong is collected, so that one answer names every field at fault and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupola.domain.errors import CupolaError, FieldProblem

PROTOCOLS = frozenset(
    {"responses", "invocations", "invocations_ws", "activity", "activity_protocol", "a2a", "mcp", "voice",
     "voice_conversation_engine"}
)  # fmt: skip
PROTOCOL_VERSIONS = frozenset({"v1", "1.0.0", "2.0.0"})
RESERVED_PREFIXES = ("FOUNDRY_", "AGENT_")

MINIMUM_CPU, MAXIMUM_CPU = 0.25, 4.0
MINIMUM_MEMORY, MAXIMUM_MEMORY = 512 * 1024**2, 8 * 1024**3
DEFAULT_IDLE_TIMEOUT = 900
ENVIRONMENT_LIMIT = 128 * 1024
"""Bytes of all names and values together: what a process can be started with leaves room for no more."""

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUANTITY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(Mi|Gi)")
_CPU = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell it, UTF-8 cannot."""
_OTHER_KINDS = ("prompt", "workflow", "external", "voice", "container_app")
_PASSED_ON = ("tools", "telemetry_config", "rai_config", "enable_memory_snapshot")
"""Fields that are stored and shown as they came."""


@dataclass(frozen=True)
class ProtocolVersion:
    """A protocol that the container speaks, and the version of the contract it speaks it by."""

    protocol: str
    version: str


@dataclass(frozen=True)
class Definition:
    """What to run. `cpu` and `memory` are as the caller wrote them; `cpu_cores` and `memory_bytes` as enforced."""

    image: str
    protocols: tuple[ProtocolVersion, ...]
    cpu: str
    memory: str
    environment: tuple[tuple[str, str], ...]
    idle_timeout: int
    registry_connection_id: str | None
    extra: Mapping[str, Any]

    @property
    def cpu_cores(self) -> float:
        return float(self.cpu)

    @property
    def memory_bytes(self) -> int:
        return _memory_bytes(self.memory)

    @property
    def primes(self) -> bool:
        """Whether the definition asks for interpreters that are made ready ahead."""
        return self.extra.get("enable_memory_snapshot") is True

    def speaks(self, protocol: str) -> bool:
        """Whether the definition declares a protocol."""
        return any(entry.protocol == protocol for entry in self.protocols)

    def to_wire(self) -> dict[str, Any]:
        """The JSON form, with the field names of every client generation."""
        protocols = [{"protocol": entry.protocol, "version": entry.version} for entry in self.protocols]
        container: dict[str, Any] = {"image": self.image}
        if self.registry_connection_id is not None:
            container["registry_connection_id"] = self.registry_connection_id
        return {
            "kind": "hosted",
            "cpu": self.cpu,
            "memory": self.memory,
            "environment_variables": dict(self.environment),
            "container_configuration": container,
            "protocol_versions": protocols,
            "session_configuration": {"idle_timeout_seconds": self.idle_timeout},
            "image": self.image,
            "container_protocol_versions": protocols,
            **self.extra,
        }


class _Problems:
    def __init__(self) -> None:
        self.found: list[FieldProblem] = []

    def add(self, field: str, message: str, code: str = "invalid_value") -> None:
        self.found.append(FieldProblem(field, message, code))

    def raise_if_any(self) -> None:
        if not self.found:
            return
        first = self.found[0]
        text = f"{first.field}: {first.message}"
        if len(self.found) > 1:
            others = "; ".join(f"{problem.field}: {problem.message}" for problem in self.found[1:])
            count = len({problem.field for problem in self.found})
            text = f"{count} fields are wrong. {text}; {others}"
        code = first.code if first.code != "invalid_value" and len(self.found) == 1 else "bad_request"
        raise CupolaError(code, text, param=first.field, problems=tuple(self.found))


def parse_definition(body: object) -> Definition:
    """Normalise a posted `definition`. Raises CupolaError (400) that names every field at fault and the fix."""
    if not isinstance(body, dict):
        raise CupolaError(
            "bad_request",
            'definition: expected an object such as {"kind": "hosted", "container_configuration": {"image": …}, …}.',
            param="definition",
        )
    problems = _Problems()
    _check_kind(body.get("kind"))
    image, connection = _image(body, problems)
    cpu = _cpu(body.get("cpu"), problems)
    memory = _memory(body.get("memory"), problems)
    definition = Definition(
        image=image,
        protocols=_protocols(body, problems),
        cpu=cpu,
        memory=memory,
        environment=_environment(body.get("environment_variables"), problems),
        idle_timeout=_idle_timeout(body.get("session_configuration"), problems),
        registry_connection_id=connection,
        extra=_extra(body, problems),
    )
    problems.raise_if_any()
    return definition


def parse_metadata(value: object) -> dict[str, str]:
    """At most 16 pairs of strings, keys up to 64 and values up to 512 characters. Raises CupolaError (400)."""
    if value is None:
        return {}
    problems = _Problems()
    if not isinstance(value, dict):
        problems.add("metadata", "expected an object of strings")
    else:
        if len(value) > 16:
            problems.add("metadata", f"has {len(value)} pairs; keep at most 16")
        for key, text in value.items():
            if len(key) > 64:
                problems.add("metadata", f"the key '{key[:64]}…' has {len(key)} characters; keep at most 64")
            if not isinstance(text, str):
                problems.add(f"metadata.{key[:64]}", "expected a string")
            elif len(text) > 512:
                problems.add(f"metadata.{key[:64]}", f"has {len(text)} characters; keep at most 512")
    problems.raise_if_any()
    return dict(value) if isinstance(value, dict) else {}


def _check_kind(kind: object) -> None:
    if kind == "hosted":
        return
    if kind is None:
        raise CupolaError("bad_request", 'definition.kind is missing; write "kind": "hosted".', param="definition.kind")
    known = " is an agent kind of the cloud service that Cupola does not run" if kind in _OTHER_KINDS else " is unknown"
    raise CupolaError(
        "unsupported_agent_kind",
        f'definition.kind: {str(kind)[:64]!r}{known}; use "hosted" with a container image.',
        param="definition.kind",
    )


def _image(body: dict[str, Any], problems: _Problems) -> tuple[str, str | None]:
    if body.get("code_configuration") is not None:
        problems.add(
            "definition.code_configuration",
            "code deploys are not available yet; give container_configuration.image",
        )
    container = body.get("container_configuration")
    if container is not None and not isinstance(container, dict):
        problems.add("definition.container_configuration", 'expected an object such as {"image": "registry/name:tag"}')
        return "", None
    new, old = (container or {}).get("image"), body.get("image")
    field = "definition.image" if new is None and old is not None else "definition.container_configuration.image"
    image = old if new is None else new
    if image is None or image == "":
        problems.add(
            field,
            "is missing; give a container image such as registry.example.com/agent:1",
            "InvalidContainerImage",
        )
    elif not isinstance(image, str):
        problems.add(field, "expected a string such as registry.example.com/agent:1", "InvalidContainerImage")
    elif new is not None and old is not None and new != old:
        problems.add("definition.image", "differs from container_configuration.image; give one of them")
    connection = (container or {}).get("registry_connection_id")
    if connection is not None and not isinstance(connection, str):
        problems.add("definition.container_configuration.registry_connection_id", "expected a string")
        connection = None
    return (image if isinstance(image, str) else ""), connection


def _protocols(body: dict[str, Any], problems: _Problems) -> tuple[ProtocolVersion, ...]:
    new, old = body.get("protocol_versions"), body.get("container_protocol_versions")
    field = "definition.protocol_versions" if new is not None else "definition.container_protocol_versions"
    value = new if new is not None else old
    if value is None:
        return (ProtocolVersion("responses", "2.0.0"),)
    example = '[{"protocol": "responses", "version": "2.0.0"}]'
    if not isinstance(value, list) or not value:
        problems.add(field, f"expected a list with at least one entry, such as {example}")
        return ()
    found: list[ProtocolVersion] = []
    for index, entry in enumerate(value):
        protocol = entry.get("protocol") if isinstance(entry, dict) else None
        version = entry.get("version") if isinstance(entry, dict) else None
        if not isinstance(protocol, str) or not isinstance(version, str):
            problems.add(f"{field}[{index}]", f"expected an object with protocol and version, such as {example[1:-1]}")
        elif protocol not in PROTOCOLS:
            known = ", ".join(sorted(PROTOCOLS))
            problems.add(f"{field}[{index}].protocol", f"{protocol[:64]!r} is unknown; use one of {known}",
                         "ProtocolVersionNotSupported")  # fmt: skip
        elif version not in PROTOCOL_VERSIONS:
            known = ", ".join(sorted(PROTOCOL_VERSIONS))
            problems.add(f"{field}[{index}].version", f"{version[:64]!r} is not supported for {protocol}; use one of {known}",
                         "ProtocolVersionNotSupported")  # fmt: skip
        else:
            found.append(ProtocolVersion(protocol, version))
    return tuple(dict.fromkeys(found))


def _cpu(value: object, problems: _Problems) -> str:
    if value is None:
        return "1"
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _CPU.fullmatch(text) or not MINIMUM_CPU <= float(text) <= MAXIMUM_CPU:
        problems.add("definition.cpu", f'{str(value)[:64]!r} is not a number of cores from 0.25 to 4, such as "0.5"')
        return "1"
    return text


def _memory(value: object, problems: _Problems) -> str:
    if value is None:
        return "2Gi"
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value) or not (
        MINIMUM_MEMORY <= _memory_bytes(value) <= MAXIMUM_MEMORY
    ):  # fmt: skip
        problems.add("definition.memory", f'{str(value)[:64]!r} is not an amount from 0.5Gi to 8Gi, such as "1Gi"')
        return "2Gi"
    return value


def _memory_bytes(text: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"not an amount of memory: {text!r}")
    return int(float(match[1]) * {"Mi": 1024**2, "Gi": 1024**3}[match[2]])


def _environment(value: object, problems: _Problems) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        problems.add("definition.environment_variables", 'expected an object of strings, such as {"LOG_LEVEL": "INFO"}')
        return ()
    for name, text in value.items():
        field = f"definition.environment_variables.{name[:64]}"
        if not _VARIABLE_NAME.fullmatch(name):
            problems.add(
                field,
                "is not a variable name; use letters, digits and underscores, not starting with a digit",
            )
        elif name.startswith(RESERVED_PREFIXES):
            problems.add(
                field,
                "is reserved: the platform sets names that start with FOUNDRY_ and AGENT_; choose another",
            )
        if not isinstance(text, str) or "\0" in text or _LONE_SURROGATE.search(text):
            problems.add(field, "expected a string of Unicode without NUL characters")
    pairs = tuple((name, text) for name, text in value.items() if isinstance(text, str))
    if sum(len(part.encode(errors="replace")) for pair in pairs for part in pair) > ENVIRONMENT_LIMIT:
        problems.add("definition.environment_variables", "are larger than 128 KiB together; put large values in files")
    return pairs


def _idle_timeout(value: object, problems: _Problems) -> int:
    if value is None or (isinstance(value, dict) and value.get("idle_timeout_seconds") is None):
        return DEFAULT_IDLE_TIMEOUT
    field = "definition.session_configuration.idle_timeout_seconds"
    seconds = value["idle_timeout_seconds"] if isinstance(value, dict) else None
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not (seconds == 0 or 120 <= seconds <= 14400):
        problems.add(field, "is not a whole number of seconds from 120 to 14400, or 0 for never")
        return DEFAULT_IDLE_TIMEOUT
    return seconds


def _extra(body: dict[str, Any], problems: _Problems) -> dict[str, Any]:
    kinds: dict[str, type] = {
        "tools": list,
        "telemetry_config": dict,
        "rai_config": dict,
        "enable_memory_snapshot": bool,
    }
    extra = {key: body[key] for key in _PASSED_ON if body.get(key) is not None}
    for key, value in extra.items():
        if not isinstance(value, kinds[key]):
            problems.add(f"definition.{key}", f"expected {'an array' if kinds[key] is list else kinds[key].__name__}")
    return extra
