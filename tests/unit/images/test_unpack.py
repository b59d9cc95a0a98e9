"""Every layer here is unpacked by the real process, into its own root directory."""

from __future__ import annotations

import asyncio
import os
import stat
import tarfile
from pathlib import Path

import pytest
import zstandard

from cupola.domain.errors import CupolaError
from cupola.images.layers import LayerStore
from cupola.images.reference import parse_reference
from cupola.images.sources import Blob
from cupola.images.store import ImageStore
from tests.unit.images.samples import (
    Published,
    compressed,
    digest_of,
    directory,
    entry,
    hardlink,
    ignore,
    symlink,
    tar,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")


async def unpack(
    tmp_path: Path,
    content: bytes,
    *,
    diff_id: str | None = None,
    max_bytes: int = 10**9,
    max_entries: int = 10_000,
) -> Path:
    await asyncio.to_thread(tmp_path.mkdir, exist_ok=True)
    blob = tmp_path / "blob"
    blob.write_bytes(content)
    layers = LayerStore(tmp_path / "layers", max_entries)
    name = diff_id or digest_of(content)
    with blob.open("rb") as file:
        await layers.unpack(name, Blob(file, 0, len(content)), max_bytes)
    return layers.path(name)


async def refusal(tmp_path: Path, content: bytes, **options: int) -> str:
    with pytest.raises(CupolaError) as caught:
        await unpack(tmp_path, content, **options)  # type: ignore[arg-type]
    assert caught.value.code == "InvalidContainerImage"
    assert list((tmp_path / "layers").iterdir()) == []
    return caught.value.message


async def test_owners_modes_and_times_are_kept(tmp_path: Path) -> None:
    layer = await unpack(
        tmp_path,
        tar(
            directory("bin", mode=0o750, uid=7, gid=8, mtime=1_600_000_000),
            entry("bin/su", b"x", mode=0o4755, uid=7, gid=8),
            entry("bin/module.pyc", b"y", mtime=1_234_567_890.123456789),
            entry("tmp", kind=tarfile.DIRTYPE, mode=0o1777),
            symlink("bin/sh", "su"),
        ),
    )
    status = (layer / "bin/su").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o4755, 7, 8)
    assert status.st_mtime_ns == 1_700_000_000 * 10**9
    status = (layer / "bin").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o750, 7, 1_600_000_000)
    assert int((layer / "bin/module.pyc").stat().st_mtime) == 1_234_567_890
    assert stat.S_IMODE((layer / "tmp").stat().st_mode) == 0o1777
    assert (layer / "bin/sh").lstat().st_mtime == 1_700_000_000
    assert os.readlink(layer / "bin/sh") == "su"  # noqa: PTH115


async def test_times_are_exact(tmp_path: Path) -> None:
    member, content = entry("a", pax_headers={"mtime": "1700000000.999999999"})
    layer = await unpack(tmp_path, tar((member, content)))
    assert (layer / "a").stat().st_mtime_ns == 1_700_000_000_999_999_999


async def test_parents_that_the_layer_does_not_contain_are_made(tmp_path: Path) -> None:
    layer = await unpack(tmp_path, tar(entry("./a/b/c", b"x"), entry("/d//e", b"y")))
    assert (layer / "a/b/c").read_bytes() == b"x"
    assert (layer / "d/e").read_bytes() == b"y"


async def test_long_and_strange_names(tmp_path: Path) -> None:
    names = ["n" * 255, "/".join(["d" * 100] * 20), "caf\udce9", "ünï", "-rf", "a\nb"]
    layer = await unpack(tmp_path, tar(*(entry(name, b"x") for name in names)))
    for name in names:
        assert (layer / name).read_bytes() == b"x"
    assert os.fsencode("caf\udce9") == b"caf\xe9"
    assert "cannot be written" in await refusal(tmp_path / "long", tar(entry("n" * 256)))
    assert "longer than 4095" in await refusal(tmp_path / "longer", tar(entry("/".join(["d" * 100] * 50))))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_formats(tmp_path: Path, form: int) -> None:
    layer = await unpack(tmp_path, tar(entry("a" * 90 + "/" + "b" * 90, b"x"), form=form))
    assert (layer / ("a" * 90) / ("b" * 90)).read_bytes() == b"x"


