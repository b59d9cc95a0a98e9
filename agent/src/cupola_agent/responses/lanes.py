"""Conversations of which one turn runs at a time, and a newer one interrupts it (steering, contract section 4.13)."""

import asyncio
from collections import OrderedDict, deque

from cupola_agent.errors import ApiError
from cupola_agent.responses.turn import Stop, Turn

MAX_WAITING = 9
_REMEMBERED_HEADS = 10_000


class Lanes:
    """The turns of each conversation, by its key, in the order they came."""

    def __init__(self) -> None:
        self._turns: dict[str, deque[Turn]] = {}
        self._freed: dict[str, asyncio.Event] = {}
        self._heads: OrderedDict[str, str] = OrderedDict()

    def enter(self, key: str, turn: Turn) -> None:
        """Puts a turn at the end of its lane, and tells the one that runs to end.

        Raises ApiError (409) when too many wait, or when the turn continues from another than the newest.
        """
        turns = self._turns.get(key, deque())
        previous, head = turn.context.previous_response_id, self._heads.get(key)
        if previous and head and previous != head:
            raise _conflict(
                "conversation_fork_not_supported",
                "A turn of this conversation continues from its newest response only.",
                "previous_response_id",
            )
        if len(turns) > MAX_WAITING:
            raise _conflict("steering_queue_full", f"{MAX_WAITING} turns of this conversation wait already.")
        self._turns[key] = turns
        turns.append(turn)
        self._heads[key] = turn.context.response_id
        self._heads.move_to_end(key)
        while len(self._heads) > _REMEMBERED_HEADS:
            self._heads.popitem(last=False)
        if len(turns) > 1:
            turn.context.is_steered_turn = True
            self._count(turns)
            turns[0].stop(Stop.STEERED)

    def is_first(self, key: str, turn: Turn) -> bool:
        return self._turns[key][0] is turn

    async def wait_first(self, key: str, turn: Turn) -> None:
        """Waits until every earlier turn of the lane has ended."""
        while not self.is_first(key, turn):
            await self._freed.setdefault(key, asyncio.Event()).wait()
        if len(self._turns[key]) > 1:
            turn.stop(Stop.STEERED)

    def leave(self, key: str, turn: Turn) -> None:
        """Takes a turn that has ended, or will never run, out of its lane."""
        turns = self._turns[key]
        turns.remove(turn)
        self._count(turns)
        freed = self._freed.pop(key, None)
        if freed is not None:
            freed.set()
        if not turns:
            del self._turns[key]

    def _count(self, turns: deque[Turn]) -> None:
        for place, turn in enumerate(turns):
            turn.context.signals.waiting_turns = len(turns) - place - 1


def _conflict(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(409, code, message, param=param, kind="conflict")
