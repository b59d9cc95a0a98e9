from __future__ import annotations

import json
from typing import Any

import pytest

from cupola.domain.errors import CupolaError
from cupola.images.manifest import (
    Descriptor,
    Manifest,
    Platform,
    parse_configuration,
    parse_document,
    select_platform,
)
from cupola.images.pull import pair_layers
from tests.unit.images.samples import config_json, digest_of

A, B, C = (digest_of(text) for text in (b"a", b"b", b"c"))


def offer(digest: str, architecture: str, os: str = "linux", variant: str | None = None) -> Descriptor:
    return Descriptor(digest, 1, platform=Platform(architecture, os, variant))


def refusal(raw: bytes) -> str:
    with pytest.raises(CupolaError) as caught:
        parse_document(raw, "demo")
    assert caught.value.code == "InvalidContainerImage"
    return caught.value.message


def manifest(**changes: Any) -> bytes:
    blob = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": A, "size": 1}
    return json.dumps({"schemaVersion": 2, "config": blob, "layers": [blob], **changes}).encode()


def test_amd64_is_chosen_and_the_least_demanding_variant() -> None:
    assert select_platform([offer(A, "arm64"), offer(B, "amd64")], "demo").digest == B
    choices = [offer(A, "amd64", variant="v3"), offer(B, "amd64", variant="v2"), offer(C, "amd64", "windows")]
    assert select_platform(choices, "demo").digest == B
    assert select_platform([offer(A, "amd64", variant="v2"), offer(B, "amd64")], "demo").digest == B


def test_attestations_are_not_images() -> None:
    assert select_platform([offer(A, "unknown", "unknown"), Descriptor(B, 1)], "demo").digest == B
    attestation = Descriptor(A, 1, annotations={"vnd.docker.reference.type": "attestation-manifest"})
    assert select_platform([attestation, Descriptor(B, 1)], "demo").digest == B


def test_other_platforms_are_named() -> None:
    offers = [offer(A, "arm64", variant="v8"), offer(B, "amd64", "windows"), offer(C, "amd64", variant="v4")]
    with pytest.raises(CupolaError) as caught:
        select_platform(offers, "demo")
    assert caught.value.code == "InvalidContainerImage"
    assert "linux/amd64/v4, linux/arm64/v8, windows/amd64" in caught.value.message
    assert "docker build --platform linux/amd64" in caught.value.message


def test_a_single_manifest_for_arm_is_refused() -> None:
    with pytest.raises(CupolaError, match="found: linux/arm64"):
        parse_configuration(config_json([A], "arm64"), "demo")


def test_an_artifact_is_not_an_image() -> None:
    with pytest.raises(CupolaError, match="not a container image"):
        parse_configuration(b"{}", "demo")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not valid"),
        (b"[]", "not valid"),
        (b"[" * 100_000, "not valid"),
        (b"\xff", "not valid"),
        (b"{}", "not valid"),
        (json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(), "schema version 1"),
        (manifest(manifests=[]), "ambiguous"),
        (manifest(config={"digest": "sha256:../../etc/passwd", "size": 1}), "64 lower-case"),
        (manifest(config={"digest": A, "size": -1}), "negative"),
        (manifest(layers=[{"digest": A, "size": "1"}]), "not valid"),
        (manifest(layers=[{"digest": A, "size": 1}] * 501), "at most 500"),
        (
            manifest(
                layers=[
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                        "digest": A,
                        "size": 1,
                    }
                ]
            ),
            "foreign layer",
        ),
        (
            manifest(
                layers=[
                    {
                        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                        "digest": A,
                        "size": 1,
                    }
                ]
            ),
            "encrypted",
        ),
    ],
)
def test_refused_documents(raw: bytes, reason: str) -> None:
    assert reason in refusal(raw)


def test_the_configuration_is_read() -> None:
    raw = config_json(
        [A],
        Entrypoint=["python"],
        Cmd=["main.py"],
        Env=["A=1", "B=x=y", "C"],
        WorkingDir="/app",
        User="1000:1000",
        StopSignal="SIGINT",
        Labels={"a": "b"},
    )
    config = parse_configuration(raw, "demo").config
    assert (config.entrypoint, config.command) == (("python",), ("main.py",))
    assert config.environment == (("A", "1"), ("B", "x=y"), ("C", ""))
    assert (config.working_directory, config.user, config.stop_signal) == ("/app", "1000:1000", "SIGINT")
    assert config.labels == (("a", "b"),)


def test_an_empty_configuration_has_defaults() -> None:
    config = parse_configuration(config_json([A], Entrypoint=None, Env=None, Labels=None), "demo").config
    assert (config.entrypoint, config.command, config.environment) == ((), (), ())
    assert (config.working_directory, config.user, config.stop_signal) == ("/", "", None)


@pytest.mark.parametrize("execution", [{"Env": ["A=\0"]}, {"Cmd": ["\0"]}, {"WorkingDir": "/\0"}])
def test_nul_characters_are_refused(execution: dict[str, Any]) -> None:
    with pytest.raises(CupolaError, match="NUL"):
        parse_configuration(config_json([A], **execution), "demo")


def test_a_layer_that_occurs_twice_is_stacked_once_on_top() -> None:
    document = parse_document(manifest(layers=[{"digest": d, "size": 1} for d in (A, B, A)]), "demo")
    assert isinstance(document, Manifest)
    pairs = pair_layers(document, parse_configuration(config_json([A, B, A]), "demo"), "demo")
    assert list(pairs) == [B, A]


def test_the_numbers_of_layers_and_diff_ids_must_agree() -> None:
    document = parse_document(manifest(), "demo")
    assert isinstance(document, Manifest)
    with pytest.raises(CupolaError, match="has 1 layers, and its configuration names 2"):
        pair_layers(document, parse_configuration(config_json([A, B]), "demo"), "demo")
