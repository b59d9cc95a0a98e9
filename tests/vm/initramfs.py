"""The virtual machine's file system: an initramfs with Python, the host's OCI runtime and our sources."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
from pathlib import Path

from cupola.images.debian import build_base
from cupola.images.steps import BuildError, run

LEFT_OUT = ("usr/share", "usr/lib/ssl", "var")
"""Parts of the base root that nothing here needs, below the root."""
SOURCES = ("src/cupola", "tests/system/contract_programs", "tests/vm")


def build_initramfs(project: Path, modules: list[Path], disk: Path, target: Path) -> None:
    """Write the archive of `project`, with the kernel modules and the image of a disk, to `target`. Raises BuildError."""
    archive = Archive()
    archive.add_tree(build_base(project / ".cache/images"), Path())
    archive.add_directory(Path("cupola"))
    for source in SOURCES:
        archive.add_tree(project / source, Path("cupola") / source)
    for module in modules:
        content = module.read_bytes()
        if module.suffix == ".xz":
            content = lzma.decompress(content)
        archive.add_file(Path("modules") / module.name.removesuffix(".xz"), content, 0o644)
    archive.add_file(Path("cupola/disk.img"), disk.read_bytes(), 0o644)
    for file in _runtime_files():
        archive.add_file(file.relative_to("/"), file.read_bytes(), 0o755)
    archive.add_file(Path("init"), (project / "tests/vm/init.sh").read_bytes(), 0o755)
    target.write_bytes(gzip.compress(archive.finish(), 1))


def _runtime_files() -> list[Path]:
    """The OCI runtime of this machine and its libraries, by paths without links to folders."""
    program = shutil.which("crun")
    if program is None:
        raise BuildError("crun is not on the PATH (on Debian and Ubuntu: apt install crun)")
    words = run(["ldd", program]).decode().split()
    found = [Path(program), *(Path(word) for word in words if word.startswith("/"))]
    return [file.parent.resolve() / file.name for file in found]


class Archive:
    """A cpio archive in the `newc` format: see `early-userspace/buffer-format` in the kernel's documentation.

    Whoever builds it, everything in it belongs to root. What is added first stays.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[Path] = set()

    def add_tree(self, source: Path, name: Path) -> None:
        """Add a folder and all below it."""
        self.add_directory(name)
        for entry in sorted(source.iterdir()):
            inside = name / entry.name
            if str(inside) in LEFT_OUT:
                continue
            if entry.is_symlink():
                self._add(inside, stat.S_IFLNK | 0o777, bytes(entry.readlink()))
            elif entry.is_dir():
                self.add_tree(entry, inside)
            elif entry.is_file():
                self.add_file(inside, entry.read_bytes(), stat.S_IMODE(entry.stat().st_mode))

    def add_file(self, name: Path, content: bytes, mode: int) -> None:
        """Add a file, and the folders it is in."""
        self.add_directory(name.parent)
        self._add(name, stat.S_IFREG | mode, content)

    def add_directory(self, name: Path) -> None:
        """Add a folder, and those it is in."""
        for folder in (*reversed(name.parents[:-1]), name):
            if folder != Path():
                self._add(folder, stat.S_IFDIR | 0o755, b"")

    def finish(self) -> bytes:
        """The whole archive."""
        self._add(Path("TRAILER!!!"), 0, b"")
        return b"".join(self._parts)

    def _add(self, name: Path, mode: int, content: bytes) -> None:
        if name in self._names:
            return
        self._names.add(name)
        path = bytes(name) + b"\0"
        # Inode, mode, owner, group, links, time, size, two numbers each of two devices, length of path, sum.
        fields = (len(self._names), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + path, content):
            self._parts += [part, b"\0" * (-len(part) % 4)]
