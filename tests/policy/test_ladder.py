"""The ladder: when a rule fires, which step is due, how it goes back, rests and recovers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.plan import MACHINE, Rule, StepKind
from oomreaper.policy.grammar import parse_condition
from oomreaper.policy.ladder import TRANSITIONS, Ladder, Move, State, _Climb
from tests.policy.shortage import MS, SECOND, at, rule, sample

LOW = rule("mem_available < 4%", then=("terminate", "kill after 10s or mem_available < 2%"))


def look(ladder: Ladder, at_s: float, available_gib: float = 50.0, **others: Any) -> str | None:
    """Take a sample; the kind of the step that is due then."""
    now = sample(at_s, available_gib=available_gib, **others)
    ladder.on_sample(now)
    due = ladder.due(now.scope, now.monotonic_ns)
    return None if due is None else due.step.kind.value


def take(ladder: Ladder, at_s: float, scope: str = MACHINE) -> StepKind:
    """Take the step that is due."""
    due = ladder.due(scope, at(at_s))
    assert due is not None
    assert ladder.note_taken(due, at(at_s))
    return due.step.kind


@pytest.mark.parametrize(("state", "move"), list(itertools.product(State, Move)))
def test_a_move_is_made_or_refused_whole(state: State, move: Move) -> None:
    """Every pair of state and move either follows the table or is refused and changes nothing."""
    climb = _Climb(LOW)
    climb.state = state
    target = TRANSITIONS.get((state, move))
    if target is None:
        with pytest.raises(BrokenPromiseError, match=f"{state.value} cannot {move.value}"):
            climb.apply(move)
        assert climb.state is state
    else:
        climb.apply(move)
        assert climb.state is target


def test_every_state_is_reached_and_left() -> None:
    """No rule is caught in a state."""
    assert {source for source, _ in TRANSITIONS} == set(State) == set(TRANSITIONS.values())


def test_a_rule_fires_only_when_all_its_conditions_hold() -> None:
    """Low memory alone is not enough for a rule that asks for low swap too."""
    ladder = Ladder((rule("mem_available < 4%", "swap_free < 10%"),))

    assert look(ladder, 0, 3, swap_gib=(5, 10)) is None
    assert look(ladder, 1, 50, swap_gib=(0, 10)) is None
    assert look(ladder, 2, 3, swap_gib=(0, 10)) == "kill"


def test_conditions_must_hold_without_a_break() -> None:
    """``for`` begins anew with each sample that says otherwise, and the time when it would fire is told."""
    ladder = Ladder((rule("mem_available < 4%", hold="2s"),))

    assert look(ladder, 0, 3) is None
    assert ladder.next_due_ns(at(0)) == at(2)
    assert look(ladder, 1.9, 3) is None
    assert look(ladder, 1.95, 5) is None
    assert ladder.next_due_ns(at(1.95)) is None
    assert look(ladder, 2, 3) is None
    assert look(ladder, 3.9, 3) is None
    assert ladder.readings()[0].held_ns == 1_900 * MS
    assert look(ladder, 4, 3) == "kill"


def test_a_step_waits_for_its_time_or_its_level() -> None:
    """SIGTERM is followed by SIGKILL by time *and* by level (earlyoom 354): 10 s after, or at once below 2 %."""
    by_time, by_level = Ladder((LOW,)), Ladder((LOW,))
    for ladder in (by_time, by_level):
        assert look(ladder, 0, 3) == "terminate"
        assert take(ladder, 0) is StepKind.TERMINATE
        assert look(ladder, 1, 3) is None
        assert ladder.next_due_ns(at(1)) == at(10)

    assert look(by_time, 9.9, 3) is None
    assert look(by_time, 10, 3) == "kill"
    assert look(by_level, 2, 1.9) == "kill"
    assert take(by_level, 2) is StepKind.KILL
    assert look(by_level, 60, 1) is None


def test_memory_that_is_nearly_gone_does_not_wait_for_the_steps_between() -> None:
    """A level further up the ladder is asked for at each step; the steps below it are left out."""
    ladder = Ladder(
        (rule("mem_available < 8%", then=("warn", "reclaim after 5s", "kill after 9s or mem_available < 2%")),)
    )

    assert look(ladder, 0, 7) == "warn"
    take(ladder, 0)
    assert look(ladder, 1, 7) is None
    assert look(ladder, 2, 1) == "kill"


def test_the_strongest_step_goes_first() -> None:
    """Of several rules the strongest due step, then the next, each once."""
    warn, kill, terminate = (rule("mem_available < 4%", then=(step,)) for step in ("warn", "kill", "terminate"))
    ladder = Ladder((warn, kill, terminate))
    look(ladder, 0, 3)

    assert [take(ladder, 0) for _ in range(3)] == [StepKind.KILL, StepKind.TERMINATE, StepKind.WARN]
    assert ladder.due(MACHINE, at(0)) is None


def test_a_step_counts_as_taken_once() -> None:
    """A step that was noted, or whose rule has recovered meanwhile, is refused and changes nothing."""
    ladder = Ladder((LOW,))
    look(ladder, 0, 3)
    due = ladder.due(MACHINE, at(0))
    assert due is not None

    assert ladder.note_taken(due, at(0))
    assert not ladder.note_taken(due, at(1))
    assert ladder.next_due_ns(at(1)) == at(10)
    look(ladder, 2, 50)
    assert not ladder.note_taken(due, at(2))
    assert not ladder.note_taken(due._replace(scope="/nowhere"), at(2))


def test_after_a_victim_the_numbers_are_read_again() -> None:
    """Nothing is due between a victim's end and the next look; then the next victim, or nobody."""
    for available_gib, expected in ((3.0, "terminate"), (1.0, "kill"), (50.0, None)):
        ladder = Ladder((LOW,))
        look(ladder, 0, 3)
        take(ladder, 0)
        ladder.rewind(MACHINE, at(0.5))

        assert ladder.due(MACHINE, at(60)) is None
        assert ladder.next_due_ns(at(0.5)) == at(0.501)
        assert look(ladder, 0.4, 1) is None
        assert look(ladder, 0.5, available_gib) == expected


