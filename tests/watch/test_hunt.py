"""One hunt's moves, by what they mean: it only ever goes on, and from anywhere it can end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.decision import DueStep, RankedProcess, Standing
from oomreaper.model.plan import MACHINE
from oomreaper.watch.mind.hunt import Hunt, Move, State
from tests.watch.fakes import KILL, START_NS, Body

# The stages of a hunt, the earliest first, and which of them each move is for.
STAGES = [State.SCOUTED, State.HELD, State.ASKED, State.STRUCK, State.OVER]
AIMS = {Move.HOLD: State.HELD, Move.ASK: State.ASKED, Move.STRIKE: State.STRUCK, Move.END: State.OVER}


def make_hunt(state: State = State.SCOUTED) -> Hunt:
    """A hunt that stands there."""
    process = Body(100, 7, 500).sample()
    ranked = RankedProcess(process, Standing.ELIGIBLE, 1.0, ())
    due = DueStep(KILL, MACHINE, KILL.then[0], 0, "")
    hunt = Hunt(due, ranked, (process,), incident="test-1", available_bytes=0, now_ns=START_NS)
    hunt.state = state
    return hunt


def all_of(hunt: Hunt) -> dict[str, Any]:
    """Everything that a hunt holds."""
    return {name: getattr(hunt, name) for name in Hunt.__slots__}


def test_every_state_has_its_stage_and_every_move_its_aim() -> None:
    """A state or a move that is added is placed here, before the other claims can hold of it."""
    assert set(STAGES) == set(State)
    assert set(AIMS) == set(Move)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(State, Move)))
def test_a_move_leads_on_to_its_own_stage_and_never_back(state: State, move: Move) -> None:
    """From every earlier stage it may be taken, and changes nothing else; any other is our bug, and changes nothing.

    So a hunt ends after four moves at the most; nobody is asked twice, struck twice, or asked after SIGKILL.
    """
    hunt = make_hunt(state)
    before = all_of(hunt)
    aim = AIMS[move]

    if STAGES.index(state) < STAGES.index(aim):
        hunt.apply(move)
        assert all_of(hunt) == {**before, "state": aim}
        return
    with pytest.raises(BrokenPromiseError, match=move.value):
        hunt.apply(move)
    assert all_of(hunt) == before


def test_only_one_that_is_over_is_not_open() -> None:
    """What is held, asked or being reaped still counts as a hunt."""
    assert [state for state in STAGES if make_hunt(state).is_open] == STAGES[:-1]
