"""The last minute of a scope: shares of stalled time, the fall of memory, and that neither is ever overstated."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.sample import ScopeSample
from oomreaper.policy.history import ScopeHistory
from tests.policy.shortage import GIB, MS, SECOND, history, sample


def test_a_share_is_the_growth_of_the_total_over_the_window() -> None:
    """3 s of stall in the last 10 s are 30 %; what was before does not count."""
    past = history(*(sample(at, full_s=100 + max(0.0, at - 17)) for at in range(21)))

    assert past.psi_share_percent(10 * SECOND, is_full=True) == pytest.approx(30)
    assert past.psi_share_percent(2 * SECOND, is_full=True) == pytest.approx(100)
    assert past.psi_share_percent(10 * SECOND, is_full=False) == 0


def test_a_window_that_starts_between_two_looks_is_cut_on_a_straight_line() -> None:
    """Half of a stalled second counts when the window begins in its middle."""
    past = history(sample(0), sample(1, full_s=1), sample(2, full_s=1))

    assert past.psi_share_percent(1500 * MS, is_full=True) == pytest.approx(100 * 0.5 / 1.5)


def test_a_short_history_never_overstates() -> None:
    """One second of stall in the only second that was watched is 10 % of 10 s, and no more."""
    past = history(sample(0, full_s=7), sample(1, full_s=8))

    assert past.psi_share_percent(10 * SECOND, is_full=True) == pytest.approx(10)
    assert history(sample(0, full_s=7)).psi_share_percent(10 * SECOND, is_full=True) == 0


def test_no_psi_no_share() -> None:
    """A kernel without PSI, an empty history: None."""
    assert ScopeHistory().psi_share_percent(SECOND, is_full=True) is None
    assert history(sample(0, full_s=None)).psi_share_percent(SECOND, is_full=True) is None
    assert history(sample(0, full_s=None)).psi_share_percent(SECOND, is_full=False) == 0


def test_a_sample_that_is_not_newer_is_ignored() -> None:
    """The same moment twice, or an earlier one, changes nothing."""
    past = history(sample(0), sample(1, available_gib=40))

    assert not past.add(sample(1, available_gib=1))
    assert not past.add(sample(0.5, available_gib=1))
    assert past.latest == sample(1, available_gib=40)


def test_a_group_made_anew_begins_anew() -> None:
    """A total that went backwards is another group's: its stalls are counted from there."""
    past = history(sample(0, full_s=50), sample(1, full_s=51), sample(2, full_s=0.5))
    assert past.psi_share_percent(10 * SECOND, is_full=True) == 0

    past.add(sample(3, full_s=1.0))

    assert past.psi_share_percent(10 * SECOND, is_full=True) == pytest.approx(5)


def test_after_a_restart_only_what_follows_counts() -> None:
    """The stalls that a victim had caused are held against nobody else."""
    past = history(*(sample(at, full_s=at) for at in range(11)))
    assert past.psi_share_percent(10 * SECOND, is_full=True) == pytest.approx(100)

    past.restart()
    assert past.psi_share_percent(10 * SECOND, is_full=True) == 0
    past.add(sample(11, full_s=11))

    assert past.psi_share_percent(10 * SECOND, is_full=True) == pytest.approx(10)


