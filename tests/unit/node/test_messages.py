"""What is sent is what arrives, and no message names a path that the server may choose."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import pytest

from cupola.domain.egress import AllowedName, EgressMode, EgressPolicy
from cupola.node import messages as wire
from cupola.sandbox.base import SandboxSpec

FOLDER = Path("/data")
LAYER = f"images/layers/{'a' * 64}"


def spec(**fields: object) -> SandboxSpec:
    values: dict[str, object] = {
        "name": "s-1",
        "layers": (FOLDER / LAYER,),
        "arguments": ("python3", "main.py"),
        "environment": (("PATH", "/bin"), ("NAME", "caf\u00e9")),
        "working_directory": "/app",
        "user": "1000",
        "home": FOLDER / "volumes" / "abc-1" / "home",
        "files": FOLDER / "volumes" / "abc-1" / "files",
        "cpu": 0.5,
        "memory": 1 << 30,
        **fields,
    }
    return SandboxSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"home": None, "files": None, "channel": True},
        {"layers": ()},
        {
            "egress": EgressPolicy(
                EgressMode.ALLOW_LIST, (AllowedName("example.com", True, 443),), (IPv4Network("10.0.0.0/8"),)
            )
        },
    ],
)
def test_a_specification_arrives_as_it_was_sent(fields: dict[str, object]) -> None:
    codec: wire.Codec[wire.Numbered] = wire.Codec(FOLDER, wire.Numbered)
    sent = wire.Numbered(7, wire.Start(spec(**fields)))
    assert codec.decode(codec.encode(sent)) == sent


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "..",
        "volumes",
        "volumes/../../etc/home",
        "volumes/a/b/home",
        "volumes/a/home/x",
        "volumes/a/home\n",
        "volumes//home",
        "volumes/A/home",
        "volumes/./home",
        "server/tls",
        "images/layers/..",
        f"images/layers/{'a' * 63}",
        f"images/layers/{'A' * 64}",
        f"{LAYER}/etc",
        "sandboxes/s-1/upper",
        "",
        7,
        None,
    ],
)
def test_other_paths_cannot_be_named(path: object) -> None:
    codec: wire.Codec[wire.Numbered] = wire.Codec(FOLDER, wire.Numbered)
    sent = msgspec.msgpack.decode(
        codec.encode(wire.Numbered(1, wire.Attach("s-1", FOLDER / "volumes/a/home", FOLDER / "volumes/a/files")))
    )
    assert codec.decode(msgspec.msgpack.encode(sent)).number == 1
    sent["request"]["home"] = path
    with pytest.raises(msgspec.MsgspecError):
        codec.decode(msgspec.msgpack.encode(sent))


def test_a_path_outside_of_the_folder_is_not_sent() -> None:
    codec: wire.Codec[wire.Numbered] = wire.Codec(FOLDER, wire.Numbered)
    with pytest.raises(ValueError, match="subpath"):
        codec.encode(wire.Start(spec(home=Path("/etc"))))


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x93\x01\x02\x03", msgspec.msgpack.encode({"number": 1, "request": {"type": "Shell"}})]
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        wire.Codec(FOLDER, wire.Numbered).decode(body)
