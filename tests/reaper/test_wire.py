"""Jobs and reports survive the socket between crew and worker, whatever bytes the kernel's names hold."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.process import ThreadReport
from oomreaper.reaper import wire
from oomreaper.reaper.jobs import (
    REPORT_OF_JOB,
    Accounted,
    Hello,
    Helped,
    Inquired,
    Job,
    JobKind,
    Probed,
    Report,
    Scouted,
    SharersPart,
    Struck,
)
from tests.reaper.fakes import HELLO, accounted, memory, scouting, sharer, struck

THREAD = ThreadReport(7, b"\xff\n) Z", "D", "rwsem", None, ("a", "b"))
OUTCOME = Outcome(5, 6, b"\x1b[31m", OutcomeKind.UNREAPABLE, 1, 2, 3.5, 10, True, (7, 8), "why", True, (THREAD,))
REPORTS: list[Report | SharersPart | Outcome] = [
    HELLO,
    Hello(errno.ENOSYS, is_locked=False, is_realtime=False, problem="no pidfd"),
    Scouted(scouting(5, 1, sharers=(6, 7), comm=bytes(range(256)))),
    Scouted(None, "hidden"),
    Scouted(scouting()._replace(memory=None, holders=("5 (gdb)",))),
    struck(0, memory(1)),
    struck(errno.EINVAL, None, is_dumping_core=True, protected=(4, 5))._replace(sharers_killed=(Identity(1, 2),)),
    Struck(None, None, 1, 2, 3, None, is_dumping_core=True),
    Probed(None),
    Probed(memory(3)),
    accounted(5, memory(1)),
    accounted(5, orphan_mib=3),
    Helped(("a",), ("b", "c")),
    Inquired((THREAD,)),
    SharersPart((sharer(5), sharer(6, oom_score_adj=-1000))),
    OUTCOME,
    Outcome(5, None, None, OutcomeKind.GONE),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_a_report_survives_the_wire(report: Report | SharersPart | Outcome) -> None:
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
    assert {Hello, SharersPart, Outcome, Accounted} <= tried


@given(
    st.builds(
        Job,
        st.sampled_from(JobKind),
        st.integers(2, 2**22),
        st.none() | st.integers(0, 2**63),
        st.lists(st.integers(2, 2**22)).map(tuple),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.none() | st.text(),
        st.booleans(),
    )
)
def test_a_job_survives_the_wire(job: Job) -> None:
    """Whatever it asks, and whatever a cgroup's path holds."""
    assert job == wire.decode_job(wire.encode_job(job))


def test_a_full_part_of_sharers_fits_a_message() -> None:
    """The longest message that is sent fits the limit and a socket's default buffer."""
    part = SharersPart(tuple(sharer(4_000_000 + number) for number in range(wire.SHARERS_A_PART)))

    assert len(wire.encode_report(part)) < wire.MESSAGE_LIMIT_BYTES / 2


@pytest.mark.parametrize("message", [b"", b"{}", b'["Nobody"]', b'["Probed"]', b"\xff", b"[]"])
def test_garbage_is_an_error_and_not_a_report(message: bytes) -> None:
    """A broken worker cannot make the crew believe anything."""
    with pytest.raises((ValueError, TypeError, KeyError)):
        wire.decode_report(message)