def test_warnings_are_not_repeated_for_each_victim() -> None:
    """A rewind goes back to before the first step that takes a victim, not further."""
    ladder = Ladder((rule("mem_available < 4%", then=("warn", "terminate after 1s", "kill after 1s")),))
    look(ladder, 0, 3)
    take(ladder, 0)
    look(ladder, 1, 3)
    assert take(ladder, 1) is StepKind.TERMINATE
    ladder.rewind(MACHINE, at(1.1))

    assert look(ladder, 1.2, 3) == "terminate"
    assert ladder.readings()[0].steps_taken == 1


def test_a_pressure_of_the_last_victim_takes_no_second_one() -> None:
    """One kill should be enough: what was stalled before it settled is forgotten, unless it kept its memory."""
    for is_memory_back, expected in ((True, None), (False, "kill")):
        ladder = Ladder((rule("psi_memory_full > 40% over 10s"),))
        for second in range(6):
            look(ladder, second, full_s=second)
        assert take(ladder, 5) is StepKind.KILL
        ladder.rewind(MACHINE, at(5.1), is_memory_back=is_memory_back)

        assert look(ladder, 5.5, full_s=5.1) == expected


def test_it_goes_on_until_recovered() -> None:
    """With a recovered level the next victim is taken above ``when`` too, none once it is reached (earlyoom 260)."""
    ladder = Ladder((rule("mem_available < 4%", recovered=("mem_available > 8%", "psi_memory_full < 5%")),))
    assert look(ladder, 0, 3, full_s=None) == "kill"
    take(ladder, 0)
    ladder.rewind(MACHINE, at(1))

    assert look(ladder, 1, 6, full_s=None) == "kill"
    due = ladder.due(MACHINE, at(1))
    assert due is not None
    assert due.reason.startswith("not yet recovered: mem_available is 6 %, not above 8 %")
    assert look(ladder, 2, 9, full_s=None) is None
    assert not ladder.is_active(MACHINE)
    assert look(ladder, 3, 6, full_s=None) is None


def test_a_rule_that_holds_has_not_recovered() -> None:
    """A recovered level of another metric does not end a rule whose conditions still hold."""
    ladder = Ladder((rule("mem_available < 4%", then=("kill after 1s",), recovered=("psi_memory_full < 50%",)),))
    look(ladder, 0, 3)

    assert look(ladder, 1, 3) == "kill"


