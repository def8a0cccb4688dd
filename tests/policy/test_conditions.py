"""What a condition reads in a scope, when it holds, and how it is told."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.plan import Condition, Metric
from oomreaper.model.sample import ScopeSample
from oomreaper.policy.conditions import describe, is_met, measure, read_condition
from oomreaper.policy.grammar import parse_condition
from oomreaper.policy.history import ScopeHistory
from tests.policy.shortage import GIB, history, sample


@pytest.mark.parametrize(
    ("text", "now", "measured", "holds"),
    [
        ("mem_available < 4%", sample(0, available_gib=3), 3.0, True),
        ("mem_available < 4%", sample(0, available_gib=4), 4.0, True),
        ("mem_available < 4%", sample(0, available_gib=5), 5.0, False),
        ("mem_available < 2G", sample(0, available_gib=1), float(GIB), True),
        ("mem_available < 2G", sample(0, available_gib=3), 3.0 * GIB, False),
        ("mem_available < 0%", sample(0, available_gib=0), 0.0, True),
        ("swap_free < 10%", sample(0, swap_gib=(1, 8)), 12.5, False),
        ("swap_free < 10%", sample(0, swap_gib=(0.5, 8)), 6.25, True),
        ("swap_free < 2G", sample(0, swap_gib=(1, 8)), float(GIB), True),
        ("memory_current > 95% of limit", sample(0, current_bytes=96, limit_bytes=100), 96.0, True),
        ("memory_current > 95% of limit", sample(0, current_bytes=94, limit_bytes=100), 94.0, False),
        ("memory_current > 1M", sample(0, current_bytes=1 << 20), float(1 << 20), True),
        ("zram_used > 60%", sample(0, zram_used_bytes=70 * GIB), 70.0, True),
        ("zram_used > 60%", sample(0, zram_used_bytes=50 * GIB), 50.0, False),
    ],
)
def test_a_level(text: str, now: ScopeSample, measured: float, holds: bool) -> None:  # noqa: FBT001 - a table's column
    """A level is told in the condition's unit; it holds at its threshold and beyond, and the distance agrees."""
    condition = parse_condition(text)

    reading = read_condition(condition, history(now))

    assert (text, measured, holds) == (reading.text, reading.measured, reading.is_met)
    assert reading.distance is not None
    assert (reading.distance <= 0) is holds
    assert abs(reading.distance) == pytest.approx(abs(measured - condition.threshold))
    assert is_met(condition, history(now)) is holds


@pytest.mark.parametrize("text", ["swap_free < 10%", "swap_free < 1M", "swap_free < 0%"])
def test_a_machine_without_swap_has_none_free(text: str) -> None:
    """Without swap ``swap_free`` is 0, below anything: rules that ask for both low memory and low swap work there."""
    reading = read_condition(parse_condition(text), history(sample(0)))

    assert (reading.measured, reading.is_met) == (0.0, True)


@pytest.mark.parametrize(
    ("text", "now"),
    [
        ("mem_available < 100%", sample(0, total_gib=0, available_gib=0)),
        ("mem_available < 1T", sample(0, total_gib=0, available_gib=0)),
        ("psi_memory_some > 1%", sample(0, some_s=None)),
        ("psi_memory_full > 1%", sample(0, full_s=None)),
        ("memory_current > 1%", sample(0, limit_bytes=100)),
        ("memory_current > 1%", sample(0, current_bytes=100)),
        ("memory_current > 1%", sample(0, current_bytes=100, limit_bytes=0)),
        ("zram_used > 1%", sample(0)),
        ("time_to_exhaustion < 10min", sample(0)),
        ("time_to_exhaustion < 10min", sample(0, total_gib=0)),
    ],
)
def test_what_is_not_told_never_holds(text: str, now: ScopeSample) -> None:
    """A metric that this machine or group lacks measures None, holds nowhere, and says so in words."""
    condition = parse_condition(text)

    reading = read_condition(condition, history(now))

    assert (reading.measured, reading.is_met, reading.distance) == (None, False, None)
    assert "is not told here" in describe(condition, reading.measured)


