"""Threads for functions that block: as many as there is work at once, each kept for a moment for what comes next.

A thread for each call would cost a short handler several times what the rest of its request does, because starting
one waits until it runs.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE_SECONDS = 5.0
"""How long a thread waits for work before it ends."""

Work = Callable[[], None]

_lock = threading.Lock()
_idle: list[SimpleQueue[Work]] = []
"""The queues of the threads that wait, the one that began to wait last at the end."""


def start(work: Work) -> None:
    """Runs `work`, which must not raise, in a thread at once. The thread is a daemon: an exit does not wait for it."""
    with _lock:
        waiting = _idle.pop() if _idle else None
    if waiting is not None:
        waiting.put(work)
    else:
        threading.Thread(target=_serve, args=(work,), name="cupola-agent-handler", daemon=True).start()


def _serve(work: Work | None) -> None:
    queue: SimpleQueue[Work] = SimpleQueue()
    while work is not None:
        work()
        work = None  # it must not live on while this thread waits
        with _lock:
            _idle.append(queue)
        work = _next(queue)


def _next(queue: SimpleQueue[Work]) -> Work | None:
    try:
        return queue.get(timeout=IDLE_SECONDS)
    except Empty:
        with _lock:
            if queue in _idle:
                _idle.remove(queue)
                return None
        # It was taken from the idle ones at this moment.
        return queue.get()
