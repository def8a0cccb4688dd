"""One hunt's table: every state with every move."""

from __future__ import annotations

import itertools

import pytest

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.decision import DueStep, RankedProcess, Standing
from oomreaper.model.plan import MACHINE
from oomreaper.watch.mind.hunt import _NEXT, Hunt, Move, State
from tests.watch.fakes import KILL, START_NS, Body

EXPECTED = {
    (State.SCOUTED, Move.HOLD): State.HELD,
    (State.SCOUTED, Move.ASK): State.ASKED,
    (State.SCOUTED, Move.STRIKE): State.STRUCK,
    (State.SCOUTED, Move.END): State.OVER,
    (State.HELD, Move.ASK): State.ASKED,
    (State.HELD, Move.STRIKE): State.STRUCK,
    (State.HELD, Move.END): State.OVER,
    (State.ASKED, Move.STRIKE): State.STRUCK,
    (State.ASKED, Move.END): State.OVER,
    (State.STRUCK, Move.END): State.OVER,
}


def make_hunt(state: State = State.SCOUTED) -> Hunt:
    """A hunt that stands there."""
    process = Body(100, 7, 500).sample()
    ranked = RankedProcess(process, Standing.ELIGIBLE, 1.0, ())
    due = DueStep(KILL, MACHINE, KILL.then[0], 0, "")
    hunt = Hunt(due, ranked, (process,), incident="test-1", available_bytes=0, now_ns=START_NS)
    hunt.state = state
    return hunt


@pytest.mark.parametrize(("state", "move"), list(itertools.product(State, Move)))
def test_every_state_takes_the_moves_of_the_table_and_no_other(state: State, move: Move) -> None:
    """A move of the table leads where it says; any other is refused as our bug and changes nothing."""
    hunt = make_hunt(state)
    before = {name: getattr(hunt, name) for name in Hunt.__slots__}
    expected = EXPECTED.get((state, move))

    if expected is not None:
        hunt.apply(move)
        assert hunt.state is expected
        return
    with pytest.raises(BrokenPromiseError, match=move.value):
        hunt.apply(move)
    assert before == {name: getattr(hunt, name) for name in Hunt.__slots__}


def test_the_table_is_what_is_expected_here() -> None:
    """Nothing was added to the table without a word here."""
    assert dict(_NEXT) == EXPECTED


def test_every_open_state_can_end() -> None:
    """No hunt can be caught in a state; only one that is over is not open."""
    open_states = [state for state in State if make_hunt(state).is_open]

    assert open_states == [state for state in State if state is not State.OVER]
    assert all((state, Move.END) in _NEXT for state in open_states)


def test_who_was_struck_is_never_asked_or_held_any_more() -> None:
    """After SIGKILL there is one way: to the end."""
    assert [move for state, move in _NEXT if state is State.STRUCK] == [Move.END]
