"""The table of a victim's life."""

from __future__ import annotations

import itertools
import os

import pytest

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.outcome import OutcomeKind
from oomreaper.reaper.lifecycle import OUTCOME_OF_STATE, TRANSITIONS, LifeCycle, Move, State, as_dot

_DOCS = os.path.join(os.path.dirname(__file__), "..", "..", "docs")


def _at(state: State) -> LifeCycle:
    life = LifeCycle()
    life._state = state
    return life


@pytest.mark.parametrize(("state", "move"), list(itertools.product(State, Move)))
def test_a_move_is_made_or_refused_whole(state: State, move: Move) -> None:
    """Every pair of state and move either follows the table or is refused and changes nothing."""
    life = _at(state)
    target = TRANSITIONS.get((state, move))
    if target is None:
        assert not life.permits(move)
        with pytest.raises(BrokenPromiseError, match=f"{state.value} cannot {move.value}"):
            life.apply(move)
        assert life.state is state
    else:
        assert life.permits(move)
        assert life.apply(move) is target


def test_ends_are_ends() -> None:
    """No move leaves a state that has an outcome, and every outcome of the contract can be reached."""
    assert not [source for source, _ in TRANSITIONS if source in OUTCOME_OF_STATE]
    assert set(OUTCOME_OF_STATE.values()) == set(OutcomeKind)
    assert set(OUTCOME_OF_STATE) <= set(TRANSITIONS.values())


def test_every_open_state_is_reached_and_left() -> None:
    """No state hangs in the air: each is reached from CHOSEN, and from each an end can be reached."""
    reached = {State.CHOSEN}
    for _ in State:
        reached |= {target for (source, _), target in TRANSITIONS.items() if source in reached}

    assert reached == set(State)
    assert {source for source, _ in TRANSITIONS} == set(State) - set(OUTCOME_OF_STATE)


def test_nobody_is_spared_after_the_signal_was_answered() -> None:
    """REFUSED and GONE mean that nothing was signalled: they are out of reach once an attempt was answered."""
    late = {State.REAPING, State.LEAVING}

    assert not [
        source
        for (source, _), target in TRANSITIONS.items()
        if source in late and target in {State.REFUSED, State.GONE}
    ]


def test_the_drawing_is_the_table() -> None:
    """docs/lifecycle.dot, and the title of the SVG beside it, are generated from the table that the code runs on."""
    with open(os.path.join(_DOCS, "lifecycle.dot"), encoding="utf-8") as file:
        assert as_dot() == file.read(), "run: make docs"
    with open(os.path.join(_DOCS, "lifecycle.svg"), encoding="utf-8") as file:
        drawing = file.read()
    for state in State:
        assert f">{state.name}<" in drawing, "run: make docs"