def test_before_the_first_sample_nothing_holds() -> None:
    """Not even "there is no swap"."""
    assert measure(parse_condition("swap_free < 10%"), ScopeHistory()) is None
    assert not is_met(parse_condition("swap_free < 10%"), ScopeHistory())


def test_pressures_are_told_apart() -> None:
    """Some and full each read their own total, over the condition's window."""
    past = history(sample(0), sample(1), sample(2, some_s=1.0, full_s=0.5))

    assert measure(parse_condition("psi_memory_some > 1% over 2s"), past) == pytest.approx(50)
    assert measure(parse_condition("psi_memory_full > 1% over 2s"), past) == pytest.approx(25)
    assert measure(parse_condition("psi_memory_full > 1% over 1s"), past) == pytest.approx(50)


def test_a_forecast_of_no_fall_is_infinite() -> None:
    """Memory that does not fall never runs out; the distance is infinite too, and no NaN."""
    condition = parse_condition("time_to_exhaustion < 5s")
    reading = read_condition(condition, history(sample(0), sample(1), sample(2)))

    assert (math.inf, False, math.inf) == (reading.measured, reading.is_met, reading.distance)
    assert "does not fall" in describe(condition, reading.measured)


@pytest.mark.parametrize(
    ("text", "measured", "words"),
    [
        ("mem_available < 4%", 3.14, "mem_available is 3.14 %, below 4 %"),
        ("mem_available < 4%", 4.0, "mem_available is 4 %, just at 4 %"),
        ("mem_available < 1.5G", 3.0 * GIB, "mem_available is 3 GiB, not below 1.5 GiB"),
        ("psi_memory_full > 40%", 55.555, "psi_memory_full over 10 s is 55.55 %, above 40 %"),
        ("psi_memory_full > 40% over 500ms", 1.0, "psi_memory_full over 0.5 s is 1 %, not above 40 %"),
        ("time_to_exhaustion < 2s", 1.2, "time_to_exhaustion is 1.2 s, below 2 s"),
        ("memory_current > 4096T", 5.0 * (1 << 52), "memory_current is 20480 TiB, above 4096 TiB"),
    ],
)
def test_in_words(text: str, measured: float, words: str) -> None:
    """A person reads what was measured, against what, with units."""
    assert words == describe(parse_condition(text), measured)


COUNTS = st.integers(0, 1 << 63)
CONDITIONS = st.sampled_from(
    [
        *("mem_available < 4%", "mem_available < 4G", "swap_free < 4%", "psi_memory_some > 4%", "psi_memory_full > 4%"),
        *("memory_current > 4%", "memory_current > 4G", "time_to_exhaustion < 4s", "zram_used > 4%", "zram_used > 4G"),
    ]
).map(parse_condition)


@given(
    CONDITIONS,
    st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, *[st.none() | COUNTS] * 5), min_size=1, max_size=4),
)
def test_whatever_the_kernel_says_the_answer_is_a_number_or_none(
    condition: Condition, rows: list[tuple[int, ...]]
) -> None:
    """No sample makes a NaN or an error, and ``is_met`` always says what the reading says."""
    past = ScopeHistory()
    for number, (total, available, swap_total, swap_free, *others) in enumerate(rows, start=1):
        current, limit, zram, some, full = others
        past.add(
            ScopeSample(
                "machine",
                number * 10**9,
                total,
                available,
                swap_total,
                swap_free,
                current,
                limit,
                None,
                zram,
                some,
                full,
            )
        )

    reading = read_condition(condition, past)

    assert reading.is_met is is_met(condition, past)
    assert (reading.measured is None) is (reading.distance is None)
    if reading.measured is not None:
        assert reading.measured >= 0
        assert reading.distance == reading.distance
        if condition.metric in {Metric.PSI_MEMORY_SOME, Metric.PSI_MEMORY_FULL}:
            assert reading.measured <= 100
