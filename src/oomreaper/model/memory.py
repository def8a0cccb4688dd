"""Memory of one process, and of the place that is charged for it."""

from __future__ import annotations

from typing import NamedTuple


class VictimMemory(NamedTuple):
    """What one address space holds, in bytes; source: /proc/PID/task/TID/status.

    ``anon_bytes`` (RssAnon) and ``swap_bytes`` (VmSwap) are what the kernel can reap. ``file_bytes``
    (RssFile) and ``shmem_bytes`` (RssShmem) are not: they are page cache and shared memory, which
    belong to nobody in particular. ``page_table_bytes`` (VmPTE) goes when the process does.

    One address space is counted once, whatever the number of threads or processes that share it.
    """

    anon_bytes: int
    swap_bytes: int
    file_bytes: int
    shmem_bytes: int
    page_table_bytes: int

    @property
    def reapable_bytes(self) -> int:
        """Anonymous and swapped memory together: what a reap can give back."""
        return self.anon_bytes + self.swap_bytes


class ChargedMemory(NamedTuple):
    """What is charged to whoever pays for a victim's memory: it shows whether memory came back.

    Needed when the victim's own counters are gone (its address space is detached) and yet the memory
    may not be: somebody may pin it. All in bytes; None where this machine does not count it.

    ``machine_anon_bytes``: AnonPages of /proc/meminfo. ``machine_swap_bytes``: SwapTotal less SwapFree.
    ``memcg_directory`` and ``memcg_bytes``: the victim's own memory cgroup (None: the root, where the machine is
    charged) and the memory charged to it, with swap where the kernel counts that.
    ``orphan_bytes``: anonymous memory that is charged and that no process owns: a lower bound, None when it
    was not asked for, since it costs a look at every process.
    """

    machine_anon_bytes: int
    machine_swap_bytes: int
    memcg_directory: str | None
    memcg_bytes: int | None
    orphan_bytes: int | None = None
