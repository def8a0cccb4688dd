"""The kernel's sleeping locks, as far as they decide who waits for whom: a fair rwsem, and a mutex made of it. Pure.

Fair: whoever comes while somebody waits, waits as well, so that a queued writer stops all later readers (that is what
makes a blocked writer on mmap_lock stop a reaper). When the lock comes free, the first of the queue gets it; a reader
at the front takes all readers behind it up to the next writer along. A lock is handed over: whoever is woken holds it.

A killable wait ends with ``Killed`` when its sleeper gets a fatal signal; any other wait does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.checks import Violation, require
from oomreaper.sim.engine import Wait

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.sim.engine import Actor, Engine, Steps


class Killed(BaseException):
    """The task that runs must leave: a fatal signal ended its wait, or it is about to go back to user mode.

    No Exception, so that no code on its way mistakes it for a failed call.
    """


class LockWait(Wait):
    """Asleep in the queue of a lock."""

    __slots__ = ("is_writer", "lock")

    def __init__(self, lock: RwSem, *, is_writer: bool, is_killable: bool) -> None:
        super().__init__(f"{lock.name} ({'write' if is_writer else 'read'})", is_killable=is_killable)
        self.lock = lock
        self.is_writer = is_writer

    def park(self, engine: Engine, actor: Actor) -> None:  # noqa: ARG002 - the lock knows its engine
        """At the end of the queue."""
        self.lock.queue.append((actor, self.is_writer))

    def withdraw(self, actor: Actor) -> None:
        """Out of the queue; whoever stood behind may go on."""
        self.lock.queue.remove((actor, self.is_writer))
        self.lock.hand_over()

    def waits_for(self) -> Iterable[object]:
        """Who holds it; a reader that only waits behind a writer waits for that one, too."""
        lock = self.lock
        holders = list(lock.readers) if lock.writer is None else [lock.writer]
        return [*holders, *(actor for actor, is_writer in lock.queue if is_writer and not self.is_writer)]


class RwSem:
    """A readers-writer semaphore."""

    __slots__ = ("_engine", "_waits", "name", "queue", "readers", "writer")

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        self.writer: Actor | None = None
        self.readers: dict[Actor, int] = {}
        self.queue: list[tuple[Actor, bool]] = []
        self._waits: dict[tuple[bool, bool], LockWait] = {}

    def try_read(self, who: Actor) -> bool:
        """For reading, without waiting."""
        if self.writer is not None or self.queue:
            return False
        self.readers[who] = self.readers.get(who, 0) + 1
        return True

    def try_write(self, who: Actor) -> bool:
        """For writing, without waiting."""
        if self.writer is not None or self.readers or self.queue:
            return False
        self.writer = who
        return True

    def read(self, who: Actor, *, is_killable: bool = False) -> Steps:
        """For reading.

        Raises:
            Killed: A fatal signal came first, and the wait was a killable one.
        """
        if not self.try_read(who):
            yield self._wait(is_writer=False, is_killable=is_killable)
            if who.was_interrupted:
                raise Killed

    def write(self, who: Actor, *, is_killable: bool = False) -> Steps:
        """For writing.

        Raises:
            Killed: A fatal signal came first, and the wait was a killable one.
        """
        if not self.try_write(who):
            yield self._wait(is_writer=True, is_killable=is_killable)
            if who.was_interrupted:
                raise Killed

    def unlock_read(self, who: Actor) -> None:
        """Let go of it."""
        count = self.readers.get(who)
        if count is None:
            raise Violation("lock", f"{who} lets go of {self.name}, which it does not hold for reading")
        if count == 1:
            del self.readers[who]
        else:
            self.readers[who] = count - 1
        if self.queue and not self.readers:
            self.hand_over()

    def unlock_write(self, who: Actor) -> None:
        """Let go of it."""
        require(self.writer is who, "lock", f"{who} lets go of {self.name}, which it does not hold for writing")
        self.writer = None
        if self.queue:
            self.hand_over()

    def hand_over(self) -> None:
        """Give it to the front of the queue, as far as it is free."""
        queue = self.queue
        while queue and self.writer is None:
            actor, is_writer = queue[0]
            if is_writer:
                if self.readers:
                    return
                self.writer = actor
            else:
                self.readers[actor] = self.readers.get(actor, 0) + 1
            del queue[0]
            self._engine.wake(actor)

    def is_held(self) -> bool:
        """By anybody, in any way."""
        return self.writer is not None or bool(self.readers)

    def _wait(self, *, is_writer: bool, is_killable: bool) -> LockWait:
        wait = self._waits.get((is_writer, is_killable))
        if wait is None:
            wait = LockWait(self, is_writer=is_writer, is_killable=is_killable)
            self._waits[is_writer, is_killable] = wait
        return wait


class Mutex(RwSem):
    """A lock that one holds at a time: an inode's, the oom_lock."""

    __slots__ = ()

    def lock(self, who: Actor, *, is_killable: bool = False) -> Steps:
        """Take it."""
        yield from self.write(who, is_killable=is_killable)

    def try_lock(self, who: Actor) -> bool:
        """Take it, without waiting."""
        return self.try_write(who)

    def unlock(self, who: Actor) -> None:
        """Let go of it."""
        self.unlock_write(who)
