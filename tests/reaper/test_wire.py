"""Jobs and reports survive the socket between crew and worker, whatever bytes the kernel's names hold."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.process import ThreadReport
from oomreaper.model.sample import Profile, Wish
from oomreaper.reaper import wire
from oomreaper.reaper.jobs import (
    REPORT_OF_JOB,
    Accounted,
    CouldNotLook,
    Hello,
    Helped,
    Inquired,
    Job,
    JobKind,
    Order,
    Probed,
    Profiled,
    ProfileOrder,
    ProfileRow,
    ProfilesPart,
    Reclaimed,
    ReclaimOrder,
    Report,
    Scouted,
    SharersPart,
    Struck,
    UnitKilled,
    UnitOrder,
)
from tests.reaper.fakes import HELLO, accounted, memory, scouting, sharer, struck

THREAD = ThreadReport(7, b"\xff\n) Z", "D", "rwsem", None, ("a", "b"))
OUTCOME = Outcome(5, 6, b"\x1b[31m", OutcomeKind.UNREAPABLE, 1, 2, 3.5, 10, True, (7, 8), "why", True, (THREAD,))
ROWS = (
    ProfileRow(Identity(5, 6), Profile(bytes(range(256)), b"a \xff", "/a b", "/a", Wish.OMIT)),
    ProfileRow(Identity(6, 7), Profile()),
    ProfileRow(Identity(7, 8), None),
)
REPORTS: list[Report | wire.Part | Outcome] = [
    HELLO,
    Hello(errno.ENOSYS, is_locked=False, is_realtime=False, problem="no pidfd"),
    Scouted(scouting(5, 1, sharers=(6, 7), comm=bytes(range(256)))),
    Scouted(None, "hidden"),
    Scouted(scouting()._replace(memory=None, holders=("5 (gdb)",))),
    struck(0, memory(1)),
    struck(errno.EINVAL, None, is_dumping_core=True, protected=(4, 5))._replace(sharers_killed=(Identity(1, 2),)),
    Struck(None, None, 1, 2, 3, None, is_dumping_core=True),
    struck(None, None, signal=None)._replace(missed=(5, 6)),
    Probed(None),
    Probed(memory(3)),
    accounted(5, memory(1)),
    accounted(5, orphan_mib=3),
    Helped(("a",), ("b", "c")),
    Inquired((THREAD,)),
    struck(0, None)._replace(memory_problem="ENOMEM"),
    struck(0, None)._replace(before=memory(7)),
    Profiled(ROWS),
    ProfilesPart(ROWS),
    UnitKilled((Identity(5, 6),), ("7: never",), 2, 1),
    Reclaimed(5, "/group", "EAGAIN"),
    Reclaimed(5, "process 5", None, 4, Identity(5, 6)),
    CouldNotLook("ENOMEM"),
    SharersPart((sharer(5), sharer(6, oom_score_adj=-1000))),
    OUTCOME,
    Outcome(5, None, None, OutcomeKind.GONE),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_survives_the_wire(report: Report | wire.Part | Outcome) -> None:
    """Equal after the way there, type by type, nested values and bytes included."""
    back = wire.decode_report(wire.encode_report(report))

    assert report == back
    assert type(report) is type(back)
    assert repr(report) == repr(back)


def test_every_report_is_in_the_list_above() -> None:
    """A new kind of report cannot be forgotten here."""
    tried = {type(report) for report in REPORTS}

    assert set(REPORT_OF_JOB.values()) <= tried
    assert set(REPORT_OF_JOB) == set(JobKind)
    assert {Hello, SharersPart, ProfilesPart, CouldNotLook, Outcome, Accounted} <= tried
    assert set(wire._REPORTS) == tried


@given(
    st.builds(
        Job,
        st.sampled_from(JobKind),
        st.integers(2, 2**22),
        st.none() | st.integers(0, 2**63),
        st.lists(st.builds(Identity, st.integers(2, 2**22), st.integers(0, 2**63)), max_size=5).map(tuple),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.none() | st.text(),
        st.booleans(),
        st.booleans(),
        st.integers(0, 2**63),
        st.integers(0, 1000),
        st.none() | st.integers(0, 2**63),
        st.none(),
    )
)
def test_a_job_survives_the_wire(job: Job) -> None:
    """Whatever it asks, and whatever a cgroup's path holds."""
    assert job == wire.decode_job(wire.encode_job(job))


LIVES = st.lists(st.builds(Identity, st.integers(2, 2**22), st.integers(0, 2**63)), max_size=5).map(tuple)
NUMBERS = st.none() | st.integers(0, 2**63)


@given(
    st.builds(ProfileOrder, LIVES, st.booleans()).map(lambda order: (JobKind.PROFILE, order))
    | st.builds(UnitOrder, LIVES, st.none() | st.text(), NUMBERS, NUMBERS, NUMBERS).map(
        lambda order: (JobKind.KILL_UNIT, order)
    )
    | st.builds(ReclaimOrder, st.integers(0, 2**63), st.none() | st.text(), st.none() | st.just(Identity(5, 6))).map(
        lambda order: (JobKind.RECLAIM, order)
    )
)
def test_a_side_job_survives_the_wire(asked: tuple[JobKind, Order]) -> None:
    """Its order comes back as what it was, by the kind of its job."""
    kind, order = asked
    job = Job(kind, 0, None, order=order)
    back = wire.decode_job(wire.encode_job(job))

    assert job == back
    assert type(order) is type(back.order)


def test_the_longest_profiles_fit_a_message_each() -> None:
    """Four texts of 4 KiB that JSON makes six times as long: each goes alone, in order, below the limit."""
    worst = Profile(b"\x00" * 4096, b"\xff" * 4096, "\udcff" * 4096, "\udcff" * 4096, Wish.AVOID)
    rows = tuple(ProfileRow(Identity(4_000_000 + number, 2**60), worst) for number in range(3))
    parts = wire.parts_of_profiles(rows)

    assert rows == tuple(row for part in parts for row in part)
    assert max(len(wire.encode_report(Profiled(part))) for part in parts) < wire.MESSAGE_LIMIT_BYTES
    assert wire.parts_of_profiles(()) == [()]
    assert wire.parts_of_profiles(ROWS) == [ROWS]


def test_the_longest_unit_fits_a_message() -> None:
    """As many lives as one KILL_UNIT names, with the longest numbers there are."""
    lives = tuple(Identity(4_000_000 + number, 2**60) for number in range(wire.LIVES_A_MESSAGE))

    assert len(wire.encode_job(Job(JobKind.KILL_UNIT, 0, None, order=UnitOrder(lives)))) < wire.MESSAGE_LIMIT_BYTES / 2
    assert len(wire.encode_report(UnitKilled(lives * 2, ("x" * 200,) * 50, 10, 2000))) < wire.MESSAGE_LIMIT_BYTES


def test_a_full_part_of_sharers_fits_a_message() -> None:
    """The longest message that is sent fits the limit and a socket's default buffer."""
    part = SharersPart(tuple(sharer(4_000_000 + number) for number in range(wire.SHARERS_A_PART)))

    assert len(wire.encode_report(part)) < wire.MESSAGE_LIMIT_BYTES / 2


@pytest.mark.parametrize("message", [b"", b"{}", b'["Nobody"]', b'["Probed"]', b"\xff", b"[]"])
def test_garbage_is_an_error_and_not_a_report(message: bytes) -> None:
    """A broken worker cannot make the crew believe anything."""
    with pytest.raises((ValueError, TypeError, KeyError)):
        wire.decode_report(message)
