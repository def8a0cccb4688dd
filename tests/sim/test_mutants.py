"""The mutants: every defect in the table is caught, and without a defect nothing is."""

from __future__ import annotations

import json
import time

import pytest

from oomreaper.policy import protection
from oomreaper.reaper import verify
from oomreaper.reaper.handoff import Marks
from oomreaper.sim.choice import Replayed
from oomreaper.sim.mutants import MutantReport, mutated, run_clean, run_mutant, run_mutants, shrink
from oomreaper.sim.mutations import Mutant, all_mutants

pytest.importorskip("greenlet", reason="our own code runs in greenlets on the model")

SEEDS = range(100)
# The whole table takes 10 to 20 s on an idle core.
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def reports() -> dict[str, MutantReport]:
    """The whole table, run once."""
    start = time.perf_counter()
    found = {report.mutant: report for report in run_mutants(SEEDS)}
    assert time.perf_counter() - start < LIMIT_S
    return found


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda mutant: mutant.name)
def test_every_mutant_is_caught_by_the_invariant_that_is_there_for_it(
    mutant: Mutant, reports: dict[str, MutantReport]
) -> None:
    """Within a hundred seeds, with the seed, the invariant and a trace; the schedule that is kept replays it."""
    report = reports[mutant.name]

    assert report.caught
    assert report.invariant in mutant.expected
    assert report.seed is not None
    assert report.trace
    assert report.steps > 0


def test_the_table_has_what_the_issue_names(reports: dict[str, MutantReport]) -> None:
    """Both halves: the founding commit's own safety rules, and ours."""
    named = {
        "plain store for cmpxchg", "no inc-not-zero", "no pin", "blocking lock for trylock", "no retry limit",
        "verification by return code", "signal by pid", "reap after the log line", "clearing the slot too early",
        "updating while busy", "reaping shared areas", "dumps are not spared", "no mark", "no skip list",
    }  # fmt: skip

    assert named <= set(reports)
    assert sum(report.is_ours for report in reports.values()) >= 10
    assert len(reports) == len(all_mutants()) >= 30


def test_without_a_defect_nothing_is_found() -> None:
    """Every stage with the killers as they are, and with our crew and workers as they are, over a part of the seeds."""
    report = run_clean(range(20))

    assert report.violations == ()
    assert report.plays == 20 * 38
    assert report.steps > 100_000


def test_patches_are_undone() -> None:
    """After a run the real modules are as they were, also when the run ended in a breach."""
    before = (verify.__dict__["is_back"], Marks.__dict__["test_and_set"], protection.__dict__["refuse_process"])
    for name in ("verification by return code", "no mark", "protection ignored"):
        mutant = next(mutant for mutant in all_mutants() if mutant.name == name)
        with mutated(mutant):
            pass
        run_mutant(mutant, range(2))

    assert before == (verify.__dict__["is_back"], Marks.__dict__["test_and_set"], protection.__dict__["refuse_process"])


def test_a_mutant_that_nothing_catches_is_reported_as_such() -> None:
    """Test of the test: a mutant without a defect survives."""
    harmless = next(mutant for mutant in all_mutants() if mutant.is_ours)._replace(name="harmless", patches=())

    report = run_mutant(harmless, range(3))

    assert not report.caught
    assert (report.invariant, report.seed, report.trace) == (None, None, ())


def test_a_report_is_one_json_object() -> None:
    """What ``oomreaper simulate mutants --json`` prints has at least these four keys."""
    mutant = next(mutant for mutant in all_mutants() if mutant.name == "oom_score_adj ignored")

    record = json.loads(json.dumps(run_mutant(mutant, [7]).as_json()))

    assert (record["mutant"], record["caught"], record["seed"]) == ("oom_score_adj ignored", True, 7)
    assert record["steps"] > 0


def test_shrinking_keeps_the_breach_and_loses_the_rest() -> None:
    """Of twenty choices the one that matters is left; the shortest schedule of all is the empty one."""
    from oomreaper.sim.checks import Violation

    def play(chooser: object, with_trace: bool) -> int:  # noqa: FBT001 - the seam of a play
        del with_trace
        assert isinstance(chooser, Replayed)
        if sum(chooser.choose(3) == 2 for _ in range(20)) >= 1:
            raise Violation("two", "somebody chose 2")
        return 0

    def always(chooser: object, with_trace: bool) -> int:  # noqa: FBT001 - the seam of a play
        del chooser, with_trace
        raise Violation("two", "whatever was chosen")

    assert shrink(play, [0, 1, 2, 1, 0, 2, 1, 1, 2, 0] * 2, "two") == [2]
    assert shrink(always, [1, 1, 1], "two") == []
