"""How conditions, durations and steps are written, and what is said of those that make no sense."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.plan import Condition, Metric, Step, StepKind, Unit
from oomreaper.policy.grammar import ConditionError, parse_condition, parse_duration_ns, parse_step

SECOND = 1_000_000_000
MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mem_available < 4%", (Metric.MEM_AVAILABLE, True, 4.0, Unit.PERCENT, None)),
        ("mem_available<=2.5 %", (Metric.MEM_AVAILABLE, True, 2.5, Unit.PERCENT, None)),
        ("mem_available < 500M", (Metric.MEM_AVAILABLE, True, 500 * MIB, Unit.BYTES, None)),
        ("mem_available < 500 MiB", (Metric.MEM_AVAILABLE, True, 500 * MIB, Unit.BYTES, None)),
        ("mem_available < 1.5G", (Metric.MEM_AVAILABLE, True, 1536 * MIB, Unit.BYTES, None)),
        ("mem_available < 4K", (Metric.MEM_AVAILABLE, True, 4096, Unit.BYTES, None)),
        ("mem_available < 1T", (Metric.MEM_AVAILABLE, True, MIB * MIB, Unit.BYTES, None)),
        ("swap_free < 10%", (Metric.SWAP_FREE, True, 10.0, Unit.PERCENT, None)),
        ("swap_free < 100%", (Metric.SWAP_FREE, True, 100.0, Unit.PERCENT, None)),
        ("psi_memory_full > 15% over 2s", (Metric.PSI_MEMORY_FULL, False, 15.0, Unit.PERCENT, 2 * SECOND)),
        ("psi_memory_some >= 15%", (Metric.PSI_MEMORY_SOME, False, 15.0, Unit.PERCENT, 10 * SECOND)),
        ("psi_memory_some > 15% over 500ms", (Metric.PSI_MEMORY_SOME, False, 15.0, Unit.PERCENT, SECOND // 2)),
        ("psi_memory_some > 15%  over  1min", (Metric.PSI_MEMORY_SOME, False, 15.0, Unit.PERCENT, 60 * SECOND)),
        ("memory_current > 95% of limit", (Metric.MEMORY_CURRENT, False, 95.0, Unit.PERCENT, None)),
        ("memory_current > 95%", (Metric.MEMORY_CURRENT, False, 95.0, Unit.PERCENT, None)),
        ("memory_current > 2G", (Metric.MEMORY_CURRENT, False, 2048 * MIB, Unit.BYTES, None)),
        ("time_to_exhaustion < 5s", (Metric.TIME_TO_EXHAUSTION, True, 5.0, Unit.SECONDS, None)),
        ("time_to_exhaustion < 500ms", (Metric.TIME_TO_EXHAUSTION, True, 0.5, Unit.SECONDS, None)),
        ("zram_used > 60%", (Metric.ZRAM_USED, False, 60.0, Unit.PERCENT, None)),
    ],
)
def test_a_condition_as_people_write_it(text: str, expected: tuple[Metric, bool, float, Unit, int | None]) -> None:
    """Each metric in each of its units; sizes are binary; a pressure without a window gets 10 s."""
    assert Condition(*expected, text) == parse_condition(f"  {text} ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "compares nothing"),
        ("mem_available 4%", "compares nothing"),
        ("mem_availible < 4%", "did you mean mem_available"),
        ("MemAvailable < 4%", "did you mean mem_available"),
        ("load > 4", "allowed are mem_available, swap_free"),
        ("mem_available = 4%", "'=' does not compare"),
        ("mem_available == 4%", "'==' does not compare"),
        ("mem_available > 4%", "allowed is '<'.*low when memory is short"),
        ("psi_memory_full < 4%", "allowed is '>'.*high when memory is short"),
        ("memory_current < 4%", "allowed is '>'"),
        ("mem_available < 101%", "0% to 100%"),
        ("mem_available < -4%", "a value like 4% or 500M; found '-4%'"),
        ("mem_available < 4", "a value like 4% or 500M; found '4'"),
        ("mem_available < nan%", "found 'nan%'"),
        ("mem_available < 1e3%", "found '1e3%'"),
        ("mem_available < ٤%", "found"),
        ("mem_available <", "found nothing"),
        ("mem_available < 4% < 5%", "found '4% < 5%'"),
        ("mem_available < 500MB", "a value like 4% or 500M"),
        ("mem_available < 9999999999T", "more memory than there is"),
        ("mem_available < 4% over 2s", "goes with psi_ metrics only"),
        ("mem_available < 4% of limit", "not told 'of limit'; leave it out"),
        ("memory_current > 95% of total", "allowed is 'of limit'"),
        ("psi_memory_full > 500M", "a value like 15%|a value like 4%"),
        ("psi_memory_full > 15% over 100ms", "500ms to 60s"),
        ("psi_memory_full > 15% over 2min", "500ms to 60s"),
        ("psi_memory_full > 15% over", "no duration"),
        ("psi_memory_full > 0%", "always holds"),
        ("time_to_exhaustion < 5%", "a value like 5s"),
        ("time_to_exhaustion < 1h", "at most 10min"),
        ("zram_used < 60%", "allowed is '>'"),
    ],
)
def test_a_condition_that_makes_no_sense(text: str, message: str) -> None:
    """What was found and what is allowed is said; a rule that would fire on a healthy machine is among them."""
    with pytest.raises(ConditionError, match=message):
        parse_condition(text)


def test_recovery_lies_on_the_other_side() -> None:
    """A recovered level asks for much free memory and little pressure; what a rule asks for is refused there."""
    assert not parse_condition("mem_available > 8%", is_recovery=True).is_below
    assert parse_condition("psi_memory_full < 5%", is_recovery=True).is_below
    with pytest.raises(ConditionError, match=r"allowed is '>'.*as in 'recovered'"):
        parse_condition("mem_available < 8%", is_recovery=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10s", 10 * SECOND),
        ("1 s", SECOND),
        ("500ms", SECOND // 2),
        ("0.1s", SECOND // 10),
        ("2min", 120 * SECOND),
        ("1h", 3600 * SECOND),
        ("0s", 0),
    ],
)
def test_durations(text: str, expected: int) -> None:
    """Four units, whole or decimal, exact to the nanosecond."""
    assert expected == parse_duration_ns(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "did you mean 10s"),
        ("10m", "did you mean 10min"),
        ("10 sec", "did you mean 10s"),
        ("10S", "did you mean 10s"),
        ("10 parsecs", "'parsecs' is no unit of time; allowed are ms, s, min and h$"),
        ("-1s", "no duration"),
        ("", "no duration"),
        ("25h", "too long"),
        ("9" * 400 + "s", "no duration"),
    ],
)
def test_durations_that_are_none(text: str, message: str) -> None:
    """No number without a unit, none that could be a minute or a month, none beyond a day."""
    with pytest.raises(ConditionError, match=message):
        parse_duration_ns(text)


@pytest.mark.parametrize(
    ("text", "kind", "after_ns", "or_text"),
    [
        ("warn", StepKind.WARN, 0, None),
        ("reclaim after 500ms", StepKind.RECLAIM, SECOND // 2, None),
        ("terminate after 1 s", StepKind.TERMINATE, SECOND, None),
        ("kill after 10s or mem_available < 2%", StepKind.KILL, 10 * SECOND, "mem_available < 2%"),
        ("kill or mem_available < 2%", StepKind.KILL, 0, "mem_available < 2%"),
        (
            "kill  after 5s  or psi_memory_full > 50% over 2s",
            StepKind.KILL,
            5 * SECOND,
            "psi_memory_full > 50% over 2s",
        ),
    ],
)
def test_steps(text: str, kind: StepKind, after_ns: int, or_text: str | None) -> None:
    """A kind, a time, a condition; the last two may be left out."""
    or_when = None if or_text is None else parse_condition(or_text)

    assert Step(kind, after_ns, or_when, text) == parse_step(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown step ''; allowed are warn, reclaim, terminate, kill"),
        ("Kill", "did you mean kill"),
        ("killl after 2s", "did you mean kill"),
        ("kill 10s", "'10s' makes no sense in a step"),
        ("kill after", "no duration"),
        ("kill after 10", "did you mean 10s"),
        ("kill after 10s or", "compares nothing"),
        ("kill after 10s or mem_available > 2%", "allowed is '<'"),
        ("kill after 10s and mem_available < 2%", "no unit of time|no duration"),
    ],
)
def test_steps_that_are_none(text: str, message: str) -> None:
    """The step is named, and so is what is wrong within it."""
    with pytest.raises(ConditionError, match=message):
        parse_step(text)


PIECES = st.sampled_from(
    ["mem_available", "psi_memory_full", "<", ">", "4", "%", "M", "over", "or", "after", "of limit", "2s", " ", "kill"]
)


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=9).map("".join)))
def test_no_text_is_answered_in_another_way(text: str) -> None:
    """Whatever is written, it is read or refused with a ConditionError; what is read has a threshold in its bounds."""
    for parse in (parse_condition, parse_duration_ns, parse_step):
        with contextlib.suppress(ConditionError):
            value = parse(text)
            if isinstance(value, Condition):
                assert 0 <= value.threshold < 1 << 61
