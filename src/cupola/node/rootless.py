"""Three processes for an ordinary user: the server, the node as root of a user namespace, and a supervisor of both.

The node is the first process of a process id namespace: whatever kills it, the kernel kills every sandbox with it, and its
mounts go with its namespace. What is left then are files and empty control groups, which the supervisor removes. When the
supervisor is killed, the server dies with it, and the node then tidies up, as it does whenever its server has gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import uvloop

from cupola.domain.errors import CupolaError
from cupola.node.process import Parts, Sockets, be_the_server, serve_node
from cupola.node.user_namespace import enter_user_namespace
from cupola.sandbox.oci import linux
from cupola.sandbox.oci.cgroup import ControlGroups, find_hierarchies
from cupola.sandbox.oci.delegation import find_delegation, give_back, show_delegated
from cupola.sandbox.oci.trees import remove_tree

END_DEADLINE = 30.0
"""Seconds that one of the two may live on after the other has ended."""
RUN = Path("/.cupola")
"""The node's run directory. It is at the top, where the users of sandboxes can pass, as they cannot in somebody's home."""
ROOT_SIZE = "mode=755,size=64m"


def run_rootless(
    folder: Path,
    staging: Path,
    sandboxes: Path,
    installation: str,
    parts: Parts,
    listening: Sequence[socket.socket],
    prepare: Callable[[], None],
    serve: Callable[[Sockets], None],
) -> None:
    """Fork the server, which calls `prepare` and `serve`, and the node; supervise them. No thread may exist yet.

    `staging` is an empty directory, made if it is missing, `sandboxes` is where writable layers are, `installation` names the
    control groups. Signals to end go to this process, which passes them on. Raises CupolaError when there can be no
    node, SystemExit with a status that is not 0.
    """
    staging.mkdir(mode=0o700, exist_ok=True)
    server_end, node_end = Sockets.pairs()
    supervisor = os.getpid()
    server = os.fork()
    if server == 0:
        node_end.close()
        os._exit(be_the_server(supervisor, prepare, lambda: serve(server_end)))
    server_end.close()
    for opened in listening:
        opened.close()
    watched = os.pidfd_open(server)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: _send(watched, number))
        try:
            _enter_namespaces(staging)
            alive, life = os.pipe()
            node = os.fork()
        except OSError as error:
            raise CupolaError(
                "no_privilege", f"The system refuses what a server without root needs: {error}."
            ) from error
        if node == 0:
            os.close(alive)
            os._exit(_be_the_node(node_end, folder, parts, life))
        os.close(life)
    except BaseException:
        node_end.close()
        _wait_or_kill(watched)
        raise
    node_end.close()
    groups = ControlGroups(f"cupola-{installation}", find_hierarchies())
    status = _supervise(server, watched, node, alive, lambda: _remove_leftovers(groups, sandboxes))
    if status != 0:
        sys.exit(status if status > 0 else 128 - status)


def _enter_namespaces(staging: Path) -> None:
    delegation = find_delegation(find_hierarchies())
    enter_user_namespace(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    _add_run_directory(staging)
    show_delegated(delegation)


def _add_run_directory(staging: Path) -> None:
    """Change to a root that has all of the old one, and RUN."""
    linux.mount("none", str(staging), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, ROOT_SIZE)
    for entry in os.scandir("/"):
        place = staging / entry.name
        if entry.is_symlink():
            place.symlink_to(Path(entry).readlink())
            continue
        if entry.is_dir():
            place.mkdir()
        else:
            place.touch()
        linux.mount(entry.path, str(place), "", linux.MS_BIND | linux.MS_REC)
    (staging / RUN.name).mkdir()
    (staging / RUN.name).chmod(0o711)
    linux.change_root(str(staging))
    # The new root was also bound, with what is above it, into itself.
    linux.unmount(str(staging))


def _be_the_node(sockets: Sockets, folder: Path, parts: Parts, life: int) -> int:
    """The status to exit with. The stack above belongs to the supervisor: nothing may be unwound."""
    try:
        # A terminal's Ctrl-C is for the supervisor.
        os.setsid()
        os.umask(0o022)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("proc", "/proc", "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        try:
            uvloop.run(serve_node(sockets, folder, parts))
        finally:
            # The supervisor does it after this, unless it was killed.
            give_back(0 if _has_reader(life) else END_DEADLINE)
    except CupolaError as error:
        sys.stderr.write(f"cupola: {error.message}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()
    return 0


def _has_reader(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return not poll.poll(0)


def _supervise(server: int, watched: int, node: int, alive: int, tidy: Callable[[], None]) -> int:
    """Wait until both have ended; returns the status of what went wrong, of the server first."""
    # The pipe's other end is the node's alone. It ends with the node even when frozen sandboxes keep that from being reaped.
    ready, _, _ = select.select([watched, alive], [], [])
    if alive not in ready and not select.select([alive], [], [], END_DEADLINE)[0]:
        os.kill(node, signal.SIGKILL)
        select.select([alive], [], [])
    tidy()
    node_status = os.waitstatus_to_exitcode(os.waitpid(node, 0)[1])
    _wait_or_kill(watched)
    give_back(0)
    return os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) or node_status


def _remove_leftovers(groups: ControlGroups, sandboxes: Path) -> None:
    """What a node that was killed has left: nothing, where it ended by itself."""
    end = time.monotonic() + END_DEADLINE
    for name in groups.names():
        groups.remove(name, end - time.monotonic())
    groups.remove_parent()
    if sandboxes.exists():
        for directory in sandboxes.iterdir():
            remove_tree(directory)


def _send(watched: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(watched, number)
    except ProcessLookupError:
        return


def _wait_or_kill(watched: int) -> None:
    if not select.select([watched], [], [], END_DEADLINE)[0]:
        _send(watched, signal.SIGKILL)
        select.select([watched], [], [])
