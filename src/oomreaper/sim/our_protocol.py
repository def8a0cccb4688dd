"""Our own hand-off (``reaper.handoff``), explored wholly: two who offer a victim, the reaper, one or two slots. Pure.

The real ``Handoff`` runs here, on a slot, marks and a queue that note who touches them; its operations yield between
their atomic steps.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from oomreaper.model.identity import Identity
from oomreaper.reaper.handoff import Candidate, Entry, Handoff, Marks, Slot
from oomreaper.sim.checks import Violation, require
from oomreaper.sim.explorer import Cell, Until

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable, Iterable

    from oomreaper.sim.explorer import Ledger

    Steps = Generator[Any, None, Any]


class NotedSlot(Slot):
    """The real slot; its rule is checked at each change."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        super().__init__()
        self._ledger = ledger
        self.name = name

    def compare_and_set(self, expected: Candidate | None, new: Candidate | None) -> bool:
        """As ever."""
        before = self.content
        self._ledger.note(self.name, is_write=before is expected)
        has_set = self.change(expected, new)
        after = self.content
        if before is not after and before is not None and after is not None:
            raise Violation("slot", f"{self.name} goes from {before.identity} to {after.identity}")
        return has_set

    def change(self, expected: Candidate | None, new: Candidate | None) -> bool:
        """What a mutant does otherwise."""
        return super().compare_and_set(expected, new)


class NotedMarks(Marks):
    """The real marks."""

    def __init__(self, ledger: Ledger, limit: int) -> None:
        super().__init__(limit)
        self._ledger = ledger

    def test_and_set(self, lives: Iterable[Identity]) -> bool:
        """As ever."""
        self._ledger.note("marks", is_write=True)
        return self.mark(lives)

    def mark(self, lives: Iterable[Identity]) -> bool:
        """What a mutant does otherwise."""
        return super().test_and_set(lives)

    def clear(self, lives: Iterable[Identity]) -> None:
        """As ever."""
        self._ledger.note("marks", is_write=True)
        super().clear(lives)


class NotedQueue(deque[Any]):
    """The real queue is a deque; this one notes who looks at it."""

    ledger: Ledger

    def _note(self, *, is_write: bool = False) -> None:
        self.ledger.note("queue", is_write=is_write)

    def __len__(self) -> int:
        self._note()
        return super().__len__()

    def __getitem__(self, index: Any) -> Any:
        self._note()
        return super().__getitem__(index)

    def __contains__(self, item: object) -> bool:
        self._note()
        return super().__contains__(item)

    def append(self, item: Any) -> None:
        """As ever."""
        self._note(is_write=True)
        super().append(item)

    def popleft(self) -> Any:
        """As ever."""
        self._note(is_write=True)
        return super().popleft()

    def remove(self, item: Any) -> None:
        """As ever."""
        self._note(is_write=True)
        super().remove(item)


class OurWorld:
    """One start of ``OurModel``: who offers, the reaper (the crew and its workers), and the victim's exit."""

    def __init__(self, model: OurModel, ledger: Ledger) -> None:
        self.handoff = handoff = Handoff(slots=model.slots, queue_limit=model.queue_limit, mark_limit=64)
        handoff.slots = tuple(model.slot(ledger, f"slot {number}") for number in range(model.slots))
        handoff.marks = model.marks(ledger, 64)
        handoff.queue = NotedQueue()
        handoff.queue.ledger = ledger
        self.started = Cell(ledger, "started", ())
        self.served = Cell(ledger, "served", ())
        self.offering = Cell(ledger, "offering", len(model.offers))
        self.entries: dict[str, Entry] = {}
        self.offers = {f"waker {number}": offer for number, offer in enumerate(model.offers, 1)}
        self.actors: dict[str, Steps] = {name: self._waker(name, offer) for name, offer in self.offers.items()}
        self.actors["reaper"] = self._reaper()
        self.daemons: frozenset[str] = frozenset()

    def _waker(self, name: str, candidate: Candidate) -> Steps:
        entry = yield from _silent(self.handoff.offer(candidate))
        self.entries[name] = entry
        yield
        if entry is Entry.QUEUED:
            yield from self._fill()
        self.offering.add(-1)

    def _reaper(self) -> Steps:
        while True:
            yield Until(lambda: bool(self.started.get()) or not self.offering.get())
            started = self.started.get()
            if not started:
                return
            candidate, self_left = started[0], started[1:]
            self.started.set(self_left)
            yield
            served = self.served.get()
            for other in served:
                require(
                    not other.lives & candidate.lives, "reaped-twice", f"{candidate.identity} was served as {other}"
                )
            self.served.set((*served, candidate))
            yield from _silent(self.handoff.release(candidate))
            yield
            yield from self._fill()

    def _fill(self) -> Steps:
        while (candidate := (yield from _silent(self.handoff.take_next()))) is not None:
            self.started.set((*self.started.get(), candidate))
            yield

    def key(self) -> Hashable:
        """All that is shared."""
        handoff = self.handoff
        return (
            tuple(slot.content for slot in handoff.slots),
            tuple(deque.__iter__(handoff.queue)),
            tuple(handoff.marks._lives),  # noqa: SLF001 - what is shared, wholly
            self.started.value,
            frozenset(self.served.value),
            self.offering.value,
            tuple(sorted((name, entry.value) for name, entry in self.entries.items())),
        )

    def check_end(self) -> None:
        """Whoever was let in was served once; nobody waits before an empty slot; nobody is in one."""
        let_in = sorted(str(self.offers[name]) for name, entry in self.entries.items() if entry is Entry.QUEUED)
        served = sorted(map(str, self.served.value))
        require(let_in == served, "unaccounted", f"let in: {let_in}; served: {served}")
        require(not list(deque.__iter__(self.handoff.queue)), "progress", "somebody waits before an empty slot")
        for slot in self.handoff.slots:
            require(slot.content is None, "slot-held", f"{slot.content} is in a slot, and was served")


class OurModel:
    """Our hand-off, offered ``offers``; a mutant has another slot or other marks."""

    def __init__(
        self,
        name: str,
        offers: tuple[Candidate, ...],
        *,
        slots: int = 1,
        queue_limit: int = 4,
        slot: type[NotedSlot] = NotedSlot,
        marks: type[NotedMarks] = NotedMarks,
    ) -> None:
        self.name = name
        self.offers = offers
        self.slots = slots
        self.queue_limit = queue_limit
        self.slot = slot
        self.marks = marks

    def build(self, ledger: Ledger) -> OurWorld:
        """A fresh one."""
        return OurWorld(self, ledger)


def _silent(operation: Generator[str, None, Any]) -> Steps:
    """The hand-off's operations yield words; a step is a step."""
    while True:
        try:
            next(operation)
        except StopIteration as stop:
            return stop.value
        yield


_LEADER, _SHARER, _STRANGER = Identity(10, 1), Identity(11, 1), Identity(20, 1)
_ONE_MM = frozenset({_LEADER, _SHARER})
BY_LEADER, BY_SHARER = Candidate(_LEADER, _ONE_MM), Candidate(_SHARER, _ONE_MM)
OTHER = Candidate(_STRANGER, frozenset({_STRANGER}))
