"""Control groups, as far as they bear on a victim: memory limits, the v1 freezer, CPU quotas. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.engine import Signal, Sleep, Wait

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.sim.tasks import Process, Thread


class MemoryGroup:
    """A memory control group. ``limit`` and ``charged`` are pages; swap is charged, too, as memsw is.

    ``has_killer`` False is v1's memory.oom_control 1: whoever finds it full sleeps (killable) until there is room, and
    user space is to make it.
    """

    def __init__(self, path: str, limit: int | None, *, has_killer: bool = True) -> None:
        self.path = path
        self.limit = limit
        self.has_killer = has_killer
        self.charged = 0
        self.anon = 0
        self.members: list[Process] = []
        self.under_oom = Signal(f"room in {path}", is_killable=True, who=self._hogs)

    def has_room(self, pages: int) -> bool:
        """For so many more."""
        return self.limit is None or self.charged + pages <= self.limit

    def uncharge(self, pages: int) -> None:
        """Pages went."""
        self.charged -= pages
        if self.under_oom.sleepers:
            self.under_oom.wake_all()

    def _hogs(self) -> Iterable[object]:
        return [thread.actor for process in self.members for thread in process.threads if process.is_group_exit]


class Freezer:
    """A v1 freezer group: its tasks stop when they next go back to user mode, a killed one too."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_frozen = False
        self.members: list[Thread] = []
        self.hold = Signal(f"the refrigerator ({path})")

    def thaw(self) -> None:
        """Let all go on."""
        self.is_frozen = False
        self.hold.wake_all()


class QuotaWait(Sleep):
    """Throttled: until the next period."""

    __slots__ = ()


class CpuGroup:
    """A CPU quota (cpu.cfs_quota_us, cpu.max): who has used it up waits for the next period, on its way to user mode.

    So it is since Linux 6.18; an exit, which never goes back there, is not held once it has begun.
    """

    def __init__(self, path: str, *, quota_ns: int, period_ns: int = 100_000_000) -> None:
        self.path = path
        self.quota_ns = quota_ns
        self.period_ns = period_ns
        self._used_ns = 0
        self._period = 0

    def charge(self, used_ns: int, now_ns: int) -> None:
        """CPU time was used; what goes beyond the quota is a debt to the next periods."""
        self._turn(now_ns)
        self._used_ns += used_ns

    def wait_if_used_up(self, now_ns: int) -> Wait | None:
        """What to sleep on; None: there is time left."""
        self._turn(now_ns)
        if self.quota_ns <= 0 or self._used_ns < self.quota_ns:
            return None
        left_ns = (self._period + 1) * self.period_ns - now_ns
        return QuotaWait(left_ns, f"CPU time of {self.path}", is_interruptible=False)

    def _turn(self, now_ns: int) -> None:
        period = now_ns // self.period_ns
        if period != self._period:
            self._used_ns = max(0, self._used_ns - (period - self._period) * self.quota_ns)
            self._period = period