def test_a_scope_at_rest_does_nothing_until_it_has_recovered() -> None:
    """A dry run says what it would do once; a rule that fires meanwhile rests too; after that all begins anew."""
    ladder = Ladder((LOW, rule("mem_available < 3%")))
    assert look(ladder, 0, 3.5) == "terminate"
    take(ladder, 0)
    ladder.rest(MACHINE)
    ladder.rewind(MACHINE, at(0.5))

    assert look(ladder, 1, 1) is None
    assert look(ladder, 60, 1) is None
    assert ladder.is_active(MACHINE)
    assert look(ladder, 61, 50) is None
    assert not ladder.is_active(MACHINE)
    assert look(ladder, 62, 2.5) == "kill"


def test_groups_are_matched_by_glob_and_kept_apart() -> None:
    """A star stands for slashes too; a machine's rule looks at no group, a group's not at the machine."""
    group = rule("mem_available < 4%", scope="/jobs/*", then=("kill",))
    machine = rule("mem_available < 4%", then=("warn",))
    ladder = Ladder((group, machine))

    assert look(ladder, 0, 3, scope="/jobs/1/step\n") == "kill"
    assert look(ladder, 0, 3) == "warn"
    assert look(ladder, 0, 3, scope="/other") is None
    assert ladder.rules_of("/jobs/x") == (group,)
    assert ladder.rules_of(MACHINE) == (machine,)
    assert ladder.next_due_ns(at(0), "/other") is None
    ladder.forget("/jobs/1/step\n")
    assert ladder.due("/jobs/1/step\n", at(0)) is None
    assert {reading.scope for reading in ladder.readings()} == {MACHINE}


def test_the_reason_names_what_was_measured() -> None:
    """Each condition with its value, and the level for which it did not wait."""
    ladder = Ladder((LOW,))
    look(ladder, 0, 3)
    take(ladder, 0)
    look(ladder, 1, 1)
    due = ladder.due(MACHINE, at(1))

    assert due is not None
    assert due.reason == "mem_available is 1 %, below 4 %; not to be waited for, since mem_available is 1 %, below 2 %"


def test_the_critical_floor_is_told_or_unknown() -> None:
    """Whether it holds; None where nothing was sampled or the metric is not told."""
    ladder = Ladder((LOW,))
    floor = parse_condition("mem_available < 2%")
    assert ladder.is_critical(MACHINE, floor) is None
    look(ladder, 0, 1)

    assert ladder.is_critical(MACHINE, floor) is True
    assert ladder.is_critical(MACHINE, parse_condition("zram_used > 2%")) is None
    look(ladder, 1, 3)
    assert ladder.is_critical(MACHINE, floor) is False


def test_a_rule_without_conditions_never_fires() -> None:
    """A broken plan is no reason to kill."""
    assert look(Ladder((rule(),)), 0, 0) is None


RULES = (
    LOW,
    rule("mem_available < 2%", recovered=("mem_available > 30%",)),
    rule("psi_memory_full > 40% over 2s", hold="1s", then=("warn", "kill after 1s")),
)
LOOKS = st.tuples(st.floats(-0.5, 2), st.sampled_from([0.0, 1.0, 3.0, 5.0, 50.0]), st.floats(0, 1))
ACTS = st.sampled_from(["look", "look", "take", "rewind", "rest"])


@given(st.lists(st.tuples(ACTS, LOOKS), max_size=40))
def test_no_step_of_an_idle_rule_is_ever_due(acts: list[tuple[str, tuple[float, float, float]]]) -> None:
    """In any order of looks, steps, victims and rests: what is due belongs to a rule that has fired, and comes once."""
    ladder = Ladder(RULES)
    at_s = newest_s = stalled_s = 0.0
    for act, (elapsed_s, available_gib, share) in acts:
        if act == "look":
            at_s += elapsed_s
            stalled_s += max(0.0, at_s - newest_s) * share
            newest_s = max(newest_s, at_s)
            ladder.on_sample(sample(at_s + 10, available_gib=available_gib, full_s=stalled_s))
        elif act == "rewind":
            ladder.rewind(MACHINE, at(newest_s + 10))
        elif act == "rest":
            ladder.rest(MACHINE)
        due = ladder.due(MACHINE, at(newest_s + 10))
        readings: dict[Rule, bool] = {reading.rule: reading.is_active for reading in ladder.readings()}
        if due is not None:
            assert readings[due.rule]
            assert due.step is due.rule.then[due.position]
            assert act != "rest"
            if act == "take":
                assert ladder.note_taken(due, at(newest_s + 10))
                assert not ladder.note_taken(due, at(newest_s + 10))
        moment = ladder.next_due_ns(at(newest_s + 10))
        assert moment is None or at(newest_s + 10) < moment <= at(newest_s + 10) + 10 * SECOND
