"""Reports that come in parts: whole again when the last one is there, and of nobody else."""

from __future__ import annotations

import pytest

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.reaper.jobs import Profiled, ProfileRow, ProfilesPart, Scouted, SharersPart
from oomreaper.reaper.parts import Parts
from tests.reaper.fakes import HELLO, scouting, sharer

FIRST, SECOND, THIRD = (ProfileRow(Identity(pid, 1), None) for pid in (5, 6, 7))


def test_what_is_whole_is_handed_on_as_it_is() -> None:
    """A report without parts is not touched."""
    scouted = Scouted(scouting(5, sharers=(6,)))
    parts = Parts()

    assert [parts.join(1, report) for report in (HELLO, scouted, Profiled((FIRST,)))] == [
        HELLO,
        scouted,
        Profiled((FIRST,)),
    ]


def test_parts_are_nothing_until_their_report_comes() -> None:
    """Profiles in the order in which they came; sharers behind those of the report itself. Once: the next is alone."""
    parts = Parts()
    nothing = [parts.join(1, part) for part in (ProfilesPart((FIRST,)), ProfilesPart((SECOND,)))]
    profiled = parts.join(1, Profiled((THIRD,)))
    nothing.append(parts.join(1, SharersPart((sharer(7), sharer(8)))))
    scouted = parts.join(1, Scouted(scouting(5, sharers=(6,)), "a problem"))

    assert nothing == [None, None, None]
    assert profiled == Profiled((FIRST, SECOND, THIRD))
    assert scouted == Scouted(scouting(5, sharers=(6, 7, 8)), "a problem")
    assert parts.join(1, Profiled(())) == Profiled(())
    assert parts.join(1, Scouted(scouting(5))) == Scouted(scouting(5))


def test_the_parts_of_one_worker_are_not_those_of_another() -> None:
    """Two workers answer at the same time; one is lost in the middle, and what it had said with it."""
    parts = Parts()
    for worker, row in ((1, FIRST), (2, SECOND)):
        parts.join(worker, ProfilesPart((row,)))
        parts.join(worker, SharersPart((sharer(worker + 10),)))
    parts.drop(1)

    assert parts.join(1, Profiled((THIRD,))) == Profiled((THIRD,))
    assert parts.join(1, Scouted(scouting(5))) == Scouted(scouting(5))
    assert parts.join(2, Profiled((THIRD,))) == Profiled((SECOND, THIRD))
    assert parts.join(2, Scouted(scouting(5))) == Scouted(scouting(5, sharers=(12,)))


def test_a_worker_that_says_what_no_worker_says_has_broken_its_promise() -> None:
    """An outcome is made by the crew alone."""
    with pytest.raises(BrokenPromiseError, match="Outcome"):
        Parts().join(1, Outcome(5, None, None, OutcomeKind.GONE))