async def test_later_entries_win(tmp_path: Path) -> None:
    layer = await unpack(
        tmp_path,
        tar(
            entry("twice", b"1"),
            entry("twice", b"22"),
            directory("was-directory"),
            entry("was-directory/inside", b"x"),
            entry("was-directory", b"file"),
            entry("was-file", b"x"),
            directory("was-file"),
            entry("was-file/inside", b"y"),
            symlink("was-link", "/"),
            entry("was-link", b"z"),
            directory("kept"),
            entry("kept/inside", b"k"),
            directory("kept", mode=0o700),
        ),
    )
    assert (layer / "twice").read_bytes() == b"22"
    assert (layer / "was-directory").read_bytes() == b"file"
    assert (layer / "was-file/inside").read_bytes() == b"y"
    assert (layer / "was-link").read_bytes() == b"z"
    assert (layer / "kept/inside").read_bytes() == b"k"
    assert stat.S_IMODE((layer / "kept").stat().st_mode) == 0o700


async def test_devices_and_fifos_are_left_out(tmp_path: Path) -> None:
    layer = await unpack(
        tmp_path,
        tar(
            entry("sda", kind=tarfile.BLKTYPE, devmajor=8, devminor=0),
            entry("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
            entry("pipe", kind=tarfile.FIFOTYPE),
            entry("file", b"x"),
        ),
    )
    assert [path.name for path in layer.iterdir()] == ["file"]


async def test_hard_links_inside(tmp_path: Path) -> None:
    layer = await unpack(tmp_path, tar(entry("a/x", b"1"), hardlink("b/y", "a/x"), hardlink("a/x", "a/x")))
    assert (layer / "a/x").stat().st_ino == (layer / "b/y").stat().st_ino


async def test_capabilities_are_kept_and_other_attributes_are_not(tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    headers = {
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.note": "x",
    }
    layer = await unpack(tmp_path, tar(entry("ping", b"x", pax_headers=headers)))
    assert os.getxattr(layer / "ping", "security.capability") == capability
    assert [name for name in os.listxattr(layer / "ping") if not name.startswith("security.")] == []


async def test_sparse_files(tmp_path: Path) -> None:
    os.system(f"cd {tmp_path} && truncate -s 8M hole && printf end >> hole")  # noqa: ASYNC221, S605
    for form in ("gnu", "posix"):
        os.system(f"cd {tmp_path} && tar --sparse --format={form} -cf {form}.tar hole")  # noqa: ASYNC221, S605
        layer = await unpack(tmp_path, (tmp_path / f"{form}.tar").read_bytes(), max_bytes=100_000)
        assert (layer / "hole").read_bytes() == bytes(8 * 1024**2) + b"end"
        assert (layer / "hole").stat().st_blocks < 100


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../escaped", b"x")],
        [entry("a/../../escaped", b"x")],
        [entry("a/..", b"x")],
        [directory("..")],
        [hardlink("link", "../../secret")],
        [hardlink("link", "/secret")],
        [symlink("up", "../.."), hardlink("link", "up/secret")],
        [symlink("root", "/"), hardlink("link", "root/secret")],
        [symlink("loop", "loop"), entry("loop/x", b"x")],
        [symlink("gone", "/nowhere"), entry("gone/x", b"x")],
        [entry("file", b"x"), entry("file/inside", b"y")],
        [hardlink("link", "missing")],
        [entry("", b"x")],
        [entry(".wh.", b"")],
        [entry("a/.wh...", b"")],
        [entry("a", b"", pax_headers={"path": "a\0b"})],
        [entry("a", b"", pax_headers={"mtime": "inf"})],
        [entry("a", b"", uid=2**33)],
    ],
    ids=str,
)
async def test_entries_that_lead_astray_are_refused(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    (tmp_path / "secret").write_text("secret")
    assert "entry '" in await refusal(tmp_path, tar(*entries))
    assert not (tmp_path / "escaped").exists()
    assert (tmp_path / "secret").stat().st_nlink == 1


async def test_links_are_followed_inside_the_layer_only(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = await unpack(
        tmp_path,
        tar(
            directory("usr/lib"),
            symlink("lib", "usr/lib"),
            entry("lib/inside", b"x"),
            symlink("away", "../../../../../../.."),
            entry("away/through", b"y"),
            directory(str(outside).lstrip("/")),
            symlink("absolute", str(outside)),
            entry("absolute/written", b"z"),
        ),
    )
    assert (layer / "usr/lib/inside").read_bytes() == b"x"
    assert (layer / "through").read_bytes() == b"y"
    assert list(outside.iterdir()) == []
    assert (layer / str(outside).lstrip("/") / "written").read_bytes() == b"z"


async def test_a_bomb_is_stopped(tmp_path: Path) -> None:
    bomb = compressed(tar(entry("zeros", bytes(200_000_000))))
    assert len(bomb) < 1_000_000
    assert "more than the 1000000 bytes" in await refusal(tmp_path, bomb, max_bytes=1_000_000)


async def test_too_many_entries(tmp_path: Path) -> None:
    content = tar(*(entry(str(number)) for number in range(20)))
    assert "more than the 19 entries" in await refusal(tmp_path, content, max_entries=19)


async def test_a_huge_header_is_stopped(tmp_path: Path) -> None:
    header = tarfile.TarInfo("h")
    header.type = tarfile.XHDTYPE
    header.size = 2**40
    assert "header" in await refusal(tmp_path, header.tobuf() + bytes(10_000))


async def test_headers_that_lead_backwards(tmp_path: Path) -> None:
    content = tar(entry("a", b"", pax_headers={"size": "-1024"}), entry("b", b"x"))
    try:
        layer = await unpack(tmp_path, content)
        # The security fixes of some Python releases make tarfile pass over such an entry.
        outcome = f"only {[path.name for path in layer.iterdir()]}"
    except CupolaError as error:
        outcome = error.message
    assert "damaged" in outcome or outcome == "only ['b']"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\x1f\x8bnonsense", "gzip data is damaged"),
        (b"\x28\xb5\x2f\xfdnonsense", "zstd data is damaged"),
        (b"BZh9" + bytes(600), "not a valid tar"),
        (b"PK\x03\x04" + bytes(600), "not a valid tar"),
        (compressed(tar(entry("a", b"x" * 5000)))[:-20], "cut off"),
        (tar(entry("a", b"x" * 5000))[:2000], "cut off"),
    ],
)
async def test_damaged_layers(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in await refusal(tmp_path, content)


async def test_another_diff_id(tmp_path: Path) -> None:
    with pytest.raises(CupolaError, match="has the digest") as caught:
        await unpack(tmp_path, tar(entry("a")), diff_id=digest_of(b"other"))
    assert caught.value.code == "InvalidContainerImage"
    assert list((tmp_path / "layers").iterdir()) == []


async def test_compressions(tmp_path: Path) -> None:
    content = tar(entry("a", b"x" * 3_000_000), entry("b", os.urandom(1_500_000)))
    half = len(content) // 2
    zstd = zstandard.ZstdCompressor()
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    forms = [
        content,
        compressed(content),
        compressed(content) + bytes(100),
        compressed(content[:half]) + compressed(b"") + compressed(content[half:]),
        zstd.compress(content),
        skippable + zstd.compress(content[:half]) + skippable + zstd.compress(content[half:]),
    ]
    for number, form in enumerate(forms):
        layer = await unpack(tmp_path / str(number), form, diff_id=digest_of(content))
        assert (layer / "a").stat().st_size == 3_000_000
        assert (layer / "b").stat().st_size == 1_500_000


async def test_a_process_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "killer"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr("cupola.images.layers.sys.executable", str(killer))
    with pytest.raises(CupolaError, match="killed by signal 9") as caught:
        await unpack(tmp_path, tar(entry("a")))
    assert caught.value.code == "ImagePullBackOff"
    assert list((tmp_path / "layers").iterdir()) == []


async def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "layers"
    small.mkdir()
    assert os.system(f"mount -t tmpfs -o size=1m tmpfs {small}") == 0  # noqa: ASYNC221, S605
    try:
        with pytest.raises(CupolaError, match=f"holds {small} is full") as caught:
            await unpack(tmp_path, tar(entry("a", bytes(3_000_000))))
        assert caught.value.code == "ImagePullBackOff"
    finally:
        os.system(f"umount {small}")  # noqa: ASYNC221, S605


async def test_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola.images.layers.os.geteuid", lambda: 1000)
    with pytest.raises(CupolaError, match="needs root"):
        await unpack(tmp_path, tar(entry("a")))


async def test_bytes_of_a_local_layer_are_verified(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    digest = published.add(tar(entry("a", b"x")))
    layer = next(key for key, content in published.blobs.items() if content.startswith(b"\x1f\x8b"))
    published.blobs[layer] = published.blobs[layer][:-1] + b"?"
    reference = parse_reference(f"oci:{published.write(tmp_path / 'layout')}")
    with pytest.raises(CupolaError, match="other bytes than the digest") as caught:
        await store.pull(reference, digest, ignore)
    assert caught.value.code == "ImagePullBackOff"
