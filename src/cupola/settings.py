"""The settings: each with a default, a line in a TOML file, a `CUPOLA_*` variable and, for some, a flag.

A flag beats a variable, a variable beats the file, the file beats the default. `cupola config` shows where each
value comes from.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from cupola.domain.egress import PRIVATE
from cupola.domain.errors import CupolaError

RESERVED_PORTS = (53, 8088)
"""Of a sandbox's loopback: the name service and the agent."""
DRIVERS = ("auto", "oci", "docker")


def _default_data() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/cupola")
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "cupola"


def setting(default: Any, text: str) -> Any:
    """A field of `Settings`, with the line of help that `cupola config` prints."""
    if callable(default):
        return field(default_factory=default, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What can be set. Times are in seconds, sizes in bytes."""

    data: Path = setting(_default_data, "folder for everything that is kept")
    https_port: int = setting(8443, "port for HTTPS on localhost; 0 takes any free one")
    http_port: int = setting(8080, "port for HTTP on 127.0.0.1; 0 takes any free one")
    driver: str = setting("auto", "what makes sandboxes: oci, docker, or auto for the first of them that can")
    server_user: str = setting(
        "",
        "user that the server runs as when root starts it; empty takes cupola or a number of its own; root is no change",
    )
    oci_runtime: str = setting("", "OCI runtime of the oci driver: crun, runc or runsc; empty takes crun, else runc")
    startup_timeout: float = setting(60.0, "how long an agent may take from its start to answering GET /readiness")
    stop_grace: float = setting(30.0, "time between SIGTERM and SIGKILL when a sandbox is stopped")
    freeze_after: float = setting(10.0, "idle time after which a sandbox is frozen; 0 never freezes")
    hold_limit: float = setting(
        4 * 3600.0, "longest time that one request or background response keeps a sandbox awake"
    )
    pool_size: int = setting(2, "most sandboxes made ahead for each version in use; 0 makes none")
    max_sandboxes: int = setting(500, "most sandboxes at once; 0 for no limit")
    max_sandbox_memory: int = setting(0, "most memory that the limits of all sandboxes may add up to; 0 for no limit")
    sandbox_queue: int = setting(100, "most requests that wait for a sandbox when the server is full")
    sandbox_queue_timeout: float = setting(30.0, "how long such a request waits before it is refused")
    session_disk: int = setting(
        10 * 1024**3,
        "what a session may keep on the disk, in its writable layer, $HOME and /files together; 0 is no limit",
    )
    disk_reserve: int = setting(
        1024**3, "free space of the disk at which sandboxes that go on writing are stopped; 0 is none"
    )
    max_request_body: int = setting(32 * 1024**2, "largest body of a request")
    provisioning_concurrency: int = setting(2, "versions that are pulled and tried at once")
    local_images: bool = setting(
        True, "let administrators deploy oci:, oci-archive:, docker-archive:, docker-daemon: images"
    )
    docker_socket: Path = setting(
        Path("/var/run/docker.sock"), "Docker engine of the docker driver and of docker-daemon: images"
    )
    registry_mirrors: dict[str, str] = setting(dict, "registry host = base URL of a registry to ask instead")
    insecure_registries: tuple[str, ...] = setting((), "registry hosts that are asked by plain HTTP")
    egress: str = setting("open", "what sandboxes of a project without a policy may reach: open, none")
    hosting: bool = setting(
        False, "let agents keep responses, tasks and state with the platform: official containers then run hosted"
    )
    sandbox_network: str = setting("10.183.0.0/16", "private network that sandboxes' addresses are from")
    dns_servers: tuple[str, ...] = setting((), "addresses to ask for names; empty asks those of /etc/resolv.conf")


_VARIABLES = {"CUPOLA_CONFIG", *(f"CUPOLA_{entry.name.upper()}" for entry in fields(Settings))}


@dataclass(frozen=True)
class Value:
    """A setting's value and where it comes from."""

    name: str
    value: Any
    source: str
    help: str


def load(
    flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Settings, list[Value]]:
    """The settings in force and the source of each. Flags that are None were not given.

    Raises CupolaError that names the setting and its source when a value cannot be used.
    """
    environment = os.environ if environment is None else environment
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    path, in_file = _read_file(environment)
    for variable in environment:
        if variable.startswith("CUPOLA_") and variable not in _VARIABLES:
            raise CupolaError("bad_setting", f"{variable} is not a setting; `cupola config` lists them.")
    values: list[Value] = []
    for entry in fields(Settings):
        variable = f"CUPOLA_{entry.name.upper()}"
        if entry.name in given:
            raw, source = given[entry.name], f"--{entry.name.replace('_', '-')}"
        elif environment.get(variable):
            raw, source = environment[variable], variable
        elif entry.name in in_file:
            raw, source = in_file[entry.name], str(path)
        else:
            raw, source = _default(entry), "default"
        values.append(Value(entry.name, _convert(entry.name, raw, source), source, entry.metadata["help"]))
    return Settings(**{value.name: value.value for value in values}), values


def _read_file(environment: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    named = environment.get("CUPOLA_CONFIG")
    path = Path(named) if named else Path("/etc/cupola/cupola.toml")
    if not path.exists():
        if named:
            raise CupolaError("bad_setting", f"CUPOLA_CONFIG names {path}, which does not exist.")
        return path, {}
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CupolaError("bad_setting", f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise CupolaError("bad_setting", f"{path} cannot be read: {error.strerror}") from error
    known = {entry.name for entry in fields(Settings)}
    for name in content:
        if name not in known:
            raise CupolaError("bad_setting", f"{path}: {name!r} is not a setting; `cupola config` lists them.")
    return path, content


def _default(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _convert(name: str, raw: Any, source: str) -> Any:
    example = _default(next(entry for entry in fields(Settings) if entry.name == name))
    try:
        value = _CONVERTERS[type(example)](raw)
    except (TypeError, ValueError):
        wanted = _WANTED[type(example)]
        raise CupolaError("bad_setting", f"{name} (from {source}): expected {wanted}, got {raw!r}.") from None
    if name.endswith("_port") and not 0 <= value <= 65535:
        raise CupolaError("bad_setting", f"{name} (from {source}): expected 0 to 65535, got {value}.")
    if isinstance(value, int | float) and not value >= 0:
        raise CupolaError("bad_setting", f"{name} (from {source}): expected at least 0, got {value}.")
    if name == "registry_mirrors":
        for host, url in value.items():
            if not url.startswith(("http://", "https://")):
                raise CupolaError(
                    "bad_setting", f"{name} (from {source}): {url!r} for {host} must begin with http:// or https://."
                )
    if name == "https_port" and value in RESERVED_PORTS:
        text = f"https_port (from {source}): {value} is in use inside of sandboxes; choose another port."
        raise CupolaError("bad_setting", text)
    if name in _CHECKS:
        try:
            _CHECKS[name](value)
        except ValueError as error:
            raise CupolaError("bad_setting", f"{name} (from {source}): {error}.") from None
    return value


def _check_driver(value: str) -> None:
    if value not in DRIVERS:
        raise ValueError(f"{value!r} is unknown; the drivers are {', '.join(DRIVERS)}")


def _check_egress(value: str) -> None:
    if value not in ("open", "none"):
        raise ValueError(f"expected open or none, got {value!r}; a project's own policy can be an allow-list")


def _check_sandbox_network(value: str) -> None:
    wanted = "expected a private network such as 10.183.0.0/16, from /8 to /24"
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError:
        raise ValueError(f"{wanted}, got {value!r}") from None
    if not 8 <= network.prefixlen <= 24 or not any(network.subnet_of(private) for private in PRIVATE):
        raise ValueError(f"{wanted}, got {value!r}")


def _check_dns_servers(value: tuple[str, ...]) -> None:
    for address in value:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(f"expected addresses such as 192.0.2.53, got {address!r}") from None


_CHECKS: dict[str, Callable[[Any], None]] = {
    "driver": _check_driver,
    "egress": _check_egress,
    "sandbox_network": _check_sandbox_network,
    "dns_servers": _check_dns_servers,
}


def _to_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if str(raw).lower() in {"1", "true", "yes", "on"}:
        return True
    if str(raw).lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError(raw)


def _to_number(raw: Any) -> int:
    if isinstance(raw, bool | float):
        raise TypeError(raw)
    return int(raw)


def _to_float(raw: Any) -> float:
    if isinstance(raw, bool):
        raise TypeError(raw)
    return float(raw)


def _to_text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(raw)
    return raw


def _to_path(raw: Any) -> Path:
    if not isinstance(raw, str | Path):
        raise TypeError(raw)
    return Path(raw).expanduser().absolute()


def _to_list(raw: Any) -> tuple[str, ...]:
    return (
        tuple(part.strip() for part in raw.split(",") if part.strip())
        if isinstance(raw, str)
        else tuple(map(_to_text, raw))
    )


def _to_pairs(raw: Any) -> dict[str, str]:
    if isinstance(raw, str):
        pairs = [part.partition("=") for part in raw.split(",") if part.strip()]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError(raw)
        return {key.strip(): value.strip() for key, _, value in pairs}
    return {key: _to_text(value) for key, value in dict(raw).items()}


_WANTED: dict[type, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", type(Path()): "a path",
    tuple: "a list", dict: "pairs such as host=url",
}  # fmt: skip
_CONVERTERS: dict[type, Any] = {
    bool: _to_bool, int: _to_number, float: _to_float, str: _to_text, type(Path()): _to_path, tuple: _to_list, dict: _to_pairs,
}  # fmt: skip
