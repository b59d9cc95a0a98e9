"""The container of a sandbox as the Engine API wants it (`POST /containers/create`, version 1.41)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cupola.sandbox.base import MIB, SandboxSpec
from cupola.sandbox.oci import seccomp
from cupola.sandbox.oci.runtime_config import (
    CAPABILITIES,
    CPU_PERIOD,
    FILES,
    HOME,
    MASKED,
    PIDS_LIMIT,
    READ_ONLY,
    User,
    open_files_limit,
)


def container_config(
    spec: SandboxSpec, user: User, *, image: str, network: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    """The whole configuration: the same walls and limits as `oci.runtime_config`, as far as the engine has them.

    `network` is the name of the engine's network, or `none`.
    """
    open_files = open_files_limit()
    return {
        "Image": image,
        "Entrypoint": list(spec.arguments),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in spec.environment],
        "WorkingDir": spec.working_directory or "/",
        "User": f"{user.uid}:{user.gid}",
        "Hostname": spec.hostname,
        "Labels": dict(labels),
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": network,
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "GroupAdd": [str(group) for group in user.groups],
            "CapDrop": ["ALL"],
            "CapAdd": list(CAPABILITIES),
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={json.dumps(seccomp.profile())}"],
            "MaskedPaths": list(MASKED),
            "ReadonlyPaths": list(READ_ONLY),
            "Memory": spec.memory,
            "MemorySwap": spec.memory,
            # Not NanoCpus: the engine refuses more of those than the host has processors.
            "CpuPeriod": CPU_PERIOD,
            "CpuQuota": max(1000, int(spec.cpu * CPU_PERIOD)),
            "PidsLimit": PIDS_LIMIT,
            "Ulimits": [
                {"Name": "nofile", "Soft": open_files, "Hard": open_files},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "ShmSize": 64 * MIB,
            "OomScoreAdj": 500,
            "ExtraHosts": [f"{spec.hostname}:127.0.0.1"],
            # Not Binds: those may not hold a colon, and what does not exist is made by the engine.
            "Mounts": [
                {"Type": "bind", "Source": str(spec.home), "Target": HOME},
                {"Type": "bind", "Source": str(spec.files), "Target": FILES},
            ],
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "none"},
            "Init": False,
        },
    }
