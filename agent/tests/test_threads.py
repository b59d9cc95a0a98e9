"""Threads of blocking handlers."""

import threading
from queue import SimpleQueue

import pytest
from cupola_agent import threads

DEADLINE = 30


def thread_of_one_call() -> threading.Thread:
    told: SimpleQueue[threading.Thread] = SimpleQueue()
    threads.start(lambda: told.put(threading.current_thread()))
    return told.get(timeout=DEADLINE)


def test_a_thread_serves_again_once_it_is_idle() -> None:
    seen: set[threading.Thread] = set()
    for _ in range(1000):
        thread = thread_of_one_call()
        if thread in seen:
            return
        seen.add(thread)
    pytest.fail("each call had a thread of its own")


def test_calls_that_block_at_once_each_have_a_thread() -> None:
    everybody = threading.Barrier(33)

    def work() -> None:
        everybody.wait(DEADLINE)

    for _ in range(32):
        threads.start(work)
    everybody.wait(DEADLINE)


def test_a_thread_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.01)
    everybody = threading.Barrier(2)
    told: SimpleQueue[threading.Thread] = SimpleQueue()

    def work() -> None:
        told.put(threading.current_thread())
        everybody.wait(DEADLINE)

    threads.start(work)
    thread = told.get(timeout=DEADLINE)
    everybody.wait(DEADLINE)
    thread.join(DEADLINE)
    assert not thread.is_alive()
