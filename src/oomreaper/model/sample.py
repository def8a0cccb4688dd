"""What is measured: the memory of a scope, and of the processes in it, at one moment."""

from __future__ import annotations

import enum
from typing import NamedTuple

from oomreaper.model.identity import Identity


class ScopeSample(NamedTuple):
    """The memory of the machine, or of one control group, at ``monotonic_ns``. None: not told here.

    ``scope`` is MACHINE or the group's path, as /proc/PID/cgroup names it. ``available_bytes`` is what can be taken
    without swapping; 0 when tasks of a group already hang at its limit. ``total_bytes`` is MemTotal, or the group's
    limit. ``current_bytes`` is what is charged (groups only). ``shmem_bytes``: shared memory and tmpfs.
    ``psi_*_us`` and ``oom_kills`` count from boot, or since the group was made.
    """

    scope: str
    monotonic_ns: int
    total_bytes: int
    available_bytes: int
    swap_total_bytes: int = 0
    swap_free_bytes: int = 0
    current_bytes: int | None = None
    limit_bytes: int | None = None
    shmem_bytes: int | None = None
    zram_used_bytes: int | None = None
    psi_some_us: int | None = None
    psi_full_us: int | None = None
    oom_kills: int | None = None


class Wish(enum.StrEnum):
    """What the owner of a control group wishes for its members, by an extended attribute (systemd-oomd)."""

    AVOID = "avoid"  # user.oomd_avoid
    OMIT = "omit"  # user.oomd_omit


class Profile(NamedTuple):
    """Who a process is, beyond its numbers: bytes are hostile input. None: not told, or not ours to see.

    ``cmdline`` has its NULs turned into spaces and is cut off; it is None also when reading it would have blocked.
    ``cgroup`` is the path of its memory cgroup (in v2: of its only one). ``oom_group`` is the path of the outermost
    group around it that is to be killed as a whole (memory.oom.group). ``wish`` only where it may be trusted.
    """

    exe: bytes | None = None
    cmdline: bytes | None = None
    cgroup: str | None = None
    oom_group: str | None = None
    wish: Wish | None = None


class ProcessSample(NamedTuple):
    """One process as the ranking sees it. Sizes in bytes; ``growth_bytes`` is what it grew by in about 10 s.

    ``anon_bytes``, ``swap_bytes`` and ``page_table_bytes`` are what a kill gives back; ``shmem_bytes`` may be.
    ``profile`` is None until somebody has looked.
    """

    identity: Identity
    comm: bytes
    uid: int
    parent_pid: int
    process_group: int
    session: int
    is_kernel_thread: bool
    is_dead: bool
    oom_score_adj: int | None
    anon_bytes: int
    swap_bytes: int
    page_table_bytes: int
    shmem_bytes: int
    growth_bytes: int
    age_seconds: float
    profile: Profile | None = None

    @property
    def gain_bytes(self) -> int:
        """What a kill gives back for certain."""
        return self.anon_bytes + self.swap_bytes + self.page_table_bytes
