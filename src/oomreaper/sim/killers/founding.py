"""The founding commit: the OOM killer with a reaper (Linux aac453635549, March 2016), as it was. Pure.

Its text is the specification, and each method says which of its sentences it renders. The parts:

* ``OomReaper``: the slot, the waker's side and the kernel thread. It stands on a small seam, ``Ground``, so that the
  same steps run on the modelled machine and, one by one in all orders, under ``explorer``.
* ``FoundingReaper``: the OOM killer of before, which now also wakes that thread.

What it has not, since it came later: a queue (the second victim is never reaped), MMF_OOM_SKIP (the killer waits for
the victim's exit all the same), MMF_UNSTABLE, reaping of mlocked memory. The "one notable exception" of its text, the
core dump, is one to the assumption that nobody needs the memory: a victim that dumps is reaped and its core is
incomplete, which is "considered a reasonable constrain". What must change together: a step that is split here wants
its mutant in ``mutants``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from oomreaper.sim.engine import Rest, Sleep
from oomreaper.sim.killers.oom_killer import OomKiller

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.sim.engine import Actor, Steps
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Area, Mm
    from oomreaper.sim.tasks import Thread


class Counted(Protocol):
    """What the reaper asks of an address space."""

    def grab(self) -> None:
        """mm_count up."""

    def drop(self) -> None:
        """mm_count down."""

    def get_not_zero(self) -> bool:
        """mm_users up, unless it is 0."""


class Ground(Protocol):
    """What the reaper stands on. Address spaces and areas are opaque here."""

    attempts: int

    def load(self) -> Any:
        """READ_ONCE(mm_to_reap)."""

    def compare_and_set(self, expected: Any, new: Any) -> bool:
        """cmpxchg(&mm_to_reap, expected, new): whether it did."""

    def store(self, new: Any) -> None:
        """WRITE_ONCE(mm_to_reap, new)."""

    def rest(self) -> Any:
        """What to sleep on until ``wake``."""

    def wake(self) -> None:
        """wake_up(&oom_reaper_wait)."""

    def pause(self) -> Any:
        """schedule_timeout_idle(HZ/10)."""

    def try_lock(self, mm: Any) -> bool:
        """down_read_trylock(&mm->mmap_sem)."""

    def unlock(self, mm: Any) -> None:
        """up_read(&mm->mmap_sem)."""

    def put(self, mm: Any) -> Steps:
        """mmput: who drops the last user tears down."""

    def begin(self, mm: Any) -> None:
        """The reap of an address space begins (for invariants)."""

    def areas(self, mm: Any) -> Iterable[Any]:
        """Its mappings, from below."""

    def has_pages(self, area: Any) -> bool:
        """Whether there is anything left in it."""

    def free_slice(self, mm: Any, area: Any) -> Any:
        """Unmap a slice of it; what that costs."""

    def is_reapable(self, area: Any) -> bool:
        """Whether it may be reaped at all."""


class OomReaper:
    """The slot, its two sides, and the work between."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.refused: list[Any] = []  # address spaces that found the slot taken: never reaped
        self.reaped: list[Any] = []
        self.given_up: list[Any] = []

    # -- the waker's side ----------------------------------------------------------------------------------

    def wake_oom_reaper(self, mm: Counted) -> Steps:
        """Text: "wake_oom_reaper updates mm_to_reap with cmpxchg to guarantee only NULL->mm transition"."""
        self.pin(mm)
        yield
        if self.enter(mm):
            yield
            self.ground.wake()
            return
        self.refused.append(mm)
        yield
        self.unpin(mm)

    def pin(self, mm: Counted) -> None:
        """Text: "mm_struct is pinned by mm_count to allow parallel exit_mmap"; the tear-down need not wait for us."""
        mm.grab()

    def unpin(self, mm: Counted) -> None:
        """The loser of the cmpxchg, and the reaper that is done, drop that count."""
        mm.drop()

    def enter(self, mm: Counted) -> bool:
        """Text: "only a single mm_struct can be reaped at the time"; whoever comes second is turned away, for good."""
        return self.ground.compare_and_set(None, mm)

    # -- the reaper's side ---------------------------------------------------------------------------------

    def oom_reaper(self) -> Steps:
        """Text: "a specialized kernel thread (oom_reaper)", since of workqueues "all the workers might be busy"."""
        while True:
            mm = self.ground.load()
            if mm is None:
                yield self.ground.rest()
                continue
            yield
            yield from self.oom_reap_vmas(mm)
            yield
            self.clear_slot()
            yield

    def clear_slot(self) -> None:
        """Text: "oom_reaper clear this atomically once it is done"; until then it "blocks any updates"."""
        self.ground.store(None)

    def oom_reap_vmas(self, mm: Counted) -> Steps:
        """Text: "we are using only a trylock and retry 10 times with a short sleep in between"."""
        attempts = 0
        while self.may_try(attempts):
            attempts += 1
            if (yield from self.try_reap_vmas(mm)):
                self.reaped.append(mm)
                break
            yield self.ground.pause()
        else:
            self.given_up.append(mm)
        self.unpin(mm)

    def may_try(self, attempts: int) -> bool:
        """Ten times."""
        return attempts < self.ground.attempts

    def try_reap_vmas(self, mm: Counted) -> Steps:
        """One attempt (__oom_reap_vmas); False: the lock was taken."""
        if not self.take_user(mm):
            return True
        yield
        if not (yield from self.take_lock(mm)):
            yield from self.put_user(mm)
            return False
        yield
        yield from self.reap(mm)
        self.ground.unlock(mm)
        yield
        yield from self.put_user(mm)
        return True

    def take_user(self, mm: Counted) -> bool:
        """Text: "a race is detected by atomic_inc_not_zero(mm_users)"; False: the exit was quicker, no work is left."""
        return mm.get_not_zero()

    def put_user(self, mm: Counted) -> Steps:
        """mmput, synchronous: if the victim has let go meanwhile, it is this thread that tears down."""
        yield from self.ground.put(mm)

    def take_lock(self, mm: Counted) -> Steps:
        """Text: "oom_reaper has to take mmap_sem on the target task for reading"; it never waits for it."""
        yield from ()
        return self.ground.try_lock(mm)

    def reap(self, mm: Counted) -> Steps:
        """Text: "preemptively reaping the anonymous or swapped out memory"; the victim may be dumping core."""
        ground = self.ground
        ground.begin(mm)
        for area in ground.areas(mm):
            if not self.is_reapable(area):
                continue
            while ground.has_pages(area):
                yield ground.free_slice(mm, area)

    def is_reapable(self, area: Any) -> bool:
        """No hugetlb, no shared or device mapping, and nothing mlocked ("require explicit munlocking", in its code)."""
        return self.ground.is_reapable(area)


