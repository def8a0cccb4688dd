"""Pages: the machine's, and a group's limit on them. Who gets none tries again for ever. Pure.

Every page is free, page cache, or used for something by name; the sum is checked whenever one moves. A task that finds
too few goes the slow way: reclaim (clean page cache, then swap), then the killer, then a short sleep, and again: "too
small to fail" is the kernel's rule, and half of the lock-up that the founding commit is about. Tasks that were marked
as OOM victims may use a part of the reserve below the min watermark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.checks import Violation, require
from oomreaper.sim.engine import Signal
from oomreaper.sim.locks import Killed
from oomreaper.sim.memory import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.groups import MemoryGroup
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Area, Mm, SharedPages
    from oomreaper.sim.tasks import Thread


class Allocator:
    """All pages.

    Args:
        machine: Whose.
        kernel_pages: What the kernel itself takes, for good.
        cache_pages: Clean page cache, which can be had back.
    """

    def __init__(self, machine: Machine, *, kernel_pages: int = 0, cache_pages: int = 0) -> None:
        parameters = machine.parameters
        self._machine = machine
        self.total = parameters.memory_pages
        self.free = self.total - kernel_pages - cache_pages
        self.cache = cache_pages
        self.kernel = kernel_pages
        self.anon = 0
        self.shmem = 0
        self.hugetlb = 0
        self.mapped_file = 0  # a part of the cache that processes map: it cannot be had back while they do
        self.swap_total = self.swap_free = parameters.swap_pages
        self.min = self.total // parameters.min_part
        self.high = int(self.min * parameters.high_factor)
        self._reserve_floor = int(self.min * (1 - parameters.reserve_part))
        self._next_mm = 0
        self.shortage = Signal(
            "free memory", timeout_ns=parameters.congestion_ns, who=lambda: self.who_could_free(None)
        )

    # -- taking --------------------------------------------------------------------------------------------

    def allocate(self, thread: Thread, pages: int, group: MemoryGroup | None = None) -> Steps:
        """Take pages out of what is free; the caller says at once what for (``use``). May never come back.

        Raises:
            Killed: The group is full, its killer is user space, and a fatal signal came.
        """
        if group is not None:
            yield from self._charge(thread, pages, group)
        if self.free - pages >= self.min:
            self.free -= pages
            return
        yield from self._allocate_slowly(thread, pages)

    def use(self, mm: Mm, area: Area, pages: int) -> None:
        """What was taken is now this area's."""
        kind = area.kind
        area.resident += pages
        if kind is Kind.ANONYMOUS:
            self.anon += pages
            if mm.group is not None:
                mm.group.anon += pages
        elif kind is Kind.SHARED:
            assert area.shared is not None
            area.shared.resident += pages
            self.shmem += pages
        elif kind is Kind.HUGETLB:
            self.hugetlb += pages
        elif kind is Kind.PRIVATE_FILE:
            self.mapped_file += pages
        else:
            raise Violation("pages", f"{area} has no pages of its own")
        self.check()

    # -- giving back ---------------------------------------------------------------------------------------

    def release(self, mm: Mm, area: Area, pages: int) -> None:
        """Resident pages of an area are no longer its own."""
        require(0 <= pages <= area.resident, "pages-freed-twice", f"{pages} pages of {mm}, {area}")
        area.resident -= pages
        kind = area.kind
        if kind is Kind.ANONYMOUS:
            self.anon -= pages
            self.free += pages
            if mm.group is not None:
                mm.group.anon -= pages
                mm.group.uncharge(pages)
        elif kind is Kind.PRIVATE_FILE:
            self.mapped_file -= pages  # unmapped; it stays in the page cache, and charged until it is reclaimed
            self.cache += pages
            if mm.group is not None:
                mm.group.uncharge(pages)
        elif kind is Kind.HUGETLB:
            self.hugetlb -= pages
            self.free += pages
        # SHARED: unmapped; the pages stay until nobody maps them, see release_shared
        self._note_freed()

    def release_shared(self, mm: Mm, shared: SharedPages, pages: int) -> None:
        """Shared memory that nobody maps any more goes back."""
        require(0 <= pages <= shared.resident, "pages-freed-twice", f"{pages} shared pages, by {mm}")
        require(shared.users == 0, "shared-freed-early", f"{shared.users} still map what {mm} frees")
        shared.resident -= pages
        self.shmem -= pages
        self.free += pages
        if mm.group is not None:
            mm.group.uncharge(pages)
        self._note_freed()

    def release_swap(self, mm: Mm, area: Area, pages: int) -> None:
        """Swap entries are freed."""
        require(0 <= pages <= area.swapped, "swap-freed-twice", f"{pages} of {mm}, {area}")
        area.swapped -= pages
        self.swap_free += pages
        if mm.group is not None:
            mm.group.uncharge(pages)
        require(self.swap_free <= self.swap_total, "swap", "more swap is free than there is")

    def check(self) -> None:
        """Every page is somewhere, once."""
        known = self.free + self.cache + self.mapped_file + self.kernel + self.anon + self.shmem + self.hugetlb
        if known != self.total or self.free < 0:
            raise Violation("pages-conserved", f"{known} of {self.total} pages are known, {self.free} are free")

    # -- numbers -------------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """MemAvailable: what is free above the reserve, and half of the cache at least (si_mem_available)."""
        cache = self.cache - min(self.cache // 2, self.min)
        return max(0, self.free - self.high + cache)

    def who_could_free(self, group: MemoryGroup | None) -> Iterable[object]:
        """For a diagnosis: the tasks whose end would bring memory."""
        awaited = [process for process in self._machine.killer.awaited() if group is None or process.group is group]
        return [thread.actor for process in awaited for thread in process.threads if not thread.is_over]

    # -- inside --------------------------------------------------------------------------------------------

    def _note_freed(self) -> None:
        self.check()
        if self.shortage.sleepers and self.free > self.min:
            self.shortage.wake_all()

    def _floor(self, thread: Thread) -> int:
        return self._reserve_floor if thread.process.is_victim else self.min

    def _allocate_slowly(self, thread: Thread, pages: int) -> Steps:
        machine = self._machine
        pressure = machine.pressure
        pressure.enter()
        try:
            while True:
                yield
                if self.free - pages >= self._floor(thread):
                    break
                cost_ns = self.reclaim(pages)
                if cost_ns:
                    yield cost_ns
                    continue
                has_reason = yield from machine.killer.out_of_memory(thread, None)
                if has_reason:
                    continue
                yield self.shortage
            self.free -= pages
        finally:
            pressure.leave()

    def _charge(self, thread: Thread, pages: int, group: MemoryGroup) -> Steps:
        if group.has_room(pages):
            group.charged += pages
            return
        machine = self._machine
        machine.pressure.enter()
        try:
            while not group.has_room(pages):
                yield
                if thread.actor.is_doomed or thread.process.is_victim or thread.is_exiting:
                    break  # the dying are let through (charge forced)
                cost_ns = self.reclaim(pages, group)
                if cost_ns:
                    yield cost_ns
                elif group.has_killer:
                    has_reason = yield from machine.killer.out_of_memory(thread, group)
                    if not has_reason:
                        yield self.shortage
                else:
                    yield group.under_oom
                    if thread.actor.was_interrupted:
                        raise Killed
        finally:
            machine.pressure.leave()
        group.charged += pages

    def reclaim(self, pages: int, group: MemoryGroup | None = None) -> int:
        """Make some room: clean cache first (of the machine only), then swap out; what that took in ns, 0: none."""
        machine = self._machine
        if self.cache and group is None:
            taken = min(self.cache, max(pages, 32))
            self.cache -= taken
            self.free += taken
            self.check()
            return machine.parameters.step_ns
        if not self.swap_free:
            return 0
        address_spaces = machine.address_spaces
        for offset in range(len(address_spaces)):
            mm = address_spaces[(self._next_mm + offset) % len(address_spaces)]
            if (group is not None and mm.group is not group) or mm.is_torn_down:
                continue
            for area in mm.areas:
                if area.kind is Kind.ANONYMOUS and area.resident and not area.is_locked:
                    taken = min(area.resident, self.swap_free, max(pages, 32))
                    self._swap_out(mm, area, taken)
                    self._next_mm += offset + 1
                    return machine.parameters.ns_for(taken, machine.parameters.swap_ns_per_gib) or 1
        return 0

    def _swap_out(self, mm: Mm, area: Area, pages: int) -> None:
        area.resident -= pages
        area.swapped += pages
        self.anon -= pages
        self.free += pages
        self.swap_free -= pages
        if mm.group is not None:
            mm.group.anon -= pages
        self.check()
