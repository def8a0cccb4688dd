"""One hunt: from a chosen process to memory that came back, or to the reason why nothing was done. Pure.

What it knows: how far one victim has come. What it refuses to know: how it was chosen (``policy``) and how it is reaped
(``reaper``). Its states are a table; a move that the table does not have changes nothing and is our bug.

::

    SCOUTED ──hold──> HELD ──────────────┐
       │                │                │
       ├────ask─────────┴──ask──> ASKED  │
       │                            │    │
       └────strike─────────┬──strike┘<───┘
                           v
                         STRUCK ──end──> OVER     (every state but OVER can end)
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.errors import BrokenPromiseError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from oomreaper.model.decision import DueStep, RankedProcess
    from oomreaper.model.identity import Identity
    from oomreaper.model.outcome import Outcome
    from oomreaper.model.process import Scouting
    from oomreaper.model.sample import ProcessSample


class State(enum.Enum):
    """Where a hunt stands."""

    SCOUTED = "is being looked at"
    HELD = "waits for the pre-kill hook"
    ASKED = "was asked to end"
    STRUCK = "is being reaped"
    OVER = "is over"


class Move(enum.Enum):
    """What can happen to it."""

    HOLD = "hold"
    ASK = "ask"
    STRIKE = "strike"
    END = "end"


_NEXT: Mapping[tuple[State, Move], State] = MappingProxyType(
    {
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
)


class Ending(enum.Enum):
    """How a hunt ended."""

    SETTLED = "settled"  # the reaper has an outcome for it
    LEFT = "left"  # it ended after it was asked to
    WITHDRAWN = "withdrawn"  # nothing was signalled: it has gone, or it is protected after all
    SPARED = "spared"  # it was asked to end and did not, and there was no need to insist
    UNSEEN = "unseen"  # nobody could look at it just now: that says nothing about it
    NEEDLESS = "needless"  # while it was waited for memory came back, or it gave up what it held


class Objection(NamedTuple):
    """Why a hunt that had to wait is not gone on with: things are not as they were when it was begun."""

    ending: Ending
    reason: str


class Hunt:
    """One victim of one step.

    ``due`` is the step it is taken for, ``ranked`` its place in the ranking, ``members`` who dies with it.
    ``available_bytes`` is what its scope had when it was taken. ``follows`` is True for a member of a unit that is
    reaped beside the one that was chosen. ``has_exited``: its process has gone while it was being reaped.
    """

    __slots__ = (
        "announced_ns",
        "asked_ns",
        "available_bytes",
        "deadline_ns",
        "due",
        "ending",
        "follows",
        "handle",
        "has_exited",
        "hook",
        "incident",
        "is_urgent",
        "is_whole",
        "killed_ns",
        "looks",
        "members",
        "outcome",
        "ranked",
        "reason",
        "scouting",
        "started_ns",
        "state",
    )

    def __init__(
        self,
        due: DueStep,
        ranked: RankedProcess,
        members: tuple[ProcessSample, ...],
        *,
        incident: str,
        available_bytes: int,
        now_ns: int,
        follows: bool = False,
    ) -> None:
        self.due = due
        self.ranked = ranked
        self.members = members
        self.incident = incident
        self.available_bytes = available_bytes
        self.follows = follows
        self.is_urgent = self.is_whole = self.has_exited = False
        self.state = State.SCOUTED
        self.looks = 0  # how many were lost
        self.started_ns = now_ns
        self.announced_ns: int | None = None
        self.asked_ns: int | None = None  # when SIGTERM was sent
        self.killed_ns: int | None = None  # when SIGKILL was, as the reaper tells
        self.deadline_ns: int | None = None  # until when the present state may last
        self.handle: int | None = None
        self.scouting: Scouting | None = None
        self.hook: str | None = None
        self.ending: Ending | None = None
        self.outcome: Outcome | None = None
        self.reason = ""

    @property
    def identity(self) -> Identity:
        """Whom it is after."""
        return self.ranked.process.identity

    @property
    def scope(self) -> str:
        """Where the shortage is."""
        return self.due.scope

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state is not State.OVER

    def apply(self, move: Move) -> None:
        """Go on.

        Raises:
            BrokenPromiseError: The table has no such move from here; nothing has changed.
        """
        following = _NEXT.get((self.state, move))
        if following is None:
            raise BrokenPromiseError(f"a hunt for {self.identity} that {self.state.value} was told to {move.value}")
        self.state = following
