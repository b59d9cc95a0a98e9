"""The program that unpacks one layer: `python -m cupola.images.unpack REQUEST`.

It runs in a process of its own, started by `cupola.images.layers`, because it parses what strangers wrote and
has to be root to do so. Before it reads the first byte of the archive it makes the destination its root
directory and gives up every other capability. It prints one JSON object, an `Answer`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Literal

from cupola.images.decompress import BlobReader, LayerError, decompressed
from cupola.images.extract import Extractor
from cupola.images.failures import NO_SPACE
from cupola.images.tarstream import TarStream

_MEMORY_BYTES = 1024**3

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
# chown, dac_override, fowner, fsetid; sys_admin for trusted.overlay.opaque; mknod; setfcap
_KEPT_CAPABILITIES = sum(1 << number for number in (0, 1, 3, 4, 21, 27, 31))

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Request:
    """Unpack `size` bytes at `offset` of the inherited `descriptor` into the empty `directory`, which belongs to `first_id`.

    `digest` is that of the bytes as they are, if it has not been verified yet; `diff_id` that of the uncompressed tar. Its
    user or group n becomes `first_id` + n of this machine.
    """

    directory: str
    descriptor: int
    offset: int
    size: int
    digest: str | None
    diff_id: str
    max_bytes: int
    max_entries: int
    first_id: int = 0


@dataclass(frozen=True)
class Answer:
    """`size` is the number of bytes of the uncompressed tar."""

    outcome: Literal["unpacked", "damaged", "other-bytes", "disk-full", "failed"]
    message: str = ""
    size: int = 0
    entries: int = 0


def main() -> None:
    request = Request(**json.loads(sys.argv[1]))
    answer = answer_to(request)
    sys.stdout.write(json.dumps(asdict(answer)))


def answer_to(request: Request) -> Answer:
    """Do what is asked, and say how it ended. Never raises Exception."""
    try:
        confine(request.directory, request.first_id)
        if request.digest and blob_digest(request) != request.digest:
            return Answer("other-bytes", request.digest)
        return unpack(request)
    except LayerError as error:
        return Answer("damaged", str(error))
    except MemoryError:
        return Answer("damaged", "it needs too much memory to unpack")
    except OSError as error:
        if error.errno in NO_SPACE:
            return Answer("disk-full")
        return Answer("failed", str(error))
    except Exception as error:
        return Answer("failed", f"{type(error).__name__}: {error}")


def unpack(request: Request) -> Answer:
    pieces = decompressed(request.descriptor, request.offset, request.size)
    stream = TarStream(pieces, request.max_bytes)
    entries = Extractor(stream, request.max_entries, request.first_id).run()
    stream.drain()
    if stream.digest != request.diff_id:
        raise LayerError(
            f"its content has the digest {stream.digest}, the image's configuration says {request.diff_id}"
        )
    write_to_disk()
    return Answer("unpacked", size=stream.size, entries=entries)


def confine(directory: str, user: int) -> None:
    """Make `directory` the root of this process, and give up what unpacking does not need.

    What it makes belongs to `user`, unless it is given to somebody else.
    """
    os.chdir(directory)
    os.chroot(".")
    os.chdir("/")
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))  # a change of user undoes it
    check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = _KEPT_CAPABILITIES & 0xFFFFFFFF, _KEPT_CAPABILITIES >> 32
    # effective, permitted, inheritable; first of capabilities 0 to 31, then of the others
    check(_libc.capset(header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)))


def blob_digest(request: Request) -> str:
    digest = hashlib.sha256()
    for piece in BlobReader(request.descriptor, request.offset, request.size).pieces():
        digest.update(piece)
    return "sha256:" + digest.hexdigest()


def write_to_disk() -> None:
    """Wait until the filesystem is on the disk: only then may the layer be called whole."""
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        check(_libc.syncfs(root))
    finally:
        os.close(root)


def check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