@pytest.mark.parametrize("step_s", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_a_steady_fall_is_forecast_at_any_pace(step_s: float) -> None:
    """1 GiB a second from 50 GiB: after 3 s there are 47 left, and 47 s to go, however often one looks."""
    count = round(3 / step_s)
    past = history(*(sample(number * step_s, available_gib=50 - number * step_s) for number in range(count + 1)))

    assert past.fall_bytes_per_second() == pytest.approx(GIB, rel=0.01)
    assert past.fastest_fall_bytes_per_second() == pytest.approx(GIB, rel=0.01)
    assert past.time_to_exhaustion_seconds() == pytest.approx(47, rel=0.01)


def test_swap_counts_as_room() -> None:
    """Memory that falls while swap is free takes as long as both last."""
    past = history(*(sample(at, available_gib=10 - at, swap_gib=(20, 20)) for at in range(4)))

    assert past.time_to_exhaustion_seconds() == pytest.approx(27)


def test_a_brief_dip_is_no_fall_but_is_seen() -> None:
    """40 GiB gone in 0.2 s and then no more: nothing is forecast, and yet the next look is timed by it."""
    levels = [50.0] * 20 + [30.0, 10.0] + [10.0] * 20
    past = ScopeHistory()
    for number, level in enumerate(levels):
        past.add(sample(number / 10, available_gib=level))
        assert past.time_to_exhaustion_seconds() in {None, math.inf}
    assert past.fastest_fall_bytes_per_second() == pytest.approx(200 * GIB)


def test_nothing_is_forecast_from_a_first_second() -> None:
    """Less than 1.5 s of looks tell no rate, however memory falls; what is used up is used up."""
    past = history(*(sample(number / 10, available_gib=20 - number) for number in range(15)))
    assert past.time_to_exhaustion_seconds() is None
    assert past.fall_bytes_per_second() == 0

    past.add(sample(1.45, available_gib=0))

    assert past.time_to_exhaustion_seconds() == 0


def test_a_new_limit_is_no_fall() -> None:
    """When the size changes, what was available before says nothing about who takes how much."""
    past = history(*(sample(number / 10, available_gib=50 - number) for number in range(20)))
    assert past.fall_bytes_per_second() > 0

    past.add(sample(2.0, available_gib=5, total_gib=50))

    assert past.fall_bytes_per_second() == 0
    assert past.fastest_fall_bytes_per_second() == 0


def test_the_fastest_fall_is_forgotten_within_three_seconds() -> None:
    """A burst paces the looks for a while, and not for ever."""
    past = history(sample(0), sample(0.1, available_gib=40))
    assert past.fastest_fall_bytes_per_second() > 0

    for number in range(1, 36):
        past.add(sample(0.1 + number / 10, available_gib=40))

    assert past.fastest_fall_bytes_per_second() == 0


@pytest.mark.parametrize("step_ns", [1 * MS, 7 * MS, 100 * MS, 1 * SECOND])
def test_it_keeps_a_bounded_number_of_points(step_ns: int) -> None:
    """At any pace, 100,000 looks or two minutes keep at most 1,000 numbers and still tell a share over a minute."""
    past = ScopeHistory()
    count = min(100_000, 120 * SECOND // step_ns)
    for number in range(1, count + 1):
        now_ns = number * step_ns
        past.add(ScopeSample("machine", now_ns, 100, 50, psi_some_us=now_ns // 4000, psi_full_us=now_ns // 8000))
        assert past.points <= 1_000

    assert past.psi_share_percent(60 * SECOND, is_full=True) == pytest.approx(12.5, abs=0.1)
    assert past.psi_share_percent(500 * MS, is_full=False) == pytest.approx(25, abs=0.1)


STEPS = st.integers(-2 * SECOND, 100 * SECOND)
COUNTS = st.integers(0, 1 << 64)


@given(
    st.lists(st.tuples(STEPS, COUNTS, COUNTS, COUNTS, st.none() | COUNTS, st.none() | COUNTS), max_size=30),
    st.integers(500 * MS, 60 * SECOND),
)
def test_no_samples_make_it_fail(rows: list[tuple[int, int, int, int, int | None, int | None]], window_ns: int) -> None:
    """In any order, with any numbers: shares lie in 0..100, rates are not negative, and nothing is a NaN."""
    past = ScopeHistory()
    now_ns = newest_ns = 10 * SECOND
    for step_ns, total, available, swap, some, full in rows:
        now_ns = max(1, now_ns + step_ns)
        is_newer = past.latest is None or now_ns > newest_ns

        assert is_newer is past.add(
            ScopeSample("machine", now_ns, total, available, swap, swap, psi_some_us=some, psi_full_us=full)
        )
        newest_ns = now_ns if is_newer else newest_ns
        for is_full in (False, True):
            share = past.psi_share_percent(window_ns, is_full=is_full)
            assert share is None or 0 <= share <= 100
        assert past.fall_bytes_per_second() >= 0
        assert past.fastest_fall_bytes_per_second() >= 0
        seconds = past.time_to_exhaustion_seconds()
        assert seconds is None or seconds >= 0


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 100)), min_size=1, max_size=60), st.integers(1, 60))
def test_a_share_is_never_above_what_was_stalled(steps: list[tuple[int, int]], window_s: int) -> None:
    """Of a stall that went on at any pace, the share is never above the largest share of any one step."""
    past = ScopeHistory()
    past.add(ScopeSample("machine", 1, 100, 50, psi_some_us=0))
    at_ms = stalled_us = 0
    for elapsed_ms, percent in steps:
        at_ms += elapsed_ms
        stalled_us += elapsed_ms * percent * 10
        past.add(ScopeSample("machine", 1 + at_ms * MS, 100, 50, psi_some_us=stalled_us))

        share = past.psi_share_percent(window_s * SECOND, is_full=False)
        assert share is not None
        assert share <= max(percent for _, percent in steps) + 1e-6
        assert share * window_s * 10_000 <= stalled_us + 1


@pytest.mark.parametrize("falls", [(1, 8, 8), (8, 1, 8), (8, 8, 1)])
def test_the_slowest_half_second_is_the_rate(falls: tuple[int, int, int]) -> None:
    """A fall of 8, 8 and 1 GiB in three half seconds counts as 2 GiB a second, wherever the slow one lies."""
    levels = [50, *(50 - sum(falls[: number + 1]) for number in range(3))]
    past = history(*(sample(number / 2, available_gib=level) for number, level in enumerate(levels)))

    assert past.fall_bytes_per_second() == pytest.approx(2 * GIB)
