"""Points: each goal of the table at the top of ``badness``, and the bound of each addition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.identity import Identity
from oomreaper.model.sample import ProcessSample
from oomreaper.policy.badness import (
    MOST_POINTS_PER_BYTE,
    is_shared_memory_shortage,
    reasons_of,
    score,
    shared_parts,
    size,
)

MIB = 1 << 20
GIB = 1 << 30
TOTAL = 16 * GIB
OLD = 100_000.0

PLAIN = ProcessSample(
    identity=Identity(1000, 5000),
    comm=b"worker",
    uid=1000,
    parent_pid=2,
    process_group=1000,
    session=1000,
    is_kernel_thread=False,
    is_dead=False,
    oom_score_adj=0,
    anon_bytes=GIB,
    swap_bytes=0,
    page_table_bytes=0,
    shmem_bytes=0,
    growth_bytes=0,
    age_seconds=OLD,
)
"""An old process of 1 GiB that does not grow; tests change what they are about."""


def points(process: ProcessSample, *, is_preferred: bool = False) -> float:
    """The points on a machine of 16 GiB."""
    return score(process, total_bytes=TOTAL, is_preferred=is_preferred).points


samples = st.builds(
    PLAIN._replace,
    oom_score_adj=st.one_of(st.none(), st.integers(-1000, 1000)),
    anon_bytes=st.integers(0, 64 * GIB),
    swap_bytes=st.integers(0, 8 * GIB),
    page_table_bytes=st.integers(0, GIB),
    growth_bytes=st.integers(-64 * GIB, 64 * GIB),
    age_seconds=st.floats(-5.0, 1e9),
)


def test_a_point_is_a_byte_that_comes_back() -> None:
    """Anonymous memory, swap and page tables count alike; shared memory does not."""
    process = PLAIN._replace(anon_bytes=3 * MIB, swap_bytes=2 * MIB, page_table_bytes=MIB, shmem_bytes=GIB)

    assert points(process) == 6 * MIB


def test_growth_counts_twice_more() -> None:
    """A byte grown in the last 10 s counts three times in all."""
    assert points(PLAIN._replace(growth_bytes=100 * MIB)) == GIB + 200 * MIB


def test_growth_beyond_its_gain_counts_no_more() -> None:
    """What it grew and gave away again gives nothing back."""
    assert points(PLAIN._replace(growth_bytes=50 * GIB)) == 3 * GIB


def test_shrinking_earns_nothing() -> None:
    """Who gave memory back is judged by what is left."""
    assert points(PLAIN._replace(growth_bytes=-GIB)) == GIB


@pytest.mark.parametrize(("adj", "expected"), [(0, GIB), (300, 1.3 * GIB), (1000, 2 * GIB), (None, GIB)])
def test_a_raised_adjustment_counts_by_its_own_gain(adj: int | None, expected: float) -> None:
    """Up to twice its gain, and never a share of the whole memory; unread is no adjustment."""
    assert points(PLAIN._replace(oom_score_adj=adj)) == pytest.approx(expected)


@pytest.mark.parametrize(("adj", "expected"), [(-10, GIB - 0.01 * TOTAL), (-60, GIB - 0.06 * TOTAL), (-900, 0.0)])
def test_a_lowered_adjustment_counts_by_the_whole_memory(adj: int, expected: float) -> None:
    """As in the kernel's oom_badness(), and points end at 0."""
    assert points(PLAIN._replace(oom_score_adj=adj)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("age_seconds", "expected"), [(0.0, 1.1 * GIB), (300.0, 1.05 * GIB), (600.0, GIB), (1e9, GIB), (-1.0, 1.1 * GIB)]
)
def test_youth_is_a_tenth_at_most(age_seconds: float, expected: float) -> None:
    """It fades within ten minutes, and the old lose nothing. A clock that went astray gives no more."""
    assert points(PLAIN._replace(age_seconds=age_seconds)) == pytest.approx(expected)


def test_preference_is_bounded_by_the_memory() -> None:
    """A large preferred process has 30 % of all memory more."""
    assert points(PLAIN._replace(anon_bytes=8 * GIB), is_preferred=True) == 8 * GIB + 0.3 * TOTAL


def test_preference_is_bounded_by_its_own_gain() -> None:
    """A small preferred process has three times its gain more."""
    assert points(PLAIN._replace(anon_bytes=5 * MIB), is_preferred=True) == 20 * MIB


