"""The hand-off slot, queue and marks, under every interleaving of those who use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from oomreaper.model.identity import Identity
from oomreaper.reaper.handoff import Candidate, Entry, Handoff, Marks, Slot, finish
from tests.reaper.interleaving import Walk, walk

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable, Iterable

LEADER, SHARER, STRANGER = Identity(10, 1), Identity(11, 1), Identity(20, 1)
ONE_MM = frozenset({LEADER, SHARER})
BY_LEADER, BY_SHARER = Candidate(LEADER, ONE_MM), Candidate(SHARER, ONE_MM)
OTHER = Candidate(STRANGER, frozenset({STRANGER}))


class Scene:
    """Two wakers, one reaper, and a victim that may exit at any step."""

    def __init__(self, handoff: Handoff, offers: tuple[Candidate, Candidate]) -> None:
        self.handoff = handoff
        self.offers = offers
        self.entries: dict[str, Entry] = {}
        self.started: list[Candidate] = []
        self.served: list[Candidate] = []
        self.has_exited = False
        self.wakers_left = len(offers)
        self.before: tuple[Candidate | None, ...] = tuple(slot.content for slot in handoff.slots)

    def actors(self) -> dict[str, Generator[str, None, None]]:
        """The cast."""
        return {
            "waker 1": self.waker("waker 1", self.offers[0]),
            "waker 2": self.waker("waker 2", self.offers[1]),
            "reaper": self.reaper(),
            "exit": self.exiter(),
        }

    def waker(self, name: str, candidate: Candidate) -> Generator[str, None, None]:
        """Offer a victim, as the crew does."""
        entry = yield from self.handoff.offer(candidate)
        self.entries[name] = entry
        yield entry.value
        if entry is Entry.QUEUED:
            yield from self.fill()
        self.wakers_left -= 1

    def reaper(self) -> Generator[str, None, None]:
        """Serve what was started, until nobody can bring more."""
        while self.wakers_left or self.started:
            if not self.started:
                break
            candidate = self.started.pop(0)
            yield f"reaping {candidate.identity.pid}"
            self.served.append(candidate)
            yield from self.handoff.release(candidate)
            yield "released"
            yield from self.fill()

    def exiter(self) -> Generator[str, None, None]:
        """The victim's own exit; its mark may go once it has been served."""
        self.has_exited = True
        yield "exited"
        if any(LEADER in candidate.lives for candidate in self.served):
            self.handoff.marks.clear((LEADER,))

    def fill(self) -> Generator[str, None, None]:
        """Start whoever gets a slot."""
        while (candidate := (yield from self.handoff.take_next())) is not None:
            self.started.append(candidate)
            yield f"started {candidate.identity.pid}"

    def is_runnable(self, name: str) -> bool:
        """The reaper sleeps until somebody was started, or nobody can be any more."""
        return name != "reaper" or bool(self.started) or not self.wakers_left

    def key(self) -> Hashable:
        """All that the actors share."""
        return (
            tuple(slot.content for slot in self.handoff.slots),
            tuple(self.handoff.queue),
            tuple(self.handoff.marks._lives),
            tuple(self.started),
            tuple(self.served),
            self.wakers_left,
        )

    def check_step(self) -> None:
        """A slot goes from empty to a victim and back, and one address space is never in twice."""
        now = tuple(slot.content for slot in self.handoff.slots)
        for old, new in zip(self.before, now, strict=True):
            assert old is new or old is None or new is None, f"a slot went from {old} to {new}"
        self.before = now
        working = [candidate.lives for candidate in (*(slot for slot in now if slot), *self.served)]
        done_and_released = [candidate.lives for candidate in self.served]
        for lives in working:
            twice = sum(bool(lives & other) for other in done_and_released)
            assert twice <= 1, "one address space was reaped twice"

    def check_end(self) -> None:
        """Whoever was let in was served exactly once; all is empty."""
        let_in = [offer for name, offer in zip(("waker 1", "waker 2"), self.offers, strict=True) if self._is_in(name)]

        assert sorted(map(str, let_in)) == sorted(map(str, self.served))
        assert all(slot.content is None for slot in self.handoff.slots)
        assert not self.handoff.queue

    def _is_in(self, name: str) -> bool:
        return self.entries[name] is Entry.QUEUED


class StoringSlot(Slot):
    """A mutant: a plain store where the compare-and-set should be."""

    def compare_and_set(self, expected: Candidate | None, new: Candidate | None) -> bool:
        """Store, whoever is in it."""
        del expected
        self._content = new
        return True


class ForgetfulMarks(Marks):
    """A mutant: no mark that lets an address space in only once."""

    def test_and_set(self, lives: Iterable[Identity]) -> bool:
        """Let everybody in."""
        del lives
        return True


def _walk(
    offers: tuple[Candidate, Candidate], *, slots: int = 1, slot: type[Slot] = Slot, marks: type[Marks] = Marks
) -> Walk:
    def make() -> Scene:
        handoff = Handoff(slots=slots, queue_limit=4, mark_limit=64)
        handoff.slots = tuple(slot() for _ in range(slots))
        handoff.marks = marks(64)
        return Scene(handoff, offers)

    return walk(make)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("offers", [(BY_LEADER, OTHER), (BY_LEADER, BY_SHARER), (BY_LEADER, BY_LEADER)])
def test_every_interleaving_serves_each_victim_once(offers: tuple[Candidate, Candidate], slots: int) -> None:
    """Two wakers, one reaper and an exiting victim, in all orders: whoever is let in is served exactly once."""
    walked = _walk(offers, slots=slots)

    assert walked.ends > 0
    assert walked.states > 50


def test_the_walk_finds_a_plain_store() -> None:
    """Test of the test: without the compare-and-set some interleaving overwrites a victim in the slot."""
    with pytest.raises(AssertionError, match="schedule"):
        _walk((BY_LEADER, OTHER), slot=StoringSlot)


def test_the_walk_finds_a_missing_mark() -> None:
    """Test of the test: without the once-per-address-space mark some interleaving reaps it twice."""
    with pytest.raises(AssertionError, match="twice"):
        _walk((BY_LEADER, BY_SHARER), slots=2, marks=ForgetfulMarks)


def test_a_full_queue_refuses_and_leaves_no_mark() -> None:
    """A victim that found the queue full may be offered again."""
    handoff = Handoff(slots=1, queue_limit=1, mark_limit=64)

    assert finish(handoff.offer(BY_LEADER)) is Entry.QUEUED
    assert finish(handoff.offer(OTHER)) is Entry.FULL
    assert finish(handoff.take_next()) is BY_LEADER
    assert finish(handoff.offer(OTHER)) is Entry.QUEUED


def test_marks_are_bounded_and_forget_the_oldest() -> None:
    """However many lives are served, memory stays bounded."""
    marks = Marks(3)
    for pid in range(5, 10):
        assert marks.test_and_set([Identity(pid, 1)])

    assert len(marks) == 3
    assert Identity(5, 1) not in marks
    assert Identity(9, 1) in marks


def test_release_of_a_stranger_changes_nothing() -> None:
    """Only the victim in a slot can leave it."""
    handoff = Handoff(slots=1, queue_limit=4, mark_limit=64)
    finish(handoff.offer(BY_LEADER))
    finish(handoff.take_next())

    finish(handoff.release(OTHER))

    assert handoff.slots[0].content is BY_LEADER
