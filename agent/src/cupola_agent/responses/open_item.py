"""An item between its `added` and its `done`, and the deltas of a text in it."""

from types import TracebackType
from typing import Any, NoReturn, Self

import msgspec

from cupola_agent import jsons
from cupola_agent.responses.output import Json, Output, OutputError
from cupola_agent.responses.shapes import added_item

_encode = msgspec.json.Encoder().encode


class Deltas:
    """One text of an item as it comes: each piece is told at once, all are joined once at the end."""

    __slots__ = ("_emit", "_kind", "_pieces", "_prefix")

    def __init__(self, output: Output, kind: str, place: Json) -> None:
        self._kind = kind
        self._pieces: list[str] = []
        self._emit = output.emit_encoded if output.seen else None
        self._prefix = jsons.encode({"type": kind, **place})[:-1] + b',"delta":'

    def add(self, delta: str) -> None:
        self._pieces.append(delta)
        if self._emit is not None:
            try:
                encoded = _encode(delta)
            except UnicodeEncodeError:
                encoded = jsons.encode(delta)
            self._emit(self._kind, self._prefix + encoded)

    def joined(self) -> str:
        return "".join(self._pieces)


def plain_text(delta: Any) -> str:
    """A subclass of str as a str, because only that has an encoding. Raises OutputError for what is no text."""
    if isinstance(delta, str):
        return str.__str__(delta)
    raise OutputError(f"text is str, not {type(delta).__name__}")


class OpenItem:
    """An item that is added by `open` and ended by `done`.

    `with` does both, and ends the item as interrupted when an exception passes through.
    """

    def __init__(self, output: Output, item: Json) -> None:
        self._output = output
        self._item = item
        self._state = "new"
        self.output_index = -1

    @property
    def id(self) -> str:
        return str(self._item["id"])

    @property
    def opened(self) -> bool:
        return self._state != "new"

    @property
    def closed(self) -> bool:
        return self._state == "done"

    def open(self) -> Self:
        """Adds the item to the output, if it is not there."""
        self._ready("open")
        return self

    def done(self, **changes: Any) -> None:
        """Ends the item, with these fields in its last state. One that was never added stays out of the output."""
        if self._state == "done":
            self._misused("done")
        if self._state == "open":
            self._item = {**self._item, **changes}
            self._output.close_item(self.output_index, self._item)
        self._state = "done"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.closed:
            return
        if error is None:
            self.done()
        elif self._output.ending is None:
            self.interrupt()

    def interrupt(self) -> None:
        """Ends the item as something that will not be whole."""
        self.done(**({"status": "incomplete"} if "status" in self._item else {}))

    def _ready(self, move: str) -> None:
        """Adds the item for the first move. Raises OutputError for one after the end."""
        if self._state == "new":
            self.output_index = self._output.open_item(added_item(self._item))
            self._state = "open"
        elif self._state == "done":
            self._misused(move)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._output.emit(f"response.{kind}", item_id=self.id, output_index=self.output_index, **fields)

    def _deltas(self, kind: str, **place: Any) -> Deltas:
        place = {"item_id": self.id, "output_index": self.output_index, **place}
        return Deltas(self._output, f"response.{kind}", place)

    def _misused(self, came: str, expected: str = "nothing, for it is done") -> NoReturn:
        place = f"{self._item['type']} at output_index {self.output_index}"
        raise OutputError(f"{place}: expected {expected}; came {came}")
