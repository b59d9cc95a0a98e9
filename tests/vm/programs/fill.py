"""Writes more than it may, in each place and in a file without a name; tries to leave its quota; prints what happened."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

BLOCK = b"x" * 65536
SET_ATTRIBUTES = 0x401C5820
SET_FLAGS = 0x40086602


def fill(path: Path, remove: bool) -> None:
    with path.open("wb", buffering=0) as file:
        if remove:
            path.unlink()
        try:
            for _ in range(400):
                file.write(BLOCK)
        finally:
            path.unlink(missing_ok=True)


def make_many(folder: Path) -> None:
    folder.mkdir()
    try:
        for number in range(4000):
            (folder / str(number)).touch()
    finally:
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()


def ask(request: int, argument: bytes) -> None:
    descriptor = os.open("/files", os.O_RDONLY)
    fcntl.ioctl(descriptor, request, argument)
    os.close(descriptor)


def report(what: str, act: Callable[[], None]) -> None:
    try:
        act()
        print(what, "done", flush=True)
    except OSError as error:
        print(what, errno.errorcode[error.errno or 0], flush=True)


for place in ("/root", "/home/session", "/files"):
    Path(place).mkdir(exist_ok=True)
    report(place, lambda place=place: fill(Path(place) / "large", remove=False))  # type: ignore[misc]
    report(place, lambda place=place: fill(Path(place) / "hidden", remove=True))  # type: ignore[misc]
    report(place, lambda place=place: make_many(Path(place) / "many"))  # type: ignore[misc]
report("leave", lambda: ask(SET_ATTRIBUTES, struct.pack("IIIII8x", 0, 0, 0, 0, 0)))
report("inherit", lambda: ask(SET_FLAGS, struct.pack("Q", 0)))
report("moved", lambda: (Path("/files/made").write_bytes(BLOCK), None)[1])
print("END", flush=True)
