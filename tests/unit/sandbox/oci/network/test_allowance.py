from __future__ import annotations

from cupola.sandbox.oci.network.allowance import Allowance


def test_a_burst_and_then_a_rate() -> None:
    now = [0.0]
    allowance = Allowance(3, 2.0, lambda: now[0])
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    assert allowance.missing() == 0.5
    now[0] = 0.25
    assert (allowance.take(), allowance.missing()) == (False, 0.25)
    now[0] = 0.5
    assert (allowance.missing(), allowance.take(), allowance.take()) == (0.0, True, False)


def test_what_was_not_used_adds_up_to_a_burst_and_no_more() -> None:
    now = [0.0]
    allowance = Allowance(3, 2.0, lambda: now[0])
    now[0] = 1000.0
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
