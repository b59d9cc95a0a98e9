"""Which modules may be imported before the session is known: decided from what a recorded start has imported.

Everything here comes from inside an image and is not to be trusted: it is bounded and checked, and wrong answers can
only harm the agent that gave them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

import msgspec

MODULE_LIMIT = 10_000
PLAN_LIMIT = 4 * 1024 * 1024
NAME_LIMIT = 512

_PATCHERS = ("gevent.monkey", "eventlet.patcher")
"""They replace parts of the standard library, which must not have been imported by others before."""

_Name = Annotated[str, msgspec.Meta(max_length=NAME_LIMIT)]
_Path = Annotated[str, msgspec.Meta(max_length=4096)]
_Reason = Annotated[str, msgspec.Meta(max_length=NAME_LIMIT)]


class Imported(msgspec.Struct, frozen=True, tag_field="type", tag="imported"):
    """A module whose import has ended well.

    `number` says when it began, among all. `reasons` are those not to import it ahead; `needs` are modules that it
    imported itself or depends on, `provides` those that came into being with it without an import of their own.
    """

    name: _Name
    number: int
    origin: _Path | None
    reasons: tuple[_Reason, ...]
    needs: tuple[_Name, ...]
    provides: tuple[_Name, ...]


@dataclass(frozen=True)
class Recording:
    """What a start has imported, in the order in which the imports ended, with these variables watched."""

    imported: tuple[Imported, ...]
    variables: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True):
    """Modules to import ahead, in order, each with the place it must come from; and why others are not, by name.

    `variables` are those that may differ from session to session; nothing in `modules` has looked at them.
    """

    modules: Annotated[tuple[tuple[_Name, _Path | None], ...], msgspec.Meta(max_length=MODULE_LIMIT)]
    skipped: Annotated[dict[_Name, _Reason], msgspec.Meta(max_length=MODULE_LIMIT)]
    variables: tuple[_Name, ...]

    def to_json(self) -> bytes:
        """For keeping. `from_json` gives an equal plan."""
        return msgspec.json.encode(self)

    @staticmethod
    def from_json(data: bytes) -> Plan:
        """Raises ValueError for what `to_json` cannot have made."""
        if len(data) > PLAN_LIMIT:
            raise ValueError(f"a plan has at most {PLAN_LIMIT} bytes")
        plan = msgspec.json.decode(data, type=Plan)
        for name, _ in plan.modules:
            if not is_module_name(name):
                raise ValueError(f"{name!a} is not the name of a module")
        return plan


def make_plan(recording: Recording, without: Collection[str] = ()) -> Plan:
    """The modules of a recording that may be imported ahead.

    Left out is every module with a reason of its own, those in `without`, and whatever needs one that is left out or
    whose import had not ended, directly or not.
    """
    modules = {module.name: module for module in recording.imported[:MODULE_LIMIT]}
    skipped = _skipped(modules, without)
    patcher = next((name for name in _PATCHERS if name in modules), None)
    if patcher is not None:
        skipped = dict.fromkeys(modules, f"the agent uses {patcher}, which must come before other imports")
    ahead = sorted((module for module in modules.values() if module.name not in skipped), key=lambda one: one.number)
    # What has another name (compiled parts of packages) is imported by those that need it.
    listed = tuple((module.name, module.origin) for module in ahead if is_module_name(module.name))
    return Plan(listed, skipped, recording.variables)


def _skipped(modules: dict[str, Imported], without: Collection[str]) -> dict[str, str]:
    provider = {provided: name for name, module in modules.items() for provided in module.provides}
    needed_by: dict[str, list[str]] = {}
    for name, module in modules.items():
        for need in module.needs:
            needed_by.setdefault(need if need in modules else provider.get(need, need), []).append(name)
    skipped = {name: module.reasons[0] for name, module in modules.items() if module.reasons}
    skipped |= {name: "it could not be imported ahead when it was tried" for name in without if name in modules}
    unknown = [need for need in needed_by if need not in modules]
    spreading = deque([*unknown, *skipped])
    while spreading:
        source = spreading.popleft()
        for name in needed_by.get(source, ()):
            if name not in skipped:
                skipped[name] = f"it needs {source}"[:NAME_LIMIT]
                spreading.append(name)
    return skipped


def is_module_name(name: str) -> bool:
    """Whether a name could stand in an import statement."""
    return len(name) <= NAME_LIMIT and all(part.isidentifier() for part in name.split("."))
