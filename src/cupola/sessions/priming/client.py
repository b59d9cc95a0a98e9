"""The platform's end of the channel to a waiting interpreter. What comes from there is bounded and never trusted."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from cupola.sessions.environment import SESSION_VARIABLES
from cupola.sessions.priming.entry_point import EntryPoint
from cupola.sessions.priming.plan import MODULE_LIMIT, Imported, Plan, Recording

FRAME_LIMIT = 1024 * 1024
RECORDING_LIMIT = 16 * 1024 * 1024
READ_SIZE = 64 * 1024

_FILE_NAME = "<frozen importlib._bootstrap>"
"""Of the programs inside: tracebacks of failed imports leave such frames out, and warnings pass them over."""
_INSIDE = Path(__file__).with_name("inside")
_PROGRAM = (_INSIDE / "interpreter.py").read_bytes()
_RECORDER = tuple((_INSIDE / name).read_text() for name in ("watches.py", "recorder.py"))
_PRIMER = ((_INSIDE / "primer.py").read_text(),)

_BOOTSTRAP = f"""\
import posix,sys
names={{"loaded":set(sys.modules)}}
if not(sys.flags.isolated or getattr(sys.flags,"safe_path",0)):del sys.path[0]
program=b""
while len(program)<{len(_PROGRAM)}:program+=posix.read(0,{len(_PROGRAM)}-len(program))or posix._exit(0)
exec(compile(program,"{_FILE_NAME}","exec"),names)
with names["guard"]:next(names["ready"]())
"""


class PrimingFailed(Exception):
    """An interpreter cannot be used; the reason is in words for the owner of the agent.

    `modules` are those at fault, if any: a plan without them may work.
    """

    def __init__(self, reason: str, modules: Collection[str] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.modules = tuple(modules)


_Reason = Annotated[str, msgspec.Meta(max_length=1024)]
_Reasons = Annotated[dict[Annotated[str, msgspec.Meta(max_length=512)], _Reason], msgspec.Meta(max_length=MODULE_LIMIT)]


class Primed(msgspec.Struct, frozen=True, tag_field="type", tag="primed"):
    """What an interpreter has done before it began to wait. `skipped` are modules that could not be imported, and why."""

    milliseconds: int
    count: int
    skipped: _Reasons


class Running(msgspec.Struct, frozen=True, tag_field="type", tag="running"):
    """The entry point runs. `cold` says why what was imported ahead could not be used, if so."""

    cold: _Reason | None


class _Failed(msgspec.Struct, frozen=True, tag_field="type", tag="failed"):
    reason: _Reason
    modules: _Reasons


_Message = Imported | Primed | Running | _Failed
_messages: msgspec.json.Decoder[_Message] = msgspec.json.Decoder(_Message)


def primer_arguments(entry_point: EntryPoint) -> tuple[str, ...]:
    """What a sandbox has to run instead of the image's entry point, with a channel as its standard input."""
    return (entry_point.interpreter, *entry_point.options, "-c", _BOOTSTRAP)


