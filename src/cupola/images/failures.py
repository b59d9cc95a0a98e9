"""The two ways in which an image fails, as the caller of the platform sees them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from cupola.domain.errors import CupolaError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def invalid_image(message: str) -> CupolaError:
    """The image itself is wrong: it does not exist, is malformed, or is for another platform."""
    return CupolaError("InvalidContainerImage", message, status=400, param="image")


def pull_failed(message: str) -> CupolaError:
    """The image may be right, but it could not be brought here: the network, access, or the disk."""
    return CupolaError("ImagePullBackOff", message, status=502)


def disk_full(directory: Path) -> CupolaError:
    """There is no room left below `directory`."""
    return pull_failed(
        f"The disk that holds {directory} is full. Free some space there (deleting agent versions that are"
        " no longer needed also frees their images), then try again."
    )


@contextlib.contextmanager
def writing_below(directory: Path) -> Iterator[None]:
    """Turn the lack of disk space into an error that names `directory`."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise disk_full(directory) from error
        raise


def megabytes(size: int) -> str:
    """A size in bytes as people read it."""
    return f"{size / 1_000_000:.1f} MB"
