"""Defects of the kernel's killer: the founding commit with one step wrong, a subclass each; see ``mutations``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oomreaper.sim.killers.founding import FoundingReaper, OomReaper
from oomreaper.sim.memory import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.killers.founding import Counted, Ground
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Thread


class PlainStore(OomReaper):
    """mm_to_reap = mm, whoever is in it."""

    def enter(self, mm: Counted) -> bool:
        """Store."""
        self.ground.store(mm)
        return True


class UpdateWhileBusy(OomReaper):
    """cmpxchg against what is there, and not against NULL."""

    def enter(self, mm: Counted) -> bool:
        """Whatever it holds."""
        return self.ground.compare_and_set(self.ground.load(), mm)


class ClearEarly(OomReaper):
    """The slot is cleared when the work begins."""

    def oom_reap_vmas(self, mm: Counted) -> Steps:
        """Clear, then work."""
        self.ground.store(None)
        yield
        yield from super().oom_reap_vmas(mm)

    def clear_slot(self) -> None:
        """It is already."""


class NoPin(OomReaper):
    """mm_count is not raised."""

    def pin(self, mm: Counted) -> None:
        """Nothing."""

    def unpin(self, mm: Counted) -> None:
        """Nothing."""


class LoserKeepsPin(OomReaper):
    """Whoever loses the cmpxchg keeps the reference."""

    def wake_oom_reaper(self, mm: Counted) -> Steps:
        """No mmdrop."""
        self.pin(mm)
        yield
        if self.enter(mm):
            self.ground.wake()
        else:
            self.refused.append(mm)


class DropTwice(OomReaper):
    """Waker and reaper both drop the one reference."""

    def unpin(self, mm: Counted) -> None:
        """Twice."""
        mm.drop()
        mm.drop()


class NoUser(OomReaper):
    """No atomic_inc_not_zero: the exit may go on beside the reap."""

    def take_user(self, mm: Counted) -> bool:  # noqa: ARG002 - that is the defect
        """As if."""
        return True

    def put_user(self, mm: Counted) -> Steps:  # noqa: ARG002 - nothing was taken
        """Nothing."""
        yield from ()


class PlainIncrement(OomReaper):
    """atomic_inc where atomic_inc_not_zero should be."""

    def take_user(self, mm: Any) -> bool:
        """Whatever it was."""
        mm.get()
        return True


class UserLeak(OomReaper):
    """No mmput after the reap."""

    def put_user(self, mm: Counted) -> Steps:  # noqa: ARG002 - that is the defect
        """Forgotten."""
        yield from ()


class BlockingLock(OomReaper):
    """down_read where down_read_trylock should be."""

    def take_lock(self, mm: Any) -> Steps:
        """Wait for it."""
        yield from mm.lock.read(self.ground.actor)  # type: ignore[attr-defined] # the machine's ground has one
        return True


class NoRetryLimit(OomReaper):
    """Until it gets the lock."""

    def may_try(self, attempts: int) -> bool:  # noqa: ARG002 - that is the defect
        """For ever."""
        return True


class OneAttempt(OomReaper):
    """No retry."""

    def may_try(self, attempts: int) -> bool:
        """Once."""
        return attempts < 1


class NoWakeUp(OomReaper):
    """The victim is in the slot, and nobody is woken."""

    def wake_oom_reaper(self, mm: Counted) -> Steps:
        """Only the slot."""
        self.pin(mm)
        yield
        self.enter(mm)


class _ReapsKind(OomReaper):
    kind: Kind

    def is_reapable(self, area: Any) -> bool:
        """One kind too many."""
        return super().is_reapable(area) or area.kind is self.kind


class ReapsShared(_ReapsKind):
    """VM_SHARED is not looked at."""

    kind = Kind.SHARED


class ReapsHugetlb(_ReapsKind):
    """VM_HUGETLB is not looked at."""

    kind = Kind.HUGETLB


class ReapsMlocked(OomReaper):
    """VM_LOCKED is not looked at."""

    def is_reapable(self, area: Any) -> bool:
        """By its kind only."""
        return bool(area.kind.is_reapable)


class NoUnlock(OomReaper):
    """No up_read."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        ground.unlock = _do_nothing  # type: ignore[method-assign,assignment] # the defect


def _do_nothing(_mm: Any) -> None:
    """Nothing."""


class NoExceptionForDumps(FoundingReaper):
    """A victim that dumps core is left to it: the text says that the system's health is more important."""

    def wake_reaper(self, thread: Thread, mm: Mm) -> Steps:
        """Not while it dumps."""
        if not thread.process.is_dumping:
            yield from super().wake_reaper(thread, mm)


class ReapsThoughShared(FoundingReaper):
    """can_oom_reap is not looked at."""

    def kill_sharers(self, victim: Any, mm: Mm) -> Steps:
        """True, whatever was found."""
        yield from super().kill_sharers(victim, mm)
        return True


class SharersLive(FoundingReaper):
    """Only the victim itself is killed."""

    def kill_sharers(self, victim: Any, mm: Mm) -> Steps:  # noqa: ARG002 - that is the defect
        """Nobody."""
        yield from ()
        return True


class MarkFirst(FoundingReaper):
    """TIF_MEMDIE before SIGKILL."""

    def kill_and_mark(self, thread: Thread, mm: Mm) -> None:
        """The wrong way round."""
        self.mark_oom_victim(thread)
        self.send_sigkill(thread.process, mm, is_sharer=False)


class DoesNotWait(FoundingReaper):
    """Victims on their way out do not hold off the next kill."""

    def is_waiting_for_victim(self, group: Any) -> bool:  # noqa: ARG002 - that is the defect
        """Never."""
        return False


class KillsProtected(FoundingReaper):
    """oom_score_adj -1000 is a number like others."""

    def badness(self, process: Any, group: Any) -> int:
        """By size only."""
        adj, process.oom_score_adj = process.oom_score_adj, 0
        try:
            return super().badness(process, group)
        finally:
            process.oom_score_adj = adj


class NoRecord(FoundingReaper):
    """The kill is not in the log."""

    def send_sigkill(self, process: Any, mm: Any, *, is_sharer: bool) -> None:  # noqa: ARG002 - that is the defect
        """Only the signal."""
        self.machine.kill(process)


def with_reaper(reaper: type[OomReaper]) -> Callable[[], FoundingReaper]:
    """The founding commit with another reaper."""

    def make() -> FoundingReaper:
        killer = FoundingReaper()
        killer.make_reaper = reaper  # type: ignore[method-assign] # a class is a function that makes one
        return killer

    return make