class FrameReader:
    """Takes apart what comes in: each message is JSON after its length in four bytes. Raises PrimingFailed."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[_Message]:
        """The messages that are whole now. What is kept of an unfinished one is bounded by the largest allowed."""
        self._buffer += data
        messages = []
        start = 0
        while len(self._buffer) - start >= 4:
            size = int.from_bytes(self._buffer[start : start + 4], "big")
            if size > FRAME_LIMIT:
                raise PrimingFailed(f"the interpreter sent a message of {size} bytes")
            if len(self._buffer) - start - 4 < size:
                break
            messages.append(_decode(bytes(self._buffer[start + 4 : start + 4 + size])))
            start += 4 + size
        del self._buffer[:start]
        return messages


def _decode(body: bytes) -> _Message:
    try:
        return _messages.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PrimingFailed("the interpreter sent something that is not a message") from error


@dataclass
class _Collected:
    messages: list[Imported]
    size: int = 0
    failure: PrimingFailed | None = None


class PrimingChannel:
    """The channel of one sandbox that was started with `primer_arguments`; it owns the socket.

    Either `record` and `recorded`, or `prime` and `run`, each once and in this order. The caller sets deadlines.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = FrameReader()
        self._collected = _Collected([])
        self._variables: tuple[str, ...] = ()
        self._reading = False

    async def record(
        self, entry_point: EntryPoint, variables: Iterable[str] = SESSION_VARIABLES, directories: Iterable[str] = ()
    ) -> None:
        """Let the entry point run at once, with the environment that the sandbox has, and watch what it imports.

        `variables` may differ between sessions; below `directories` each session finds files of its own.
        """
        self._variables = tuple(variables)
        await self._send(
            entry_point, task="record", programs=_RECORDER, variables=self._variables, directories=tuple(directories)
        )
        asyncio.get_running_loop().add_reader(self._channel, self._collect)
        self._reading = True

    def recorded(self) -> Recording:
        """End the recording; gives what was imported until now. The agent runs on. Raises PrimingFailed."""
        if self._reading:
            self._collect()
        self.close()
        if self._collected.failure is not None:
            raise self._collected.failure
        return Recording(tuple(self._collected.messages), self._variables)

    async def prime(self, entry_point: EntryPoint, plan: Plan, environment: Mapping[str, str]) -> Primed:
        """Let the interpreter import ahead, and wait until it waits; `environment` is that of the sandbox.

        Raises PrimingFailed.
        """
        await self._send(
            entry_point, task="prime", programs=_PRIMER, environment=list(environment.items()),
            modules=plan.modules, unwanted=tuple(plan.skipped), variables=plan.variables,
        )  # fmt: skip
        answer = await self._answer()
        if not isinstance(answer, Primed):
            raise PrimingFailed("the interpreter answered something that was not asked for")
        return answer

    async def run(self, environment: Mapping[str, str]) -> Running:
        """Let the entry point run with exactly these variables. The channel is closed. Raises PrimingFailed."""
        try:
            await self._write({"environment": list(environment.items())})
            answer = await self._answer()
        finally:
            self.close()
        if not isinstance(answer, Running):
            raise PrimingFailed("the interpreter answered something that was not asked for")
        return answer

    def close(self) -> None:
        """Close the channel: an interpreter that still waits ends, one that records runs on without."""
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._reading = False
        self._channel.close()

    async def _send(self, entry_point: EntryPoint, **request: object) -> None:
        described = {
            "kind": entry_point.kind,
            "target": entry_point.target,
            "arguments": entry_point.arguments,
            "command": entry_point.command,
        }
        await self._write({"entry_point": described, **request}, _PROGRAM)

    async def _write(self, message: dict[str, object], before: bytes = b"") -> None:
        try:
            # A text of JSON must also be a text of Python, where two halves of a surrogate pair are two characters.
            body = json.dumps(message, ensure_ascii=False).encode()
            await asyncio.get_running_loop().sock_sendall(self._channel, before + len(body).to_bytes(4, "big") + body)
        except (OSError, UnicodeEncodeError) as error:
            raise PrimingFailed(f"the interpreter could not be told what to do: {error}") from error

    async def _answer(self) -> _Message:
        """The next message; what follows it is not read."""
        while True:
            data = await self._receive()
            if not data:
                raise PrimingFailed("the interpreter ended before it was ready")
            messages = self._reader.feed(data)
            if messages:
                if isinstance(messages[0], _Failed):
                    failed = messages[0]
                    raise PrimingFailed(_explain(failed), failed.modules)
                return messages[0]

    async def _receive(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._channel, READ_SIZE)
        except OSError as error:
            raise PrimingFailed(f"the channel to the interpreter broke: {error}") from error

    def _collect(self) -> None:
        """Take what there is to read, without waiting."""
        collected = self._collected
        try:
            while data := self._channel.recv(READ_SIZE):
                collected.size += len(data)
                collected.messages += [one for one in self._reader.feed(data) if isinstance(one, Imported)]
                if collected.size > RECORDING_LIMIT or len(collected.messages) > MODULE_LIMIT:
                    raise PrimingFailed(f"the agent imports more than {MODULE_LIMIT} modules")
        except BlockingIOError:
            return
        except OSError:
            pass
        except PrimingFailed as failure:
            collected.failure = failure
        asyncio.get_running_loop().remove_reader(self._channel)
        self._reading = False
        if collected.failure is not None:
            self._channel.close()


def _explain(failed: _Failed) -> str:
    first = next(iter(failed.modules.items()), None)
    return failed.reason if first is None else f"{failed.reason}: {first[0]}: {first[1]}"
