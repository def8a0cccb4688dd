"""What the census remembers of one process, and what it grew by. Reads nothing.

Sizes come from statm in every look: ``resident - shared`` is the anonymous part, which a kill gives back. What statm
does not tell (swap, page tables, which of the shared pages are shared memory and which are page cache) comes from
status, less often, and is kept in between:

* page tables: what status last said, and never less than one page of 8-byte entries for 512 resident pages;
* shared memory: what status last said, and never more than all shared pages. Unknown counts as none: most shared pages
  are page cache, which nobody gets back by a kill.

Growth is told against what the process held 7.5 to 15 s ago, when it is looked at that often; otherwise against what
was last known of it. One that is younger grew by all it has.

``uid`` is the effective one, whose /proc/PID is, until status was read; from then on the real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.model.sample import ProcessSample

if TYPE_CHECKING:
    from oomreaper.linux.census.files import Files
    from oomreaper.linux.proc import Stat, Status
    from oomreaper.model.identity import Identity
    from oomreaper.model.sample import Profile

_SECOND_NS = 1_000_000_000
# Half of the longest span that growth is told over: two marks are kept, and the older is used.
GROWTH_STEP_NS = 7_500_000_000
# One page-table entry has 8 bytes and maps one page: a 512th of what is resident, in 4 KiB pages as in all others.
_BYTES_PER_PAGE_TABLE_BYTE = 512
# A sample's age may lag behind by this before the sample is made anew for it.
_AGE_LAG_NS = _SECOND_NS


class Entry:
    """One life. The sample that the ranking gets is made when it is asked for, and kept until something changes."""

    __slots__ = (
        "_age_ns",
        "_anon_bytes",
        "_known_page_table_bytes",
        "_known_shmem_bytes",
        "_mark_bytes",
        "_mark_ns",
        "_older_mark_bytes",
        "_stat",
        "_swap_bytes",
        "detailed_ns",
        "files",
        "gain_bytes",
        "identity",
        "is_in_front",
        "is_kernel_thread",
        "oom_score_adj",
        "page_table_bytes",
        "profile",
        "resident_bytes",
        "sample",
        "shared_bytes",
        "started_ns",
        "statm_line",
        "thread_id",
        "uid",
    )

    def __init__(self, stat: Stat, *, uid: int, started_ns: int, now_ns: int) -> None:
        self.identity: Identity = stat.identity
        self.uid = uid
        self.started_ns = started_ns
        """On the clock of ``now_ns``."""
        self.oom_score_adj: int | None = None
        self.profile: Profile | None = None
        self.files: Files | None = None
        self.thread_id: int | None = None
        """Whose files show the memory, when the leader has ended."""
        self.is_kernel_thread = stat.is_kernel_thread
        """Whether it has no memory of its own."""
        self.is_in_front = False
        self.detailed_ns: int | None = None
        """When stat, status and oom_score_adj were last read."""
        self.statm_line = b""
        """What its kept statm showed last, while it is in the front; empty: what is known came from elsewhere."""
        self.resident_bytes = 0
        self.shared_bytes = 0
        self.page_table_bytes = 0
        self.gain_bytes = 0
        """What a kill gives back for certain; kept, since 10,000 are compared in an election."""
        self._stat = stat
        self._anon_bytes = 0
        self._swap_bytes = 0
        self._known_page_table_bytes = 0
        self._known_shmem_bytes = 0
        is_young = now_ns - started_ns < GROWTH_STEP_NS * 2
        self._mark_ns: int | None = started_ns if is_young else None
        self._mark_bytes = 0
        self._older_mark_bytes = 0
        self._age_ns = now_ns - started_ns
        self.sample: ProcessSample | None = None
        """It, as the ranking sees it, of the moment when it was last read; None: to be made anew."""

    @property
    def pid(self) -> int:
        """The number it holds as long as it lives."""
        return self.identity.pid

    @property
    def is_led_by_zombie(self) -> bool:
        """Whether its leader has ended and other threads live on with the memory."""
        return self._stat.state == "Z" and self._stat.num_threads > 1

    @property
    def shmem_bytes(self) -> int:
        """Shared memory and tmpfs that it maps, as far as known."""
        return min(self._known_shmem_bytes, self.shared_bytes)

    @property
    def taken_bytes(self) -> int:
        """What it takes from the machine's available memory; its page cache, which stays available, left out.

        All shared pages of one known to hold shared memory count: between two readings of status they say which way
        it goes.
        """
        return self._anon_bytes + self.page_table_bytes + (self.shared_bytes if self._known_shmem_bytes else 0)

    def is_settled(self, now_ns: int) -> bool:
        """Whether nothing about it changes as long as its numbers do not: not its growth, not its age by much."""
        mark_ns = self._mark_ns
        return (
            mark_ns is not None
            and now_ns - mark_ns < GROWTH_STEP_NS
            and (now_ns - self.started_ns - self._age_ns < _AGE_LAG_NS)
        )

    def see_stat(self, stat: Stat) -> None:
        """Take over a stat line of the same life. Another name means another program: its profile is void."""
        before = self._stat
        if stat == before:
            return
        if stat.comm != before.comm:
            self.profile = None
        self._stat = stat
        self.sample = None

    def see_statm(self, line: bytes, page_bytes: int, now_ns: int) -> None:
        """Take over a statm line: size resident shared text lib data dt, in pages."""
        pages = line.split(None, 3)
        resident_bytes, shared_bytes = int(pages[1]) * page_bytes, int(pages[2]) * page_bytes
        self.resident_bytes = resident_bytes
        self.shared_bytes = shared_bytes
        self._anon_bytes = max(resident_bytes - shared_bytes, 0)
        self._count(now_ns)

    def see_status(self, status: Status, now_ns: int) -> None:
        """Take over what only status tells. ``memory`` is missing where nothing is mapped any more."""
        memory = status.memory
        if self.detailed_ns is None and self._mark_ns is not None:
            # What it has in swap was there before we saw it, and is no growth.
            swap_bytes = memory.swap_bytes if memory is not None else 0
            self._mark_bytes += swap_bytes
            self._older_mark_bytes += swap_bytes
        self.uid = status.uid
        self.detailed_ns = now_ns
        self.statm_line = b""
        if memory is not None:
            self._anon_bytes = memory.anon_bytes
            self.shared_bytes = memory.file_bytes + memory.shmem_bytes
            self.resident_bytes = self._anon_bytes + self.shared_bytes
        self._swap_bytes = memory.swap_bytes if memory is not None else 0
        self._known_page_table_bytes = memory.page_table_bytes if memory is not None else 0
        self._known_shmem_bytes = memory.shmem_bytes if memory is not None else 0
        self._count(now_ns)

    def see_oom_score_adj(self, oom_score_adj: int) -> None:
        """Take over the user's wish."""
        if oom_score_adj != self.oom_score_adj:
            self.oom_score_adj = oom_score_adj
            self.sample = None

    def see_profile(self, profile: Profile) -> None:
        """Take over who it is."""
        self.profile = profile
        self.sample = None

    def see_nothing_swapped(self) -> None:
        """The machine has nothing in swap, so neither has it."""
        if self._swap_bytes:
            self.gain_bytes -= self._swap_bytes
            self._swap_bytes = 0
            self.sample = None

    def make_sample(self) -> ProcessSample:
        """Make ``sample``, when it is None."""
        stat = self._stat
        held_bytes = self._anon_bytes + self._swap_bytes
        sample = ProcessSample(
            self.identity,
            stat.comm,
            self.uid,
            stat.ppid,
            stat.pgrp,
            stat.session,
            stat.is_kernel_thread,
            stat.state in {"Z", "X"} and stat.num_threads <= 1,
            self.oom_score_adj,
            self._anon_bytes,
            self._swap_bytes,
            self.page_table_bytes,
            self.shmem_bytes,
            max(held_bytes - self._older_mark_bytes, 0),
            max(self._age_ns, 0) / _SECOND_NS,
            self.profile,
        )
        self.sample = sample
        return sample

    def _count(self, now_ns: int) -> None:
        """The sums, the age, and the marks that growth is told against."""
        self.sample = None
        self._age_ns = now_ns - self.started_ns
        self.page_table_bytes = max(self._known_page_table_bytes, self.resident_bytes // _BYTES_PER_PAGE_TABLE_BYTE)
        self.gain_bytes = self._anon_bytes + self._swap_bytes + self.page_table_bytes
        if self._mark_ns is None:
            self._older_mark_bytes = self._anon_bytes + self._swap_bytes  # as old as the hills: it has not grown yet
        elif now_ns - self._mark_ns >= GROWTH_STEP_NS:
            self._older_mark_bytes = self._mark_bytes
        else:
            return
        self._mark_ns = now_ns
        self._mark_bytes = self._anon_bytes + self._swap_bytes
