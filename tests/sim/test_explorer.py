"""The explorer, and with it the hand-off protocols, the founding commit's and ours, in every schedule that matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.sim import kernel_defects
from oomreaper.sim.explorer import Cell, Until, explore, main
from oomreaper.sim.founding_protocol import FoundingModel
from oomreaper.sim.our_protocol import BY_LEADER, BY_SHARER, OTHER, NotedMarks, NotedSlot, OurModel
from oomreaper.sim.protocols import MODELS

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable

    from oomreaper.sim.explorer import Ledger
    from oomreaper.sim.killers.founding import OomReaper

# Models whose reduced search takes more than a second or two; they are searched plainly, state by state.
LARGE = ("founding: woken twice for one", "founding: a second waker, both exit", "ours: two victims, two slots")
SMALL = tuple(name for name in MODELS if name not in LARGE)


class Toy:
    """Three actors: two that count up, one that waits for the sum; nothing else."""

    name = "toy"

    def __init__(self, *, is_atomic: bool) -> None:
        self.is_atomic = is_atomic

    def build(self, ledger: Ledger) -> ToyWorld:
        """A fresh one."""
        return ToyWorld(ledger, is_atomic=self.is_atomic)


class ToyWorld:
    """One start of ``Toy``."""

    def __init__(self, ledger: Ledger, *, is_atomic: bool) -> None:
        self.sum = Cell(ledger, "sum", 0)
        self.other = [Cell(ledger, f"own {number}", 0) for number in (0, 1)]
        self.actors: dict[str, Generator[Any, None, Any]] = {
            "one": self.count(0, is_atomic=is_atomic),
            "two": self.count(1, is_atomic=is_atomic),
            "end": self.wait(),
        }
        self.daemons: frozenset[str] = frozenset()

    def count(self, number: int, *, is_atomic: bool) -> Generator[Any, None, Any]:
        """Add one; not atomically, if so wished, so that one of two may be lost."""
        for _ in range(3):  # nobody else's business: the reduction does not interleave it
            self.other[number].add(1)
            yield
        if is_atomic:
            self.sum.add(1)
            return
        value = self.sum.get()
        yield
        self.sum.set(value + 1)

    def wait(self) -> Generator[Any, None, Any]:
        """Until both have."""
        yield Until(lambda: bool(self.sum.get() >= 2))

    def key(self) -> Hashable:
        """All."""
        return self.sum.value, tuple(cell.value for cell in self.other)

    def check_end(self) -> None:
        """Nothing more."""


def test_a_lost_update_is_found_as_somebody_who_waits_for_ever() -> None:
    """The oldest race there is: read, add, write in two steps, and the one who waits for the sum never goes on."""
    report = explore(Toy(is_atomic=False))

    assert report.breach is not None
    assert report.breach.invariant == "stuck"
    assert report.breach.text == "end waits for ever"


def test_steps_that_touch_nothing_in_common_are_not_interleaved() -> None:
    """Two atomic additions behind each actor's own steps: the reduction looks at a handful of schedules."""
    reduced = explore(Toy(is_atomic=True))
    plain = explore(Toy(is_atomic=True), is_reduced=False)

    assert reduced.breach is None
    assert reduced.schedules <= 4
    assert reduced.states < plain.states
    assert reduced.ends == plain.ends


@pytest.mark.parametrize("name", SMALL)
def test_the_reduction_loses_no_end(name: str) -> None:
    """Reduced and plain search come to the same ends; the reduced one looks at no state that the plain one has not."""
    reduced = explore(MODELS[name])
    plain = explore(MODELS[name], is_reduced=False)

    assert reduced.is_complete
    assert plain.is_complete
    assert reduced.breach is None
    assert plain.breach is None
    assert reduced.ends == plain.ends
    assert reduced.states <= plain.states


