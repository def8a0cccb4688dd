"""When the next look comes: calm machines are left alone, and no shortage falls between two looks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.policy import pacing
from oomreaper.policy.history import ScopeHistory
from tests.policy.shortage import GIB, MS, SECOND, history, rule, sample

LOW = rule("mem_available < 4%", "swap_free < 10%", then=("terminate", "kill after 10s or mem_available < 2%"))
THRASHING = rule("psi_memory_full > 40% over 10s", "mem_available < 20%", hold="10s")
FORECAST = rule("time_to_exhaustion < 2s", "mem_available < 10%", then=("warn",))
RULES = (LOW, THRASHING, FORECAST)
CALM = history(*(sample(at) for at in range(5)))


def test_a_calm_machine_is_looked_at_once_a_second() -> None:
    """Half of the memory free, nothing moves: exactly 1 s, and nobody needs to look at candidates."""
    assert pacing.foresee(CALM, RULES, 7) == (7 + SECOND, False)
    assert pacing.next_look_ns(CALM, RULES, 7) == 7 + SECOND
    assert not pacing.is_near(CALM, RULES)


@pytest.mark.parametrize("past", [CALM, ScopeHistory()])
def test_with_nothing_to_watch_for_it_is_a_second_too(past: ScopeHistory) -> None:
    """No rules, or no sample yet."""
    assert pacing.foresee(past, (), 0) == (SECOND, False)
    assert pacing.foresee(ScopeHistory(), RULES, 0) == (SECOND, False)


@pytest.mark.parametrize(
    ("available_gib", "wait_ms"), [(50, 1000), (8.8, 800), (8.0, 100), (4.3, 50), (4.001, 1), (4.0, 100), (2.1, 16)]
)
def test_the_next_look_comes_sooner_the_less_is_left(available_gib: float, wait_ms: float) -> None:
    """At 6 GiB a second; near is at most 100 ms; once a rule holds, the level of its next step is what is watched."""
    wait_ns = pacing.next_look_ns(history(sample(0, available_gib=available_gib)), (LOW,), 0)

    assert wait_ns / MS == pytest.approx(wait_ms, rel=0.05)


def test_a_fast_fall_shortens_it() -> None:
    """A machine that was seen to fall at 20 GiB a second may fall at 40."""
    past = history(sample(0, available_gib=8), sample(0.1, available_gib=6))

    assert pacing.next_look_ns(past, (LOW,), 0) == pytest.approx(2 / 40 * SECOND, rel=0.01)
    assert pacing.is_near(past, (LOW,))


def test_swap_that_must_be_used_up_first_gives_time() -> None:
    """All conditions of a rule must hold: with plenty of swap a low mem_available is no alarm."""
    past = history(sample(0, available_gib=3, swap_gib=(20, 20)))

    assert pacing.foresee(past, (LOW,), 0) == (SECOND, False)


def test_a_pressure_can_rise_no_faster_than_time() -> None:
    """40 % over 10 s is 4 s away from nothing, 1 s from 30 %; from half of it on the scope is near."""
    stalled = rule("psi_memory_full > 40% over 10s")
    away = {
        full_s: pacing.foresee(history(sample(0), sample(10, full_s=full_s)), (stalled,), 0)
        for full_s in (0, 1.9, 2.1, 3.99)
    }

    assert away[0] == (SECOND, False)
    assert away[1.9] == (SECOND, False)
    assert away[2.1] == (100 * MS, True)
    assert away[3.99].is_near
    assert away[3.99].next_look_ns == pytest.approx(10 * MS, rel=0.01)


def test_what_is_not_told_hastens_nothing() -> None:
    """Without PSI a rule on pressure never holds."""
    assert pacing.foresee(history(sample(0, full_s=None, available_gib=1)), (THRASHING,), 0) == (SECOND, False)


def test_a_forecast_is_neared() -> None:
    """20 s from the end nobody hurries; 3 s from it the scope is near a forecast of 2 s."""
    forecast = rule("time_to_exhaustion < 2s", then=("warn",))
    slow = history(*(sample(number / 10, available_gib=23 - number / 10) for number in range(31)))
    fast = history(*(sample(number / 10, available_gib=40 - number) for number in range(16)))

    assert pacing.foresee(slow, (forecast,), 0) == (SECOND, False)
    assert pacing.is_near(fast, (forecast,))
    assert pacing.next_look_ns(fast, (forecast,), 0) == 100 * MS


def test_a_small_group_at_rest_costs_no_more_than_a_second() -> None:
    """A group of 64 MiB that is half full is no reason for a hundred looks a second; one that is nearly full is."""
    group = rule("mem_available < 1%", scope="*")
    half = history(sample(0, scope="/a", total_gib=1 / 16, available_gib=1 / 30))
    full = history(sample(0, scope="/a", total_gib=1 / 16, available_gib=1 / 16 * 0.015))

    assert pacing.foresee(half, (group,), 0) == (SECOND, False)
    assert pacing.foresee(full, (group,), 0).is_near
    assert pacing.next_look_ns(full, (group,), 0) == pytest.approx(10 * MS, rel=0.05)


def test_memory_current_is_near_when_twice_the_room_is_left() -> None:
    """95 % of the limit is near from 90 % on, in per cent and in bytes."""
    for text in ("memory_current > 95% of limit", "memory_current > 95G"):
        watched = rule(text, scope="*")
        for used, near in ((89, False), (91, True)):
            past = history(sample(0, scope="/a", current_bytes=used * GIB, limit_bytes=100 * GIB))
            assert pacing.is_near(past, (watched,)) is near


@given(
    st.lists(st.tuples(st.floats(0.001, 2), st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=20),
    st.integers(0, 1 << 60),
)
def test_it_lies_between_a_millisecond_and_a_second(rows: list[tuple[float, float, float]], now_ns: int) -> None:
    """Whatever was seen; and a near scope is looked at within 100 ms."""
    past = ScopeHistory()
    at_s = stalled_s = 0.0
    for elapsed_s, available_gib, share in rows:
        at_s += elapsed_s
        stalled_s += elapsed_s * share / 100
        past.add(sample(at_s, available_gib=available_gib, full_s=stalled_s))

    outlook = pacing.foresee(past, RULES, now_ns)

    assert MS <= outlook.next_look_ns - now_ns <= (100 * MS if outlook.is_near else SECOND)
    assert outlook.is_near is pacing.is_near(past, RULES)


@given(st.floats(4.001, 100))
def test_there_is_no_blind_second(available_gib: float) -> None:
    """Memory that is taken at the pace of two cores has not run out before the next look."""
    wait_ns = pacing.next_look_ns(history(sample(0, available_gib=available_gib)), (LOW,), 0)

    assert available_gib - 6 * wait_ns / SECOND >= 0 or wait_ns == MS


def test_the_farthest_condition_decides_in_whatever_order() -> None:
    """A rule on two levels is as far away as the farther one, which may be written first."""
    texts = ("mem_available < 4%", "swap_free < 10%")
    past = history(sample(0, available_gib=4.3, swap_gib=(2.1, 20)))

    for when in (texts, texts[::-1]):
        assert pacing.next_look_ns(past, (rule(*when),), 0) == pytest.approx(50 * MS, rel=0.01)
