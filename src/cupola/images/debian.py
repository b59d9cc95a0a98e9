"""A small root with Python in it, made of Debian or Ubuntu packages: no root rights, no debootstrap.

The machine's apt resolves and fetches, but against a status file of its own, so what is installed here does
not matter. No maintainer script runs; the few things that they would do are done below.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cupola.images.steps import BuildError, once, run

_WANTED = ("python3", "busybox-static", "ca-certificates")
# apt is told that it has these: nothing that runs here needs them, and they bring many others.
_NOT_NEEDED = ("dpkg", "debconf", "openssl", "tzdata")
_LEFT_OUT = ("bug", "doc", "doc-base", "info", "lintian", "locale", "man", "pixmaps")
_MERGED = ("bin", "lib", "lib64", "sbin")
_WORKERS = os.cpu_count() or 1

_COMPILE = """
import compileall, py_compile, sys
options = {
    "invalidation_mode": py_compile.PycInvalidationMode.UNCHECKED_HASH,
    "stripdir": sys.argv[1],
    "prependdir": "/",
    "force": True,
    "quiet": 2,
}
for path in sys.stdin.read().split("\\0"):
    compileall.compile_file(path, **options)
"""

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "agent:x:1000:1000:agent:/home/session:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


def build_base(cache: Path) -> Path:
    """The root folder made of the newest packages that the machine's apt knows, built unless `cache` has it.

    Where the machine's package lists are missing or too old to fetch from, lists below `cache` are brought up
    to date and used instead. Raises BuildError when apt or dpkg-deb fails.
    """
    state = cache.absolute() / "apt"
    lists = state / "lists"
    apt = _Apt(state, lists if lists.is_dir() else None)
    try:
        return _build(cache, apt)
    except BuildError:
        apt = _Apt(state, lists)
        apt.update()
        return _build(cache, apt)


def python_version(root: Path) -> str:
    """The version of the Python in `root`, as in "3.11"."""
    return (root / "usr/bin/python3").readlink().name.removeprefix("python")


def compile_python(base: Path, root: Path, folder: str) -> None:
    """Compiles the Python files below `folder` of `root` by the Python of `base`; file times will not matter.

    The bytecode names the files as an image with `root` as its `/` has them. Files that are not valid Python,
    which some packages ship as templates, stay as they are.
    """
    files = sorted(str(path) for path in (root / folder).rglob("*.py") if not path.is_symlink())
    command = [*_python_command(base), "-c", _COMPILE, str(root)]
    environment = {"PYTHONHOME": str(base / "usr"), "PYTHONPATH": "", "PYTHONHASHSEED": "0"}

    def compile_some(some: list[str]) -> None:
        run(command, folder=root, environment=environment, content="\0".join(some).encode())

    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(compile_some, [some for n in range(_WORKERS) if (some := files[n::_WORKERS])]))


def _python_command(root: Path) -> list[str]:
    """What starts the Python in `root` on this machine without a chroot, given PYTHONHOME=<root>/usr."""
    loaders = sorted(root.glob("usr/lib/*/ld-linux-*.so.*"))
    if not loaders:
        raise BuildError(f"{root} has no dynamic loader")
    libraries = ":".join(str(folder) for folder in sorted(root.glob("usr/lib/*-linux-*")))
    python = root / "usr/bin" / f"python{python_version(root)}"
    return [str(loaders[0]), "--library-path", libraries, str(python), "-s", "-S"]


@dataclass(frozen=True)
class _Apt:
    """The machine's apt with its state in `folder`, and with `lists` in place of its own package lists."""

    folder: Path
    lists: Path | None

    def resolve(self) -> list[str]:
        """Every package that the root consists of, as name:architecture=version, sorted."""
        output = self._run("install", "--print-uris", *_WANTED)
        files = [line.split()[1] for line in output.decode().splitlines() if line.startswith("'")]
        return sorted(_package(file) for file in files)

    def download(self, packages: list[str], folder: Path) -> list[Path]:
        """Fetches and verifies `packages`; gives the files."""
        self._run("download", *packages, folder=folder)
        return sorted(folder.glob("*.deb"))

    def update(self) -> None:
        """Fetches the package lists."""
        self._run("update")

    def _run(self, *arguments: str, folder: Path | None = None) -> bytes:
        (self.folder / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        options = {
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",  # the one for downloads cannot write below the cache
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
            "Dir::Cache": str(self.folder),
            "Dir::Cache::archives": "archives",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "",
            "Dir::State::status": str(self._status()),
        }
        if self.lists is not None:
            (self.lists / "partial").mkdir(parents=True, exist_ok=True)
            options["Dir::State::lists"] = str(self.lists)
        given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return run(["apt-get", "-q", "-y", *given, *arguments], folder=folder, environment={"LC_ALL": "C"})

    def _status(self) -> Path:
        """The file that says what is installed; made once, as apt reads its lists again when this is new."""
        architecture = run(["dpkg", "--print-architecture"]).decode().strip()
        content = "\n".join(_installed(name, architecture) for name in _NOT_NEEDED)
        folder = self.folder / f"dpkg-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        return once(folder, lambda made: made.joinpath("status").write_text(content)) / "status"


def _installed(name: str, architecture: str) -> str:
    return (
        f"Package: {name}\nStatus: install ok installed\nArchitecture: {architecture}\nMulti-Arch: foreign\n"
        f"Maintainer: -\nVersion: 9999\nDescription: -\n"
    )


def _package(file: str) -> str:
    name, version, architecture = file.removesuffix(".deb").split("_")
    qualified = name if architecture == "all" else f"{name}:{architecture}"
    return f"{qualified}={unquote(version)}"


def _build(cache: Path, apt: _Apt) -> Path:
    packages = apt.resolve()
    # This file is part of the key: another recipe makes another root of the same packages.
    key = hashlib.sha256("\n".join(packages).encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    return once(cache.absolute() / "base" / key, lambda root: _make(root, apt, packages))


def _make(root: Path, apt: _Apt, packages: list[str]) -> None:
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "home/session", "opt", "proc", "root", "run", "sys", "tmp", "var/tmp"):
        (root / name).mkdir(parents=True)
    downloads = root / "tmp"
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(lambda file: _unpack(file, root), apt.download(packages, downloads)))
    for file in downloads.iterdir():
        file.unlink()
    for path, content in _FILES.items():
        (root / path).write_text(content)
    _trust_authorities(root)
    _link_applets(root)
    compile_python(root, root, "usr/lib")
    run(["chmod", "-R", "a+rX,go-w", root])  # whatever the umask is
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)


