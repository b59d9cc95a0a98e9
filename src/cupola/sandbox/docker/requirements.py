"""What a Docker engine has to offer before sandboxes are made with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLDEST_API = (1, 41)
_LIMITS = {"MemoryLimit": "memory", "CpuCfsQuota": "processor time", "PidsLimit": "the number of processes"}


def faults(version: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    """Why an engine will not do, from what it answers to `GET /version` and `GET /info`; empty when it will."""
    found = []
    if tuple(map(int, str(version["ApiVersion"]).split("."))) < OLDEST_API:
        found.append(f"it is version {version['Version']}; Docker 20.10 or newer is needed")
    platform = (info.get("OSType"), info.get("Architecture"))
    if platform != ("linux", "x86_64"):
        found.append(f"it runs containers for {platform[0]} on {platform[1]}; images are for linux on x86_64")
    found += [f"it cannot limit {what}" for key, what in _LIMITS.items() if not info.get(key)]
    options = [option.partition(",")[0] for option in info.get("SecurityOptions") or ()]
    if "name=seccomp" not in options:
        found.append("it has no seccomp")
    if "name=userns" in options or "name=rootless" in options:
        found.append("it maps user ids, so sessions' folders would belong to the wrong users")
    return found
