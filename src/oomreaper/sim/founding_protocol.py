"""The founding commit's hand-off, small enough to be explored wholly. Pure.

The steps are not written once more: ``killers.founding.OomReaper`` runs here; only what it stands on is small, and
notes who touches what. The cast is the waker (the end of oom_kill_process), a second waker, the reaper, an exit for
each victim (exit_mm, mmput, exit_mmap), and somebody who takes mmap_lock for writing.

What is left out: time (a pause is a step that may take for ever, so that every retry is tried early and late), and
sizes (two pages are enough for two to free side by side).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oomreaper.sim.checks import require
from oomreaper.sim.explorer import Cell, Until
from oomreaper.sim.killers.founding import OomReaper

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable

    from oomreaper.sim.explorer import Ledger

    Steps = Generator[Any, None, Any]

# Two attempts have all that ten have: one that fails and is repeated, and one that fails and is the last.
_ATTEMPTS = 2
_PAGES = 2


class SmallMm:
    """An address space: two counts, a lock, a few pages. It breaks the same invariants as ``memory.Mm``."""

    def __init__(self, ledger: Ledger, name: str, pages: int) -> None:
        self.name = name
        self.count = Cell(ledger, f"{name}.count", 1)
        self.users = Cell(ledger, f"{name}.users", 1)
        self.pages = Cell(ledger, f"{name}.pages", pages)
        self.lock = Cell(ledger, f"{name}.lock", 0)  # readers; -1: a writer
        self.tearer = Cell(ledger, f"{name}.tearer", "")  # who runs exit_mmap
        self.cells = (self.count, self.users, self.pages, self.lock, self.tearer)

    def __repr__(self) -> str:
        return self.name

    def grab(self) -> None:
        """mmgrab."""
        require(self.count.add(1) > 1, "mm-use-after-free", f"mmgrab of {self}, whose last mm_count is gone")

    def drop(self) -> None:
        """mmdrop."""
        left = self.count.add(-1)
        require(left >= 0, "mm-use-after-free", f"mmdrop of {self}, whose last mm_count is gone")
        if left == 0:
            require(self.tearer.get() == "done", "mm-freed-early", f"{self} is freed before its pages")

    def get(self) -> None:
        """mmget."""
        self.touch()
        require(self.users.add(1) > 1, "mm-users-revived", f"mmget of {self}, which has no user any more")

    def get_not_zero(self) -> bool:
        """mmget_not_zero."""
        self.touch()
        if self.users.get() == 0:
            return False
        self.users.add(1)
        return True

    def put(self) -> bool:
        """mmput's counting; True: that was the last user."""
        self.touch()
        left = self.users.add(-1)
        require(left >= 0, "mm-users-negative", f"mmput of {self}, which has no user")
        return left == 0

    def touch(self) -> None:
        """It must be there."""
        require(self.count.get() > 0, "mm-use-after-free", f"{self} is used after its last mm_count is gone")

    def free_page(self, by: str) -> None:
        """One page less; only one may do that once exit_mmap runs."""
        self.touch()
        tearer = self.tearer.get()
        require(
            tearer in ("", by), "reap-races-exit", f"{by} frees a page of {self}, which {tearer or 'nobody'} tears down"
        )
        require(self.pages.add(-1) >= 0, "pages-freed-twice", f"{by} frees a page of {self} that is not there")


def mmput(mm: SmallMm, by: str) -> Steps:
    """Drop a user; the last one runs exit_mmap and drops the count that all users had together."""
    if not mm.put():
        return
    yield
    mm.tearer.set(by)
    while mm.pages.get():
        mm.free_page(by)
        yield
    mm.tearer.set("done")
    yield
    mm.drop()


class SmallGround:
    """What ``OomReaper`` stands on here."""

    def __init__(self, ledger: Ledger) -> None:
        self.attempts = _ATTEMPTS
        self.slot = Cell(ledger, "mm_to_reap", None)
        self.woken = Cell(ledger, "oom_reaper_wait", False)

    def load(self) -> Any:
        """READ_ONCE."""
        return self.slot.get()

    def compare_and_set(self, expected: Any, new: Any) -> bool:
        """cmpxchg."""
        if self.slot.get() is not expected:
            return False
        self.store(new)
        return True

    def store(self, new: Any) -> None:
        """WRITE_ONCE; from NULL to an address space, and from that to NULL."""
        before = self.slot.get()
        require((before is None) != (new is None), "slot", f"mm_to_reap goes from {before} to {new}")
        self.slot.set(new)

    def rest(self) -> Until:
        """Asleep until woken; a wake-up before this step was seen in it, as the slot was read."""
        self.woken.set(False)
        return Until(self.woken.get)

    def wake(self) -> None:
        """wake_up."""
        self.woken.set(True)

    def pause(self) -> None:
        """Takes as long as it takes."""

    def try_lock(self, mm: SmallMm) -> bool:
        """down_read_trylock."""
        mm.touch()
        if mm.lock.get() < 0:
            return False
        mm.lock.add(1)
        return True

    def unlock(self, mm: SmallMm) -> None:
        """up_read."""
        mm.lock.add(-1)

    def put(self, mm: SmallMm) -> Steps:
        """mmput, here."""
        yield from mmput(mm, "reaper")

    def begin(self, mm: SmallMm) -> None:
        """Who is reaped is in the slot."""
        content = self.slot.get()
        require(content is mm, "slot-busy", f"{mm} is reaped while {content} is in the slot")

    def areas(self, mm: SmallMm) -> list[SmallMm]:
        """One."""
        return [mm]

    def has_pages(self, area: SmallMm) -> bool:
        """Any."""
        return bool(area.pages.get())

    def free_slice(self, mm: SmallMm, area: SmallMm) -> None:  # noqa: ARG002 - an area is its address space here
        """A page."""
        mm.free_page("reaper")

    def is_reapable(self, area: SmallMm) -> bool:  # noqa: ARG002 - all is anonymous
        """Yes."""
        return True