def _unpack(package: Path, root: Path) -> None:
    """As `dpkg-deb -x`, which would replace the links of the merged /usr by folders."""
    options = ["--no-same-owner", "--keep-directory-symlink", "--anchored"]
    excluded = [f"--exclude=./usr/share/{name}" for name in _LEFT_OUT]
    content = run(["dpkg-deb", "--fsys-tarfile", package])
    run(["tar", "-x", "-p", "-f", "-", *options, *excluded], folder=root, content=content)


def _trust_authorities(root: Path) -> None:
    """What `update-ca-certificates` does, with the file where OpenSSL looks for it."""
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    authorities = sorted(root.glob("usr/share/ca-certificates/*/*.crt"))
    bundle.write_bytes(b"".join(path.read_bytes() for path in authorities))
    (root / "usr/lib/ssl").mkdir(exist_ok=True)
    (root / "usr/lib/ssl/certs").symlink_to("/etc/ssl/certs")
    (root / "usr/lib/ssl/cert.pem").symlink_to("/etc/ssl/certs/ca-certificates.crt")


def _link_applets(root: Path) -> None:
    for applet in run([root / "usr/bin/busybox", "--list"]).decode().split():
        link = root / "usr/bin" / applet
        if not link.is_symlink() and not link.exists():
            link.symlink_to("busybox")
    (root / "usr/bin/python").symlink_to("python3")
