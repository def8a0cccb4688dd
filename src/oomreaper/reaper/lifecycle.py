"""The life of one victim, as a table. Pure.

Rules:

1. A victim moves only along the table. A move that the table does not have is refused and changes nothing.
2. Success is memory that came back (MEMORY_BACK), never a return code and never a death alone.
3. Before the signal a victim can still be spared (REFUSE) or vanish; after it, it ends in one of four ways.
4. An end is an end: no move leaves REAPED, EXITED, LOST, UNREAPABLE, REFUSED or GONE.

Theory of operation. A victim is CHOSEN (its identity, sharers and memory are known), ANNOUNCED (one event, no
waiting) and handed to a worker, which signals and reaps it in one go: SIGNALLED. An answer that is worth another
attempt makes it REAPING, for as long as the budget lasts. When its address space is out of reach (detached by
its own exit, or this kernel lets nobody reap) it is LEAVING: nothing can be done but to watch for the memory.

``docs/lifecycle.dot`` and the drawing beside it are generated from TRANSITIONS; a test keeps them equal.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.outcome import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(enum.Enum):
    """Where a victim stands."""

    CHOSEN = "chosen"
    ANNOUNCED = "announced"
    SIGNALLED = "signalled"
    REAPING = "reaping"
    LEAVING = "leaving"
    REAPED = "reaped"
    EXITED = "exited"
    LOST = "lost"
    UNREAPABLE = "unreapable"
    REFUSED = "refused"
    GONE = "gone"


class Move(enum.Enum):
    """What can happen to a victim."""

    ANNOUNCE = "announce"
    HAND_OVER = "hand over"  # a worker has it: signal and first attempt in one go
    TRY_AGAIN = "try again"  # the answer was EINVAL or EAGAIN, memory is still held, or the worker was lost
    DETACH = "detach"  # no address space left to reap, or no process_mrelease here: wait for its exit
    MEMORY_BACK = "memory back"
    PINNED = "pinned"  # it has gone, and somebody else still holds its memory
    GIVE_UP = "give up"  # the budget is spent
    REFUSE = "refuse"
    VANISH = "vanish"


TRANSITIONS: Mapping[tuple[State, Move], State] = MappingProxyType(
    {
        (State.CHOSEN, Move.ANNOUNCE): State.ANNOUNCED,
        (State.CHOSEN, Move.REFUSE): State.REFUSED,
        (State.CHOSEN, Move.VANISH): State.GONE,
        (State.ANNOUNCED, Move.HAND_OVER): State.SIGNALLED,
        (State.ANNOUNCED, Move.REFUSE): State.REFUSED,
        (State.ANNOUNCED, Move.VANISH): State.GONE,
        (State.SIGNALLED, Move.MEMORY_BACK): State.REAPED,
        (State.SIGNALLED, Move.TRY_AGAIN): State.REAPING,
        (State.SIGNALLED, Move.DETACH): State.LEAVING,
        (State.SIGNALLED, Move.GIVE_UP): State.UNREAPABLE,
        (State.SIGNALLED, Move.REFUSE): State.REFUSED,
        (State.SIGNALLED, Move.VANISH): State.GONE,
        (State.REAPING, Move.MEMORY_BACK): State.REAPED,
        (State.REAPING, Move.TRY_AGAIN): State.REAPING,
        (State.REAPING, Move.DETACH): State.LEAVING,
        (State.REAPING, Move.GIVE_UP): State.UNREAPABLE,
        (State.LEAVING, Move.MEMORY_BACK): State.EXITED,
        (State.LEAVING, Move.PINNED): State.LOST,
        (State.LEAVING, Move.GIVE_UP): State.UNREAPABLE,
    }
)

OUTCOME_OF_STATE: Mapping[State, OutcomeKind] = MappingProxyType(
    {
        State.REAPED: OutcomeKind.REAPED,
        State.EXITED: OutcomeKind.EXITED,
        State.LOST: OutcomeKind.LOST,
        State.UNREAPABLE: OutcomeKind.UNREAPABLE,
        State.REFUSED: OutcomeKind.REFUSED,
        State.GONE: OutcomeKind.GONE,
    }
)


class LifeCycle:
    """One victim's state; holds nothing else."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = State.CHOSEN

    @property
    def state(self) -> State:
        """Where the victim stands now."""
        return self._state

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._state in OUTCOME_OF_STATE

    def permits(self, move: Move) -> bool:
        """Whether the table has this move from here."""
        return (self._state, move) in TRANSITIONS

    def apply(self, move: Move) -> State:
        """Make a move.

        Raises:
            BrokenPromiseError: The table does not have it; the state stays as it was.
        """
        target = TRANSITIONS.get((self._state, move))
        if target is None:
            raise BrokenPromiseError(f"a victim that is {self._state.value} cannot {move.value}")
        self._state = target
        return target


def as_dot() -> str:
    """The table as a Graphviz graph; what docs/lifecycle.dot holds."""
    lines = [
        "// Generated from oomreaper.reaper.lifecycle.TRANSITIONS by: make docs",
        "digraph lifecycle {",
        '  rankdir=LR; fontname="Helvetica";',
        '  node [fontname="Helvetica", shape=box, style="rounded,filled", fillcolor="#eef2f7"];',
        '  edge [fontname="Helvetica", fontsize=10];',
    ]
    for state in State:
        outcome = OUTCOME_OF_STATE.get(state)
        if outcome is not None:
            color = "#d5ecd9" if outcome.is_success else "#f6dcd6"
            lines.append(f'  {state.name} [shape=doubleoctagon, style=filled, fillcolor="{color}"];')
    labels: dict[tuple[State, State], list[str]] = {}
    for (source, move), target in TRANSITIONS.items():
        labels.setdefault((source, target), []).append(move.value)
    lines += [
        f'  {source.name} -> {target.name} [label="{", ".join(moves)}"];' for (source, target), moves in labels.items()
    ]
    return "\n".join([*lines, "}", ""])
