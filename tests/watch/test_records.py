"""The records: complete, small, printable, and with the secrets apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.decision import DueStep, RankedProcess, Standing
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.plan import MACHINE, KillUnit, Rule, Step, StepKind
from oomreaper.model.process import ThreadReport
from oomreaper.model.sample import ProcessSample, Profile, ScopeSample
from oomreaper.watch import log, records
from oomreaper.watch.records import Moment, Record

MIB = 1 << 20
NOW = Moment(1_795_622_400_123_456_789, 42)
STEP = Step(StepKind.KILL, 0, None, "kill")
RULE = Rule("low", MACHINE, (), 0, (), (STEP,))
DUE = DueStep(RULE, MACHINE, STEP, 0, "mem_available is 3.1 %, below 4 %")


def process(**changes: object) -> ProcessSample:
    """A hog."""
    values: dict[str, object] = {
        "identity": Identity(1234, 99),
        "comm": b"tail",
        "uid": 1000,
        "parent_pid": 1,
        "process_group": 1234,
        "session": 1234,
        "is_kernel_thread": False,
        "is_dead": False,
        "oom_score_adj": 0,
        "anon_bytes": 4960 * MIB,
        "swap_bytes": MIB,
        "page_table_bytes": 0,
        "shmem_bytes": 0,
        "growth_bytes": 7 * MIB,
        "age_seconds": 12.34,
        "profile": Profile(exe=b"/usr/bin/tail", cmdline=b"tail --password=x", cgroup="/a"),
    }
    return ProcessSample(**(values | changes))  # type: ignore[arg-type] # a test's own table


def ranked(victim: ProcessSample) -> RankedProcess:
    """The same as the leader of a ranking."""
    return RankedProcess(victim, Standing.ELIGIBLE, 4961.0 * MIB, ("4961 MiB to come back",))


def every_record(victim: ProcessSample, text: str) -> list[Record]:
    """One of each kind."""
    outcome = Outcome(1234, 99, victim.comm, OutcomeKind.REAPED, 4961 * MIB, 4961 * MIB, 212.0, 1, reason=text)
    due = DUE._replace(reason=text, scope=text)
    return [
        records.announce(NOW, "b-1", due, ranked(victim), members=[victim], hook="h"),
        records.killed(NOW, "b-1", due, victim),
        records.settled(NOW, "b-1", outcome, rule="low", scope=text, process=victim),
        records.warning(NOW, text, scope=text),
        records.skipped(NOW, text, scope=text, process=victim),
        records.state(NOW, {"ranking": [records.describe(victim, may_see=True)]}, scopes=[ScopeSample(text, 1, 2, 3)]),
    ]


def test_every_record_has_the_contract_s_head() -> None:
    """Version, event, incident, time and monotonic_ns stand in each, whatever it tells."""
    for record, event in zip(
        every_record(process(), "text"),
        ["announce", "killed", "settled", "warning", "skipped", "state"],
        strict=True,
    ):
        head = {"version": 1, "event": event, "time": "2026-11-25T16:00:00.123Z", "monotonic_ns": 42}

        assert head.items() <= record.fields.items()
        assert "incident" in record.fields


def test_secrets_are_apart() -> None:
    """No command line, no path of a program and no address of a thread stands where everybody reads."""
    threads = (ThreadReport(1234, b"tail", "D", "futex_wait", "202 0x7ffd", ("x",)),)
    outcome = Outcome(1234, 99, b"tail", OutcomeKind.UNREAPABLE, threads=threads)
    settled = records.settled(NOW, "b-1", outcome, process=process())
    announced = records.announce(NOW, "b-1", DUE, ranked(process()))
    public = json.dumps([record.fields for record in (*every_record(process(), "text")[:5], settled)])

    assert "password" not in public
    assert "/usr/bin/tail" not in public
    assert "0x7ffd" not in public
    assert announced.secret == {"cmdline": "tail --password=x", "exe": "/usr/bin/tail"}
    assert announced.owner_uid == 1000
    assert settled.secret is not None
    assert settled.owner_uid == 1000
    assert announced.whole["cmdline"] == "tail --password=x"
    assert "cmdline" not in records.describe(process(), may_see=False)


@given(comm=st.binary(max_size=15), cmdline=st.binary(max_size=50), text=st.text(max_size=50))
def test_hostile_names_are_made_printable(comm: bytes, cmdline: bytes, text: str) -> None:
    """Whatever the kernel was told: every string in every record is printable, and so is its line."""
    victim = process(comm=comm, profile=Profile(cmdline=cmdline, cgroup=text))
    for record in every_record(victim, text):
        line = log.format_line(record.whole)

        assert all(string.isprintable() for string in _strings(record.whole))
        assert line.isprintable()


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [string for each in value.values() for string in _strings(each)]
    if isinstance(value, list):
        return [string for each in value for string in _strings(each)]
    return []


def test_records_stay_small() -> None:
    """Ten thousand members, as many sharers and an endless command line make a record below 64 KiB."""
    victim = process(profile=Profile(cmdline=b"x" * 100_000, exe=b"y" * 100_000, cgroup="z" * 100_000))
    outcome = Outcome(1, 1, b"x", OutcomeKind.REAPED, sharers=tuple(range(10_000)), reason="r" * 100_000)
    best = ranked(victim)._replace(unit=KillUnit.CGROUP, unit_key="k" * 100_000)
    announced = records.announce(NOW, "b-1", DUE, best, members=[victim] * 10_000)
    settled = records.settled(NOW, "b-1", outcome)

    assert len(json.dumps(announced.whole)) < 64 * 1024
    assert len(json.dumps(settled.whole)) < 64 * 1024
    assert (announced.fields["member_count"], settled.fields["sharer_count"]) == (10_000, 10_000)


def test_the_line_of_a_kill_is_the_one_that_people_grep() -> None:
    """Announced and settled, in the words of the manual."""
    outcome = Outcome(1234, 99, b"tail", OutcomeKind.REAPED, 4961 * MIB, 4961 * MIB, 212.4, 1)
    victim = process(profile=None)

    assert (
        log.format_line(records.announce(NOW, "b-1", DUE, ranked(victim)).whole)
        == "kill: 1234 (tail) uid 1000: 4961 MiB to come back; because mem_available is 3.1 %, below 4 % (rule low); "
        "chosen: 4961 MiB to come back"
    )
    assert (
        log.format_line(records.settled(NOW, "b-1", outcome, process=victim).whole)
        == "settled: reaped 1234 (tail) 4961 of 4961 MiB back in 212 ms"
    )


@pytest.mark.parametrize(
    ("wall_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-5, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999_999_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000_000_000, "2000-02-29T00:00:00.000Z"),
        (10**30, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_rfc_3339(wall_ns: int, text: str) -> None:
    """In UTC with milliseconds, cut and not rounded; a clock that is far off is shown as what can be written."""
    assert records.format_time(wall_ns) == text
