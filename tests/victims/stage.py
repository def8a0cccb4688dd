"""The door: every victim that can be staged, and what goes with them.

Each is a context manager that yields a ``StagedVictim`` (``mmap_lock_held`` a tuple of them) in the state that it
names, and takes everything down again at the end of the block, also when the test fails or is interrupted::

    with stage.inode_lock(size_bytes=64 * stage.MIB) as victim:
        victim.kill()
        assert not victim.is_gone(timeout_s=0.3)

They are plain Python: a bench uses them as a test does. They want a C compiler, Linux, and what
``tests/requirements.py`` names for each.

Whoever stages a victim from a thread must keep that thread alive meanwhile: PR_SET_PDEATHSIG goes by the thread
that started a process. And a process forked while a victim is staged must end before it: it has inherited the
pipes by which the helpers learn of our end.
"""

from __future__ import annotations

from tests.victims.healthy import MemoryKind, many_threads, plain, vfork_parent, zombie_leader
from tests.victims.processes import wait_until
from tests.victims.program import MIB, StageError, mrelease_in_child
from tests.victims.staged import DEFAULT_SIZE_BYTES, NamespacedVictim, StagedVictim
from tests.victims.stuck import (
    core_dump_to_frozen_filesystem,
    core_dump_to_pipe,
    frozen_cgroup_v1,
    frozen_cgroup_v2,
    frozen_write,
    fuse_read,
    init_shares_memory,
    inode_lock,
    mmap_lock_held,
    parked_in_exit,
    pinned_by_remote_read,
    starved_by_busy_loops,
    starved_by_fifo,
    zombie_leader_stuck,
)
from tests.victims.surroundings import FrozenFilesystem, frozen_filesystem, small_swap

__all__ = [
    "DEFAULT_SIZE_BYTES",
    "MIB",
    "FrozenFilesystem",
    "MemoryKind",
    "NamespacedVictim",
    "StageError",
    "StagedVictim",
    "core_dump_to_frozen_filesystem",
    "core_dump_to_pipe",
    "frozen_cgroup_v1",
    "frozen_cgroup_v2",
    "frozen_filesystem",
    "frozen_write",
    "fuse_read",
    "init_shares_memory",
    "inode_lock",
    "many_threads",
    "mmap_lock_held",
    "mrelease_in_child",
    "parked_in_exit",
    "pinned_by_remote_read",
    "plain",
    "small_swap",
    "starved_by_busy_loops",
    "starved_by_fifo",
    "vfork_parent",
    "wait_until",
    "zombie_leader",
    "zombie_leader_stuck",
]
