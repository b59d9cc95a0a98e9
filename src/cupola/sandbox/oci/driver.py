"""The `oci` driver: an OCI runtime (crun, else runc) on an overlay of shared layers; no daemon.

A sandbox called N consists of the control group `/cupola-{installation}/N`, the runtime's state `{run}/state/N`, the bundle
`{run}/bundles/N` and the writable layer `{data}/N`. The root is mounted in the server's own mount namespace and detached as
soon as the sandbox has its copy, so the mount lives exactly as long as the sandbox does, whatever happens to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from cupola.sandbox.base import (
    Driver,
    Exit,
    Isolation,
    Output,
    Sandbox,
    SandboxError,
    SandboxSpec,
    Stream,
    unbroken,
)
from cupola.sandbox.oci import linux, process
from cupola.sandbox.oci.authorities import Authorities
from cupola.sandbox.oci.cgroup import ControlGroups, Hierarchies, find_hierarchies
from cupola.sandbox.oci.delegation import enforceable
from cupola.sandbox.oci.disk import Disk
from cupola.sandbox.oci.installations import STATE
from cupola.sandbox.oci.mounts import (
    attach_directories,
    bring_within_reach,
    make_directories,
    mount_overlay,
    put_out_of_reach,
)
from cupola.sandbox.oci.network.network import Network, NetworkSettings, SandboxNetwork
from cupola.sandbox.oci.pipes import HeldPipes, OutputBudget, OutputPipe, open_pipe, open_standard_input
from cupola.sandbox.oci.runtime_config import (
    CONTROLLERS,
    FILES,
    FIRST_ID,
    HOME,
    LIMITS,
    User,
    resolve_user,
    runtime_config,
    version_1_limits,
)
from cupola.sandbox.oci.sandbox import OciSandbox
from cupola.sandbox.oci.trees import remove_tree

logger = logging.getLogger(__name__)

CRUN = "crun"
RUNSC = "runsc"
RUNTIME_CACHE = ".cache"
LONGEST_REPORT = 64 * 1024
START_DEADLINE = 30.0
"""Seconds an OCI runtime may take to create a container before it is given up."""


class OciDriver(Driver):
    """Sandboxes by an OCI runtime.

    `installation` names this platform's data (letters and digits); `run` is a directory on a file system that is
    empty after a boot; `data` is on a disk with room for writable layers; `runtime` is the program, else the first
    of crun and runc on the PATH. `network` says what sandboxes find around them; `session_disk` and `disk_reserve` are in
    bytes: what a sandbox may keep on the disk, and what all of them leave free; 0 is no limit. With `rootless`
    this process is root only in a user namespace, and sees the control groups alone that are delegated to it.
    """

    isolation = Isolation(filesystem=True, processes=True, network=True, resource_limits=True)

    def __init__(
        self,
        installation: str,
        run: Path,
        data: Path,
        runtime: str | None = None,
        network: NetworkSettings | None = None,
        session_disk: int = 0,
        disk_reserve: int = 0,
        rootless: bool = False,
    ) -> None:
        self._rootless = rootless
        self._run = run
        self._bundles = run / "bundles"
        self._state = run / STATE
        self._authorities = Authorities(run)
        self._reach = run / "reach"
        self._data = data
        self._installation = installation
        self._requested_runtime = runtime
        # The kernel of a runsc sandbox is a process, which has seen its mounts once and for all.
        self.can_attach = Path(runtime or "").name != RUNSC
        settings = network or NetworkSettings()
        self.network = Network(installation, run, replace(settings, isolated=True) if rootless else settings)
        self._controllers = CONTROLLERS
        self._starts_in_groups = False
        self._first_id = 0
        self._ids: int | None = None
        self._sandboxes: dict[str, OciSandbox] = {}
        self._outputs: dict[str, tuple[OutputPipe, ...]] = {}
        self._budget = OutputBudget()
        self._session_disk = session_disk
        self._disk_reserve = disk_reserve
        self._reasons: dict[str, str] = {}
        self._sockets = ThreadPoolExecutor(1, "netns-sockets")
        self._work = ThreadPoolExecutor(4, "oci-driver")
        # A thread may enter another mount namespace only when it shares its working directory with no other.
        self._mounts = ThreadPoolExecutor(1, "mount-namespaces", linux.unshare, (linux.CLONE_FS,))
        self._children: set[int] = set()
        self._removals: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._hurry: asyncio.Future[None] | None = None

    async def open(self) -> None:
        if os.geteuid() != 0:
            raise SandboxError("the oci driver makes mounts, namespaces and control groups: run `cupola up` as root")
        found = self._requested_runtime or shutil.which("crun") or (None if self._rootless else shutil.which("runc"))
        program = shutil.which(found) if found else None
        if program is None:
            wanted = self._requested_runtime or "crun or runc"
            raise SandboxError(f"no OCI runtime: {wanted} is not on the PATH (on Debian and Ubuntu: apt install crun)")
        if self._rootless and Path(program).name != CRUN:
            raise SandboxError(f"without root the OCI runtime can only be crun, not {program}")
        self._program = program
        hierarchies = find_hierarchies()
        if not hierarchies.roots and not self._rootless:
            raise SandboxError("no control groups are mounted at /sys/fs/cgroup: limits could not be enforced")
        self._groups = ControlGroups(f"cupola-{self._installation}", hierarchies)
        if self._rootless:
            self._use_delegated(hierarchies)
        for directory in (self._bundles, self._state, self._data):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._rootless:
            # Runtimes look for what they mount with the rights of the sandbox's root, who is not this process's.
            self._bundles.chmod(0o711)
            self._reach.mkdir(exist_ok=True, mode=0o711)
        self._disk = Disk(self._data, self._session_disk, self._disk_reserve, self._groups, self._end)
        self._disk.open()
        linux.become_subreaper()
        await asyncio.get_running_loop().run_in_executor(self._work, process.kill_by_argument, str(self._state))
        await self.network.open()
        self.no_egress = self.network.no_egress
        if self.no_egress is None and self.network.warning is not None:
            logger.warning("%s", self.network.warning)

    def _use_delegated(self, hierarchies: Hierarchies) -> None:
        """Without root there are the limits, and the rest, that delegated control groups allow."""
        # With version 1, only root may put a process of another user into a group, as the first one of a sandbox is when a
        # runtime does it. So the runtime is started in it already, and leaves it alone.
        self._starts_in_groups = self._groups.are_version_1
        self._first_id, self._ids = FIRST_ID, linux.mapped_ids() - FIRST_ID
        self._controllers = enforceable(hierarchies)
        self.can_freeze = self._groups.can_freeze
        lacking = LIMITS - self._controllers
        if lacking:
            self.isolation = replace(self.isolation, resource_limits=False)
            logger.warning(
                "sandboxes are not limited in %s: no control groups for it are delegated to this user; `cupola doctor` "
                "says more",
                ", ".join(sorted(lacking)),
            )

    async def close(self) -> None:
        await self._disk.close()
        await self.network.close()
        self._work.shutdown()
        self._mounts.shutdown()
        self._sockets.shutdown()
        self._groups.remove_parent()
        # Newer runtimes keep a cache among their states.
        shutil.rmtree(self._state / RUNTIME_CACHE, ignore_errors=True)

    async def make(self, spec: SandboxSpec, output: Output) -> Sandbox:
        loop = asyncio.get_running_loop()
        bundle = self._bundles / spec.name
        root = bundle / "root"
        network = await self.network.attach(
            spec.name, spec.egress, spec.hostname, lambda line: output("status", f"{line}\n".encode())
        )
        try:
            user = await loop.run_in_executor(self._work, self._prepare, spec, bundle, root, network)
        except OSError as error:
            raise SandboxError(f"its directories could not be made: {error}") from error
        pid_file = bundle / "pid"
        report = os.memfd_create("runtime-log")
        channel, standard_input = open_standard_input(spec.channel)
        write_ends = self._open_outputs(spec.name, output)
        try:
            arguments = [
                self._program, "--root", str(self._state), "--log", f"/proc/{os.getpid()}/fd/{report}",
                *self._runtime_options(), "run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), spec.name,
            ]  # fmt: skip
            code = await self._execute(spec, arguments, (standard_input, *write_ends))
            if code == -signal.SIGINT:
                # A terminal's Ctrl-C has met it before it had a session of its own, and before it had done anything.
                code = await self._execute(spec, arguments, (standard_input, *write_ends))
            if code == 0:
                pid = int(pid_file.read_text())
                self._children.add(pid)
            process.reap_adopted(Path(self._program).name, self._children)
            if code != 0:
                raise SandboxError(_runtime_message(os.pread(report, LONGEST_REPORT, 0), self._program, code))
        except BaseException:
            if channel is not None:
                channel.close()
            raise
        finally:
            for descriptor in (standard_input, report, *write_ends):
                os.close(descriptor)
        sandbox = OciSandbox(
            spec.name, pid, network.namespace, self.network.ports, spec.port, user, self._sockets, self._groups
        )
        sandbox.channel = channel
        self._sandboxes[spec.name] = sandbox
        process.watch_exit(pid).add_done_callback(lambda ended: self._on_exit(sandbox, ended.result()))
        await loop.run_in_executor(self._work, self._detach_mounts, spec.name)
        return sandbox

    def _open_outputs(self, name: str, output: Output) -> list[int]:
        """The write ends of standard output and error; what is read from them goes to `output`, or whoever takes the pipes."""
        streams: tuple[Stream, Stream] = ("stdout", "stderr")
        pipes = {stream: open_pipe() for stream in streams}
        if isinstance(output, HeldPipes):
            output.read_ends = {stream: read_end for stream, (read_end, _) in pipes.items()}
        else:
            self._outputs[name] = tuple(
                OutputPipe(stream, read_end, output, self._budget) for stream, (read_end, _) in pipes.items()
            )
        return [write_end for _, write_end in pipes.values()]

    async def _execute(self, spec: SandboxSpec, arguments: list[str], descriptors: tuple[int, ...]) -> int:
        """Run the runtime to its end; returns its exit code."""
        if self._starts_in_groups:
            loop = asyncio.get_running_loop()
            pid = await loop.run_in_executor(self._work, self._spawn_in_groups, spec, arguments, descriptors)
        else:
            pid = self._spawn(arguments, descriptors)
        ended = process.watch_exit(pid)
        await asyncio.wait([ended], timeout=START_DEADLINE)
        if not ended.done():
            os.kill(pid, signal.SIGKILL)
        code = await ended
        self._children.discard(pid)
        return code

    def _spawn_in_groups(self, spec: SandboxSpec, arguments: list[str], descriptors: tuple[int, ...]) -> int:
        try:
            self._groups.enter(spec.name, version_1_limits(spec))
            return self._spawn(arguments, descriptors)
        except OSError as error:
            raise SandboxError(f"its control groups could not be made: {error}") from error
        finally:
            self._groups.leave()

    def _spawn(self, arguments: list[str], descriptors: tuple[int, ...]) -> int:
        stdin, stdout, stderr = descriptors
        pid = process.spawn(arguments, stdin=stdin, stdout=stdout, stderr=stderr)
        self._children.add(pid)
        return pid

    def _runtime_options(self) -> list[str]:
        name = Path(self._program).name
        if name == CRUN:
            return ["--cgroup-manager", "disabled" if self._starts_in_groups or not self._groups.exist else "cgroupfs"]
        # The network namespace in which it runs is the sandbox's own, where the platform listens and connects.
        return ["--network=host"] if name == RUNSC else []

    def _prepare(self, spec: SandboxSpec, bundle: Path, root: Path, network: SandboxNetwork) -> User:
        writable = self._data / spec.name
        root.mkdir(parents=True)
        (writable / "upper").mkdir(parents=True)
        os.chown(writable / "upper", self._first_id, self._first_id)
        (writable / "work").mkdir()
        user = resolve_user(spec.user, spec.layers)
        owner = user.outside(self._first_id)
        home, files = spec.home or writable / "home", spec.files or writable / "files"
        make_directories(owner, home, files)
        durable = [path for path in (spec.home, spec.files) if path is not None]
        self._disk.claim(spec.name, durable, writable)
        hosts = bundle / "hosts"
        hosts.write_text(f"127.0.0.1 localhost {spec.hostname}\n::1 localhost\n")
        hosts.chmod(0o644)
        resolver = bundle / "resolv.conf"
        resolver.write_text("nameserver 127.0.0.1\n")
        resolver.chmod(0o644)
        authorities = self._authorities.file(spec.authority) if spec.authority else None
        mount_overlay(spec.layers, writable / "upper", writable / "work", root)
        group = self._groups.path(spec.name)
        if self._rootless:
            home, files = bring_within_reach(self._reach, spec.name, home, files)
        config = runtime_config(
            spec,
            root,
            hosts,
            resolver,
            authorities,
            home,
            files,
            group,
            network.path,
            user,
            self._controllers,
            self._ids,
        )
        (bundle / "config.json").write_text(json.dumps(config))
        return owner

    def _detach_mounts(self, name: str) -> None:
        """Detach what was mounted for the runtime; the sandbox has its copies."""
        with contextlib.suppress(OSError):
            linux.unmount(str(self._bundles / name / "root"))
        put_out_of_reach(self._reach, name)

    def _on_exit(self, sandbox: OciSandbox, code: int) -> None:
        self._children.discard(sandbox.pid)
        kills = 0
        try:
            kills = self._groups.out_of_memory_kills(sandbox.name)
        finally:
            reason = self._reasons.pop(sandbox.name, "")
            out_of_memory = kills > 0 and code == -signal.SIGKILL and not reason
            sandbox.exited.set_result(Exit(code, out_of_memory, reason))

    def _end(self, name: str, reason: str) -> bool:
        sandbox = self._sandboxes.get(name)
        if sandbox is None or sandbox.exited.done():
            return False
        self._reasons[name] = reason
        self._groups.thaw(name)
        # All others in its process namespace die with the first.
        os.kill(sandbox.pid, signal.SIGKILL)
        return True

    def _claim(self, name: str, user: User, home: Path, files: Path) -> None:
        make_directories(user, home, files)
        self._disk.claim(name, [home, files])

    async def freeze(self, name: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self._work, self._groups.freeze, name)

    def thaw(self, name: str) -> None:
        self._groups.thaw(name)

    async def attach(self, name: str, home: Path, files: Path) -> None:
        sandbox = self._sandboxes.get(name)
        if sandbox is None or sandbox.exited.done():
            raise SandboxError("the sandbox has ended")
        # Opened here, where a child that has ended cannot have been reaped yet: the process id is still its own.
        namespace = os.open(f"/proc/{sandbox.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # To its end even when the caller is cancelled: the thread must not find another file at the descriptor.
            await unbroken(self._attach(name, namespace, sandbox.user, home, files))
        except OSError as error:
            raise SandboxError(f"its directories could not be mounted: {error}") from error
        finally:
            os.close(namespace)

    async def _attach(self, name: str, namespace: int, user: User, home: Path, files: Path) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._work, self._claim, name, user, home, files)
        await loop.run_in_executor(self._mounts, attach_directories, namespace, user, {HOME: home, FILES: files})

    async def remove(self, name: str, grace: float) -> None:
        sandbox = self._sandboxes.get(name)
        hurry = self._hurry_requested()
        wanted = sandbox is not None and grace > 0 and not sandbox.exited.done() and not hurry.done()
        # The first process of a sandbox never dies of a signal it has no handler for: waiting would be in vain.
        if sandbox is not None and wanted and process.catches(sandbox.pid, signal.SIGTERM):
            self._groups.thaw(name)
            os.kill(sandbox.pid, signal.SIGTERM)
            either: set[asyncio.Future[Any]] = {sandbox.exited, hurry}
            await asyncio.wait(either, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        async with self._removals.setdefault(name, asyncio.Lock()):
            loop = asyncio.get_running_loop()
            if sandbox is not None and not sandbox.exited.done():
                # Before all others, or runsc sees them die and exits as if they had done so by themselves.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(sandbox.pid, signal.SIGKILL)
            await loop.run_in_executor(self._work, self._remove, name)
            if sandbox is not None:
                await sandbox.exited
                if self._sandboxes.pop(name, None) is not None:
                    sandbox.close()
            await self.network.detach(name)
            for pipe in self._outputs.pop(name, ()):
                pipe.finish()

    def hurry(self) -> None:
        hurry = self._hurry_requested()
        if not hurry.done():
            hurry.set_result(None)

    def _hurry_requested(self) -> asyncio.Future[None]:
        if self._hurry is None:
            self._hurry = asyncio.get_running_loop().create_future()
        return self._hurry

    def _remove(self, name: str) -> None:
        self._groups.remove(name)
        self._detach_mounts(name)
        for directory in (self._state / name, self._bundles / name, self._data / name):
            if directory.exists():
                remove_tree(directory)
        # The state that runsc keeps is no directory.
        for file in self._state.glob(f"{name}_sandbox:*"):
            file.unlink(missing_ok=True)
        self._disk.release(name)

    async def names(self) -> frozenset[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._work, self._names)

    def _names(self) -> frozenset[str]:
        directories = (self._state, self._bundles, self._data)
        on_disk = {entry.name for directory in directories for entry in os.scandir(directory) if entry.is_dir()}
        return self._groups.names() | frozenset(on_disk - {RUNTIME_CACHE})


def _runtime_message(log: bytes, program: str, code: int) -> str:
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    text = "; ".join(lines[-3:]) or f"exit code {code} and no message"
    if "executable file" in text or "no such file or directory" in text.lower():
        return f"the image's entry point cannot be executed: {text}"
    return f"{Path(program).name} could not start the container: {text}"