@given(process=samples, is_preferred=st.booleans())
def test_points_are_bounded_by_the_gain(process: ProcessSample, is_preferred: bool) -> None:  # noqa: FBT001 # drawn
    """Whatever is set, asked for or young: nobody has more than 7.1 points for each byte, or less than none."""
    got = points(process, is_preferred=is_preferred)

    assert 0.0 <= got <= MOST_POINTS_PER_BYTE * process.gain_bytes * (1 + 1e-9)


@given(process=samples, more_bytes=st.integers(1, 8 * GIB), is_preferred=st.booleans())
def test_more_gain_is_never_fewer_points(
    process: ProcessSample,
    more_bytes: int,
    is_preferred: bool,  # noqa: FBT001 # drawn
) -> None:
    """Monotone: to hold more never saves anybody."""
    larger = process._replace(anon_bytes=process.anon_bytes + more_bytes)

    assert points(larger, is_preferred=is_preferred) >= points(process, is_preferred=is_preferred)


def test_every_part_is_told_in_words() -> None:
    """Gain, growth, adjustment, youth and preference each have their reason, with what it added."""
    process = PLAIN._replace(growth_bytes=100 * MIB, oom_score_adj=300, age_seconds=60.0)
    told = score(process, total_bytes=TOTAL, is_preferred=True)

    assert reasons_of(process, told, preferred_by="comm = java") == (
        "gives back 1.0 GiB",
        "grew by 100 MiB in the last 10 s: +200 MiB",
        "its oom_score_adj is 300: +307 MiB",
        "runs for 60 s only: +92 MiB",
        "a prefer rule matches it (comm = java): +3.0 GiB",
    )


def test_what_counts_nothing_is_not_told() -> None:
    """An old process that does not grow has one reason."""
    assert reasons_of(PLAIN, score(PLAIN, total_bytes=TOTAL)) == ("gives back 1.0 GiB",)


def test_a_lowered_adjustment_is_told_with_its_sign() -> None:
    """People see what it took away."""
    process = PLAIN._replace(oom_score_adj=-10)

    assert reasons_of(process, score(process, total_bytes=TOTAL))[1] == "its oom_score_adj is -10: -164 MiB"


@pytest.mark.parametrize(
    ("shmem_bytes", "used_bytes", "expected"),
    [(8 * GIB, 16 * GIB, True), (8 * GIB - 1, 16 * GIB, False), (None, 16 * GIB, False), (0, 0, False)],
)
def test_when_shared_memory_is_the_hog(shmem_bytes: int | None, used_bytes: int, expected: bool) -> None:  # noqa: FBT001 # expected
    """From half of what is used on; never when it is not told, or nothing."""
    assert is_shared_memory_shortage(shmem_bytes, used_bytes) is expected


def test_mappers_of_one_segment_divide_it() -> None:
    """Four that have about the same amount answer for a quarter each; one with another amount for all of its own."""
    alike = [
        PLAIN._replace(identity=Identity(pid, 1), shmem_bytes=shmem_bytes)
        for pid, shmem_bytes in ((1, 1000 * MIB), (2, 1001 * MIB), (3, 1009 * MIB), (4, 992 * MIB))
    ]
    other = PLAIN._replace(identity=Identity(5, 1), shmem_bytes=2000 * MIB)

    parts = shared_parts([*alike, other])

    assert [process.shmem_bytes // 4 for process in alike] + [2000 * MIB] == [
        parts[process.identity] for process in [*alike, other]
    ]


def test_a_small_segment_is_nobodys_fault() -> None:
    """Below 64 MiB there is no part."""
    small = PLAIN._replace(shmem_bytes=64 * MIB - 1)
    large = PLAIN._replace(identity=Identity(2, 1), shmem_bytes=64 * MIB)

    assert {large.identity: 64 * MIB} == shared_parts([small, large])


def test_a_part_of_shared_memory_counts_and_is_told() -> None:
    """It counts as gain does, and the reason says that it is shared."""
    process = PLAIN._replace(anon_bytes=MIB, shmem_bytes=4 * GIB)
    told = score(process, total_bytes=TOTAL, shared_bytes=2 * GIB)

    assert told.points == MIB + 2 * GIB
    assert "its part of a segment of 4.0 GiB counts as 2.0 GiB more" in reasons_of(process, told)[1]


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [(0, "0.0 MiB"), (5 * MIB, "5.0 MiB"), (500 * MIB, "500 MiB"), (GIB, "1.0 GiB"), (2.5 * GIB, "2.5 GiB")],
)
def test_sizes_for_people(size_bytes: float, expected: str) -> None:
    """Units are named, and as many digits as help."""
    assert size(size_bytes) == expected
