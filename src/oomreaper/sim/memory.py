"""Address spaces: areas of pages, the two reference counts, mmap_lock, and the flags of the reapers. Pure.

Pages are counted, not named. Whoever takes pages out of an area takes them from what is there in that step, so two that
free side by side share the work, as reaper and exit do in the kernel.

``users`` (mm_users) keeps the pages, ``count`` (mm_count) the structure. Whoever touches an address space whose last
count is gone, or counts one up that was at 0, has used it after its end: ``Violation``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from oomreaper.sim.checks import Violation, require
from oomreaper.sim.locks import RwSem

if TYPE_CHECKING:
    from oomreaper.sim.checks import Hooks
    from oomreaper.sim.engine import Engine
    from oomreaper.sim.groups import MemoryGroup


class Kind(enum.Enum):
    """What an area maps; see KERNEL.md section 1, rows 5 to 8."""

    ANONYMOUS = "anonymous"
    PRIVATE_FILE = "private file"
    SHARED = "shared"  # shared memory: nobody's own, freed with its last user
    HUGETLB = "hugetlb"
    PFNMAP = "pfnmap"  # of a device: no pages of ours

    @property
    def is_reapable(self) -> bool:
        """Whether today's kernel reaps it: all but VM_SHARED, VM_HUGETLB and VM_PFNMAP."""
        return self in (Kind.ANONYMOUS, Kind.PRIVATE_FILE)


class SharedPages:
    """Pages that several address spaces map; ``users`` of them."""

    __slots__ = ("resident", "users")

    def __init__(self) -> None:
        self.resident = 0
        self.users = 0


class Area:
    """One mapping. ``resident`` and ``swapped`` are pages; of SHARED ones see ``shared``.

    ``is_locked``: mlocked. ``notifier_blocks``: an mmu notifier would block (KVM, RDMA), so that a reap skips it and
    process_mrelease says EAGAIN.
    """

    __slots__ = ("is_locked", "kind", "name", "notifier_blocks", "resident", "shared", "swapped")

    def __init__(
        self, kind: Kind, name: str = "", *, is_locked: bool = False, shared: SharedPages | None = None
    ) -> None:
        self.kind = kind
        self.name = name or kind.value
        self.resident = 0
        self.swapped = 0
        self.is_locked = is_locked
        self.notifier_blocks = False
        self.shared = shared if shared is not None else SharedPages() if kind is Kind.SHARED else None

    @property
    def is_reapable(self) -> bool:
        """Whether today's kernel reaps it, mlocked or not (5.18)."""
        return self.kind.is_reapable

    def __repr__(self) -> str:
        return f"{self.name}: {self.resident} resident, {self.swapped} swapped"


class Mm:
    """An address space. Made with one user and the count that all its users have together."""

    def __init__(self, engine: Engine, hooks: Hooks, number: int, group: MemoryGroup | None = None) -> None:
        self.number = number
        self._hooks = hooks
        self.users = 1
        self.count = 1
        self.lock = RwSem(engine, f"mmap_lock of mm {number}")
        self.areas: list[Area] = []
        self.group = group  # who is charged
        self.is_unstable = False  # MMF_UNSTABLE: what was reaped is not to be faulted in again
        self.is_skipped = False  # MMF_OOM_SKIP
        self.is_queued = False  # MMF_OOM_REAP_QUEUED
        self.is_torn_down = False  # exit_mmap is done
        self.processes: list[object] = []  # thread groups that were started on it

    def __repr__(self) -> str:
        return f"mm {self.number}"

    # -- the counts ----------------------------------------------------------------------------------------

    def grab(self) -> None:
        """mmgrab: keep the structure."""
        require(self.count > 0, "mm-use-after-free", f"mmgrab of {self}, whose last mm_count is gone")
        self.count += 1

    def drop(self) -> None:
        """mmdrop."""
        require(self.count > 0, "mm-use-after-free", f"mmdrop of {self}, whose last mm_count is gone")
        self.count -= 1
        if self.count == 0:
            require(self.is_torn_down, "mm-freed-early", f"{self} is freed before its pages")
            for hook in self._hooks.drop:
                hook(self)

    def get(self) -> None:
        """mmget: keep the pages; only for who knows that there is a user."""
        self.touch()
        require(self.users > 0, "mm-users-revived", f"mmget of {self}, which has no user any more")
        self.users += 1

    def get_not_zero(self) -> bool:
        """mmget_not_zero: the same for who does not know; False: it is being torn down."""
        self.touch()
        if self.users == 0:
            return False
        self.users += 1
        return True

    def put(self) -> bool:
        """The counting part of mmput; True: that was the last user, and the caller must tear it down."""
        self.touch()
        require(self.users > 0, "mm-users-negative", f"mmput of {self}, which has no user")
        self.users -= 1
        return self.users == 0

    def touch(self) -> None:
        """Somebody looks at it: it must be there."""
        if self.count <= 0:
            raise Violation("mm-use-after-free", f"{self} is used after its last mm_count is gone")

    # -- what it holds -------------------------------------------------------------------------------------

    @property
    def anon_pages(self) -> int:
        """RssAnon."""
        return sum(area.resident for area in self.areas if area.kind is Kind.ANONYMOUS)

    @property
    def swap_pages(self) -> int:
        """VmSwap."""
        return sum(area.swapped for area in self.areas)

    @property
    def file_pages(self) -> int:
        """RssFile."""
        return sum(area.resident for area in self.areas if area.kind is Kind.PRIVATE_FILE)

    @property
    def shmem_pages(self) -> int:
        """RssShmem."""
        return sum(area.resident for area in self.areas if area.kind is Kind.SHARED)

    @property
    def reapable_pages(self) -> int:
        """What a reap could give back: anonymous and swapped."""
        return self.anon_pages + self.swap_pages

    def find(self, kind: Kind) -> Area:
        """The first area of a kind; made when there is none."""
        for area in self.areas:
            if area.kind is kind:
                return area
        return self.add(Area(kind))

    def add(self, area: Area) -> Area:
        """Map it."""
        self.touch()
        self.areas.append(area)
        if area.shared is not None:
            area.shared.users += 1
        return area
