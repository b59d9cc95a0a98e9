"""A user namespace in which an ordinary user is root and has ids for others: user_namespaces(7), newuidmap(1)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cupola.domain.errors import CupolaError
from cupola.host.subordinate import SUBGID, SUBUID, largest_range, user_name
from cupola.sandbox.oci import linux


def enter_user_namespace(others: int) -> None:
    """Move this process, which has no threads, into a user namespace as its root, and into `others`, which belong to that.

    Inside, 0 is the user who runs this, and what follows are the user's subordinate ids. A process id namespace is that of
    children to come. Raises CupolaError.
    """
    waiting, begun = os.pipe()
    # Who maps must not be inside: there, a set-user-id program has no rights over the host.
    mapper = os.fork()
    if mapper == 0:
        os.close(begun)
        os._exit(_map_parent() if os.read(waiting, 1) else 1)
    os.close(waiting)
    try:
        linux.unshare(linux.CLONE_NEWUSER | others)
        os.write(begun, b"\n")
    except OSError as error:
        raise CupolaError(
            "no_privilege", f"This user may not have a user namespace ({error}); `cupola doctor` says what is missing."
        ) from error
    finally:
        os.close(begun)
        status = os.waitpid(mapper, 0)[1]
    if status != 0:
        raise CupolaError(
            "no_privilege", "newuidmap or newgidmap has refused this user's ids; `cupola doctor` says what is missing."
        )


def _map_parent() -> int:
    parent = str(os.getppid())
    tables: tuple[tuple[str, Path, int], ...] = (
        ("newuidmap", SUBUID, os.geteuid()),
        ("newgidmap", SUBGID, os.getegid()),
    )
    for program, file, own in tables:
        ids = largest_range(file, user_name(), os.geteuid())
        if ids is None:
            return 1
        mapping = ("0", str(own), "1", "1", str(ids.start), str(ids.count))
        try:
            if subprocess.run([program, parent, *mapping], check=False).returncode != 0:
                return 1
        except OSError:
            return 1
    return 0