class MachineGround:
    """The modelled machine under the reaper."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._content: Mm | None = None
        self._rest = Rest("a victim to reap")
        self.attempts = machine.parameters.reap_attempts
        self.actor: Actor  # the kernel thread's

    @property
    def content(self) -> Mm | None:
        """mm_to_reap, looked at from outside."""
        return self._content

    def load(self) -> Mm | None:
        """mm_to_reap."""
        return self._content

    def compare_and_set(self, expected: Mm | None, new: Mm | None) -> bool:
        """If it holds ``expected``."""
        if self._content is not expected:
            return False
        self.store(new)
        return True

    def store(self, new: Mm | None) -> None:
        """Whoever is in it."""
        before, self._content = self._content, new
        self._machine.engine.note(f"mm_to_reap: {before} -> {new}")
        for hook in self._machine.hooks.slot:
            hook(before, new)

    def rest(self) -> Rest:
        """wait_event_freezable."""
        return self._rest

    def wake(self) -> None:
        """The thread looks at the slot."""
        self._rest.wake_all()

    def pause(self) -> Sleep:
        """A short sleep; no signal ends it."""
        return Sleep(self._machine.parameters.reap_sleep_ns, "the next attempt", is_interruptible=False)

    def try_lock(self, mm: Mm) -> bool:
        """For reading."""
        mm.touch()
        return mm.lock.try_read(self.actor)

    def unlock(self, mm: Mm) -> None:
        """Let go."""
        mm.lock.unlock_read(self.actor)

    def put(self, mm: Mm) -> Steps:
        """mmput."""
        yield from self._machine.mmput(mm, self.actor)

    def begin(self, mm: Mm) -> None:
        """Tell who wants to know."""
        for hook in self._machine.hooks.reap:
            hook(mm, self.actor)

    def areas(self, mm: Mm) -> list[Area]:
        """The list of mappings."""
        mm.touch()
        return mm.areas

    def has_pages(self, area: Area) -> bool:
        """Resident or swapped."""
        return bool(area.resident or area.swapped)

    def free_slice(self, mm: Mm, area: Area) -> int:
        """Its cost in ns."""
        mm.touch()
        return self._machine.free_slice(mm, area, self.actor)

    def is_reapable(self, area: Area) -> bool:
        """vma_is_anonymous or not VM_SHARED; not VM_LOCKED."""
        return area.kind.is_reapable and not area.is_locked


class FoundingReaper(OomKiller):
    """The OOM killer, and "a specialized kernel thread (oom_reaper) which tries to reclaim additional memory"."""

    name = "founding"

    def attach(self, machine: Machine) -> None:
        """oom_init: start the thread."""
        super().attach(machine)
        self.ground = MachineGround(machine)
        self.reaper = self.make_reaper(self.ground)
        self.unreapable: list[Mm] = []  # somebody unkillable shares them: can_oom_reap was False
        machine.add_kernel_thread("oom_reaper", self._run)

    def make_reaper(self, ground: Ground) -> OomReaper:
        """Whose steps they are."""
        return OomReaper(ground)

    def _run(self, machine: Machine, thread: Thread) -> Steps:  # noqa: ARG002 - a program's signature
        self.ground.actor = thread.actor
        yield from self.reaper.oom_reaper()

    def kill_sharers(self, victim: Any, mm: Mm) -> Steps:
        """As before; one who cannot be killed keeps the reaper away: "such a memory won't be needed" is not so then."""
        can_reap = yield from super().kill_sharers(victim, mm)
        if not can_reap:
            self.unreapable.append(mm)
        return can_reap

    def wake_reaper(self, thread: Thread, mm: Mm) -> Steps:  # noqa: ARG002 - the later design uses it
        """Text: "The API between oom killer and oom reaper is quite trivial"."""
        yield from self.reaper.wake_oom_reaper(mm)
