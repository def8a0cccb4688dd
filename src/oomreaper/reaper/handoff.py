"""The hand-off: how a victim reaches a reaper, after the founding commit (Linux aac453635549). Pure.

The founding commit's interface is "quite trivial": the waker moves the slot from empty to a victim with a
compare-and-set and never otherwise; the reaper clears it when the work is done. A victim that found the slot taken
was never reaped. Two things came later and are here too: a queue before the slot (Linux 03049269de43),
bounded, and a mark on each address space that lets it enter once (MMF_OOM_REAP_QUEUED).

Rules:

1. A slot goes from empty to a victim (compare-and-set) and from that victim to empty; never from one to another.
2. An address space enters once in its life, whoever names it and by whichever of its pids.
3. What has entered is served exactly once; what cannot enter is told so at once (full, or already in).
4. The queue is the only way into a slot, and whoever adds to it or clears a slot looks at it again afterwards:
   so nobody waits before an empty slot.

Every operation yields between its atomic steps. In production it is run through in one go (``finish``); the tests
interleave several of them at every yield, in all orders.

The key of an address space is the set of all the lives (pid and start time) that share it: two sets that meet
are one address space.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from oomreaper.model.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

T = TypeVar("T")


class Candidate(NamedTuple):
    """What is handed over: a victim's own life, and all lives on the same address space (its own included)."""

    identity: Identity
    lives: frozenset[Identity]


class Entry(enum.Enum):
    """What became of an offer."""

    QUEUED = "queued"
    ALREADY_IN = "already in"  # this address space has entered before
    FULL = "full"


class Slot:
    """One cell that holds a victim or nothing, changed by compare-and-set only."""

    __slots__ = ("_content",)

    def __init__(self) -> None:
        self._content: Candidate | None = None

    @property
    def content(self) -> Candidate | None:
        """Who is in it now."""
        return self._content

    def compare_and_set(self, expected: Candidate | None, new: Candidate | None) -> bool:
        """Atomically: if the slot holds ``expected``, let it hold ``new``; say whether it did."""
        if self._content is not expected:
            return False
        self._content = new
        return True


class Marks:
    """The lives whose address space has entered; bounded, oldest forgotten first when they must be."""

    __slots__ = ("_limit", "_lives")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lives: dict[Identity, None] = {}  # a dict keeps the order in which they came

    def test_and_set(self, lives: Iterable[Identity]) -> bool:
        """Atomically: if none of ``lives`` is marked, mark them all; say whether it did."""
        lives = tuple(lives)
        if any(life in self._lives for life in lives):
            return False
        self._lives.update(dict.fromkeys(lives))
        while len(self._lives) > self._limit:
            del self._lives[next(iter(self._lives))]
        return True

    def clear(self, lives: Iterable[Identity]) -> None:
        """Forget lives that are over, or that could not enter after all."""
        for life in lives:
            self._lives.pop(life, None)

    def __contains__(self, life: Identity) -> bool:
        return life in self._lives

    def __len__(self) -> int:
        return len(self._lives)


class Handoff:
    """Slots, the queue before them, and the marks.

    Args:
        slots: How many victims can be worked on at a time; 1 is the founding commit's way.
        queue_limit: How many may wait. One that finds the queue full is told so, and may be offered again.
        mark_limit: How many lives are remembered as having entered.
    """

    def __init__(self, *, slots: int, queue_limit: int, mark_limit: int) -> None:
        self.slots = tuple(Slot() for _ in range(slots))
        self.queue: deque[Candidate] = deque()
        self.queue_limit = queue_limit
        self.marks = Marks(mark_limit)

    def offer(self, candidate: Candidate) -> Generator[str, None, Entry]:
        """Let a victim in, to wait in the queue. Whoever offers must call ``take_next`` afterwards."""
        if not self.marks.test_and_set(candidate.lives):
            return Entry.ALREADY_IN
        yield "marked"
        if len(self.queue) >= self.queue_limit:
            self.marks.clear(candidate.lives)
            return Entry.FULL
        self.queue.append(candidate)
        return Entry.QUEUED

    def take_next(self) -> Generator[str, None, Candidate | None]:
        """Move the oldest that waits into a free slot; None when nobody waits or no slot is free.

        The caller must see to the victim it gets, and call again until it gets None.
        """
        for slot in self.slots:
            if not self.queue:
                return None
            candidate = self.queue[0]
            yield "looked at the queue"
            if slot.compare_and_set(None, candidate):
                if self.queue and self.queue[0] is candidate:
                    self.queue.popleft()
                    return candidate
                slot.compare_and_set(candidate, None)  # somebody else took it in the meantime: look again
                return (yield from self.take_next())
            yield "slot taken"
        return None

    def release(self, candidate: Candidate) -> Generator[str, None, None]:
        """The work on this victim is done: clear its slot, or its place in the queue. Then call ``take_next``."""
        for slot in self.slots:
            if slot.compare_and_set(candidate, None):
                return
            yield "not its slot"
        if candidate in self.queue:
            self.queue.remove(candidate)


def finish(operation: Generator[str, None, T]) -> T:
    """Run an operation through all its steps, nothing between."""
    while True:
        try:
            next(operation)
        except StopIteration as stop:
            result: T = stop.value
            return result