@pytest.mark.parametrize("name", LARGE)
def test_large_models_hold_in_every_state(name: str) -> None:
    """A second waker with both victims exiting, one victim woken for twice, two slots: every state, no breach."""
    report = explore(MODELS[name], is_reduced=False)

    assert report.is_complete
    assert report.breach is None
    assert report.states > 1_000


ONE = FoundingModel("one", ("A",))
TWO = FoundingModel("two", ("A", "B"), stuck=("A",))
LOCKED = FoundingModel("locked", ("A",), stuck=("A",), locked=("A",))


@pytest.mark.parametrize(
    ("model", "reaper", "invariants"),
    [
        (TWO, kernel_defects.PlainStore, {"slot"}),
        (TWO, kernel_defects.UpdateWhileBusy, {"slot"}),
        (ONE, kernel_defects.ClearEarly, {"slot-busy"}),
        (ONE, kernel_defects.NoPin, {"mm-use-after-free", "mm-freed-early"}),
        (TWO, kernel_defects.LoserKeepsPin, {"mm-leak"}),
        (ONE, kernel_defects.DropTwice, {"mm-use-after-free", "mm-freed-early"}),
        (ONE, kernel_defects.NoUser, {"reap-races-exit", "pages-freed-twice"}),
        (ONE, kernel_defects.PlainIncrement, {"mm-users-revived"}),
        (ONE, kernel_defects.UserLeak, {"mm-leak"}),
        (TWO, kernel_defects.NoWakeUp, {"slot-held", "mm-leak"}),
        (LOCKED, kernel_defects.NoUnlock, {"mm-leak", "stuck"}),
    ],
)
def test_a_defect_in_the_founding_commits_steps_is_found(
    model: FoundingModel, reaper: type[OomReaper], invariants: set[str]
) -> None:
    """Each of these has a schedule that breaks an invariant; reduced and plain search both find one."""
    reduced = explore(model.mutated(reaper))
    plain = explore(model.mutated(reaper), is_reduced=False)

    assert reduced.breach is not None
    assert plain.breach is not None
    assert {reduced.breach.invariant, plain.breach.invariant} <= invariants
    assert len(plain.breach.schedule) <= len(reduced.breach.schedule)


class StoringSlot(NotedSlot):
    """A plain store where the compare-and-set should be."""

    def change(self, expected: Any, new: Any) -> bool:
        """Store, whoever is in it."""
        del expected
        self._content = new
        return True


class ForgetfulMarks(NotedMarks):
    """No mark that lets an address space in only once."""

    def mark(self, lives: Any) -> bool:
        """Everybody."""
        del lives
        return True


@pytest.mark.parametrize(
    ("model", "invariants"),
    [
        (OurModel("plain store", (BY_LEADER, OTHER), slot=StoringSlot), {"slot", "unaccounted", "slot-held"}),
        (OurModel("no mark", (BY_LEADER, BY_SHARER), slots=2, marks=ForgetfulMarks), {"reaped-twice"}),
    ],
)
def test_a_defect_in_our_hand_off_is_found(model: OurModel, invariants: set[str]) -> None:
    """Without the compare-and-set, and without the mark, some schedule breaks what the hand-off promises."""
    report = explore(model)

    assert report.breach is not None
    assert report.breach.invariant in invariants


def test_a_breach_names_the_schedule_that_replays_it() -> None:
    """The plain search gives the shortest one: whoever steps through it by hand sees the same."""
    report = explore(TWO.mutated(kernel_defects.PlainStore), is_reduced=False)

    assert report.breach is not None
    assert set(report.breach.schedule) <= {"waker 1", "waker 2", "reaper", "exit of B"}
    assert len(report.breach.schedule) == 4


def test_the_command_says_how_much_there_was(capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m oomreaper.sim.explorer MODEL``: one line with states and schedules, exit status 0."""
    status = main(["founding: one victim exits"])

    assert status == 0
    assert "172 schedules" in capsys.readouterr().out