class FoundingWorld:
    """One start of ``FoundingModel``."""

    def __init__(self, model: FoundingModel, ledger: Ledger) -> None:
        self.ground = SmallGround(ledger)
        self.reaper = model.reaper(self.ground)
        self.mms = {name: SmallMm(ledger, name, model.pages) for name in dict.fromkeys(model.victims)}
        self.stuck = model.stuck
        self.actors: dict[str, Steps] = {}
        for number, name in enumerate(model.victims, 1):
            mm = self.mms[name]
            mm.count.value += 1  # oom_kill_process holds a reference of its own
            self.actors[f"waker {number}"] = self._waker(mm)
        self.actors["reaper"] = self.reaper.oom_reaper()
        for name, mm in self.mms.items():
            if name not in model.stuck:
                self.actors[f"exit of {name}"] = self._exit(mm)
            if name in model.locked:
                self.actors[f"mmap of {name}"] = self._writer(mm)
        self.daemons = frozenset({"reaper"})

    def _waker(self, mm: SmallMm) -> Steps:
        yield from self.reaper.wake_oom_reaper(mm)
        yield
        mm.drop()

    def _exit(self, mm: SmallMm) -> Steps:
        """exit_mm of the last thread, and what its mmput comes to."""
        yield Until(lambda: mm.lock.get() >= 0)
        yield from mmput(mm, f"exit of {mm}")

    def _writer(self, mm: SmallMm) -> Steps:
        """A thread of the victim, in mmap(2); it exits by itself before the exit that is modelled."""
        yield Until(lambda: mm.lock.get() == 0)
        mm.lock.set(-1)
        yield
        mm.lock.set(0)

    def key(self) -> Hashable:
        """All cells."""
        return (
            str(self.ground.slot.value),
            self.ground.woken.value,
            tuple(cell.value for mm in self.mms.values() for cell in mm.cells),
            tuple(map(str, self.reaper.refused)),
            tuple(map(str, self.reaper.given_up)),
        )

    def check_end(self) -> None:
        """The slot is free, no reference is left, and who could not exit was reaped or is a documented limit."""
        content = self.ground.slot.value
        require(content is None, "slot-held", f"{content} is in the slot, and the reaper sleeps")
        for mm in self.mms.values():
            left = (mm.count.value, mm.users.value)
            if mm.name not in self.stuck:
                require(left == (0, 0), "mm-leak", f"{mm} has {left[0]} references and {left[1]} users at the end")
                continue
            require(left == (1, 1), "mm-leak", f"{mm} has {left[0]} references and {left[1]} users beside its own")
            is_limit = mm in self.reaper.refused or mm in self.reaper.given_up
            require(is_limit or not mm.pages.value, "progress", f"{mm} was neither reaped nor refused nor given up")
            require(mm.lock.value == 0, "mm-leak", f"mmap_lock of {mm} is still held")


class FoundingModel:
    """The founding commit's hand-off.

    Args:
        name: Of the model.
        victims: For each waker, whom it wakes the reaper for.
        stuck: Who cannot exit.
        locked: Whose mmap_lock somebody takes for writing meanwhile.
        pages: What each holds.
        reaper: The steps; a mutant's are others.
    """

    def __init__(
        self,
        name: str,
        victims: tuple[str, ...],
        *,
        stuck: tuple[str, ...] = (),
        locked: tuple[str, ...] = (),
        pages: int = _PAGES,
        reaper: type[OomReaper] = OomReaper,
    ) -> None:
        self.name = name
        self.pages = pages
        self.victims = victims
        self.stuck = stuck
        self.locked = locked
        self.reaper = reaper

    def build(self, ledger: Ledger) -> FoundingWorld:
        """A fresh one."""
        return FoundingWorld(self, ledger)

    def mutated(self, reaper: type[OomReaper]) -> FoundingModel:
        """The same cast with other steps."""
        return FoundingModel(
            self.name, self.victims, stuck=self.stuck, locked=self.locked, pages=self.pages, reaper=reaper
        )
