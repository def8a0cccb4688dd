"""The numbers of the modelled machine, each with where it is from. Sizes in bytes, times in ns."""

from __future__ import annotations

from typing import NamedTuple

MIB = 1 << 20
GIB = 1 << 30
MS = 1_000_000
SECOND = 1_000 * MS


class Parameters(NamedTuple):
    """One machine.

    ``free_ns_per_gib``: freeing 4 KiB pages takes 70 ms a GiB (measured 2026-11, Linux 6.18: 11 to 13 GiB/s).
    ``slice_pages``: how many pages are freed, faulted in or swapped in one atomic step; the kernel's own unit is a page
    table of 512 pages. A larger one makes a run shorter and hides interleavings within it.
    ``fault_ns_per_gib``: touching 4 KiB pages, 0.25 s a GiB (the order of what a memset takes with page faults).
    ``swap_ns_per_gib``: moving pages to swap, for a disk of 500 MB/s.
    ``min_part``: the min watermark as a part of memory (min_free_kbytes is 64 to 80 MiB on 16 to 24 GiB: 1/256).
    ``high_factor``: the high watermark as a multiple of min (vm.watermark_scale_factor and the min itself: 1.5).
    ``reserve_part``: how much of the min watermark an OOM victim may use: all of it before 2017 (TIF_MEMDIE is
    ALLOC_NO_WATERMARKS), half since (ALLOC_OOM).
    ``congestion_ns``: how long an allocator that got nowhere sleeps before it tries again (congestion_wait: HZ/50 in
    2016; schedule_timeout of a jiffy after an OOM kill).
    ``reap_attempts``, ``reap_sleep_ns``: MAX_OOM_REAP_RETRIES and schedule_timeout_idle(HZ/10) (the founding commit).
    ``reap_delay_ns``: OOM_REAPER_DELAY, 2*HZ (later kernels only).
    ``thread_exit_ns``: what do_exit takes besides the memory (0.3 to 1.5 ms after a reap, measured).
    ``is_exit_locked``: exit_mmap unmaps under mmap_lock for reading and takes it for writing afterwards (Linux 6.0);
    False: it takes no lock to unmap (2016).
    ``psi_trigger_ns``, ``psi_window_ns``: a pressure trigger that hints to the watcher.
    """

    memory_bytes: int = 4 * GIB
    swap_bytes: int = 0
    page_bytes: int = 4096
    cpus: int = 2
    hz: int = 250
    step_ns: int = 1_000
    slice_pages: int = 4096
    free_ns_per_gib: int = 70 * MS
    fault_ns_per_gib: int = 250 * MS
    swap_ns_per_gib: int = 2_000 * MS
    min_part: int = 256
    high_factor: float = 1.5
    reserve_part: float = 0.5
    congestion_ns: int = 20 * MS
    reap_attempts: int = 10
    reap_sleep_ns: int = 100 * MS
    reap_delay_ns: int = 2 * SECOND
    thread_exit_ns: int = 300_000
    is_exit_locked: bool = True
    psi_trigger_ns: int = 70 * MS
    psi_window_ns: int = 1 * SECOND

    @property
    def memory_pages(self) -> int:
        """All of it."""
        return self.memory_bytes // self.page_bytes

    @property
    def swap_pages(self) -> int:
        """All of it."""
        return self.swap_bytes // self.page_bytes

    def pages(self, mib: float) -> int:
        """So many MiB, in pages."""
        return int(mib * MIB) // self.page_bytes

    def ns_for(self, pages: int, ns_per_gib: int) -> int:
        """What work on so many pages takes."""
        return pages * self.page_bytes * ns_per_gib >> 30

    @property
    def ticks_ns(self) -> int:
        """USER_HZ is 100 everywhere: a clock tick of /proc."""
        return 10 * MS


PLAIN = Parameters()
