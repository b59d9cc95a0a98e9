"""What the server asks of its node, and what the node says. Descriptors travel beside the messages."""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec

from cupola.sandbox.base import Exit, Isolation, SandboxSpec, Stream
from cupola.sessions.file_listing import NamePage
from cupola.sessions.file_tree import Names

T = TypeVar("T")

VolumeKind = Literal["volumes", "trials"]
"""Volumes of sessions, and of starts that only try an image."""

MESSAGE_LIMIT = 16 * 1024 * 1024

_ROOTS = re.compile(r"images/layers/[0-9a-f]{64}|(volumes|trials)/[a-z0-9-]{1,64}/(home|files)")
"""The paths below the data folder that may be named. The server can write to none of their parents."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """Anything that is sent."""


class Open(Message, frozen=True):
    """Answered by `Opened`."""


class Opened(Message, frozen=True):
    isolation: Isolation
    can_attach: bool
    can_freeze: bool
    no_egress: str | None


class Start(Message, frozen=True):
    """Answered by `Started`, with the descriptors of the pipes that it names, then of the file that thaws it and the channel,
    if there are such.
    """

    spec: SandboxSpec


class Started(Message, frozen=True):
    address: tuple[str, int]
    pipes: tuple[Stream, ...]
    thaw_order: bytes
    """What to write to the file that thaws it; empty when there is no such file, and `Thaw` is for asking."""


class Stop(Message, frozen=True):
    sandbox: str
    grace: float


class Freeze(Message, frozen=True):
    """Answered by the descriptor of a socket for the first request after it, unless the sandbox has ended."""

    sandbox: str


class Attach(Message, frozen=True):
    sandbox: str
    home: Path
    files: Path


class ListSandboxes(Message, frozen=True):
    """Answered by their names."""


class Hurry(Message, frozen=True):
    """Let stops kill at once."""


class Resolve(Message, frozen=True):
    """Answered by a digest."""

    reference: str


class Pull(Message, frozen=True):
    """Answered by an image, after a `Progress` for each step."""

    reference: str
    digest: str


class Load(Message, frozen=True):
    """Answered by an image or nothing."""

    digest: str


class Prune(Message, frozen=True):
    keep: tuple[str, ...]


class Cancel(Message, frozen=True):
    """Give up another request, whose answer then is that it was."""

    request: int


Request = Open | Start | Stop | Freeze | Attach | ListSandboxes | Hurry | Resolve | Pull | Load | Prune | Cancel
"""What takes its time, and is answered when it is done."""


class OpenSocket(Message, frozen=True):
    """Answered by a descriptor."""

    sandbox: str


class Thaw(Message, frozen=True):
    sandbox: str


class ListeningPorts(Message, frozen=True):
    """Answered by numbers."""

    sandbox: str


class RemoveVolume(Message, frozen=True):
    kind: VolumeKind
    volume: str


class RemoveOtherVolumes(Message, frozen=True):
    kind: VolumeKind
    keep: tuple[str, ...]


class CreateHome(Message, frozen=True):
    volume: str


class Stat(Message, frozen=True):
    volume: str
    path: Names


class ListDirectory(Message, frozen=True):
    volume: str
    path: Names
    page: NamePage


class MakeDirectory(Message, frozen=True):
    volume: str
    path: Names


class Remove(Message, frozen=True):
    volume: str
    path: Names
    recursive: bool
    seconds: float


class OpenUpload(Message, frozen=True):
    """Answered by a number for what follows, with the descriptor to write to."""

    volume: str
    path: Names


class FinishUpload(Message, frozen=True):
    upload: int


class CloseUpload(Message, frozen=True):
    upload: int


class OpenDownload(Message, frozen=True):
    """Answered by the size, with the descriptor to read from."""

    volume: str
    path: Names


FileRequest = (
    CreateHome | Stat | ListDirectory | MakeDirectory | Remove | OpenUpload | FinishUpload | CloseUpload | OpenDownload
)
QuickRequest = OpenSocket | Thaw | ListeningPorts | RemoveVolume | RemoveOtherVolumes | FileRequest
"""What a thread of the server waits for."""


class Numbered(msgspec.Struct, frozen=True):
    """A request that will be answered under its number."""

    number: int
    request: Request


class Answer(Message, frozen=True):
    """What a request was answered with, encoded by itself because only who asked knows its type."""

    number: int
    result: msgspec.Raw


class Failed(Message, frozen=True):
    """A request that failed. `status` 0 stands for a SandboxError, others for a CupolaError with these fields."""

    number: int
    status: int
    code: str
    message: str
    param: str | None = None


class Progress(Message, frozen=True):
    """A step of a request that goes on."""

    number: int
    step: str
    message: str


class Printed(Message, frozen=True):
    sandbox: str
    stream: Stream
    data: bytes


class Ended(Message, frozen=True):
    sandbox: str
    exit: Exit


Event = Answer | Failed | Progress | Printed | Ended


class Codec(Generic[T]):
    """Encodes anything, and decodes messages of one type. Paths are sent relative to the data folder."""

    def __init__(self, folder: Path, kind: Any) -> None:
        self._folder = folder
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._simplify)
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind, dec_hook=self._restore)

    def encode(self, message: object) -> bytes:
        return self._encoder.encode(message)

    def decode(self, body: bytes) -> T:
        """Raises msgspec.MsgspecError for what is not of the type, or names a path that may not be named."""
        return self._decoder.decode(body)

    def _simplify(self, value: Any) -> str:
        if isinstance(value, Path):
            return str(value.relative_to(self._folder))
        if isinstance(value, IPv4Network):
            return str(value)
        raise NotImplementedError(f"no message has a {type(value).__name__}")

    def _restore(self, kind: type, value: Any) -> Any:
        if kind is IPv4Network:
            return IPv4Network(value)
        if kind is Path and isinstance(value, str) and _ROOTS.fullmatch(value):
            return self._folder / value
        raise ValueError(f"not a path of the data folder: {str(value)[:200]!r}")


class Codecs:
    """The codecs of one data folder, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[Any, Codec[Any]] = {}

    def of(self, kind: Any) -> Codec[Any]:
        """The codec for messages of a type."""
        codec = self._made.get(kind)
        if codec is None:
            codec = self._made[kind] = Codec(self._folder, kind)
        return codec
