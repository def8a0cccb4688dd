"""A victim that cannot die, staged inside of a guest: the same victims, by the same code, as the tests stage.

``python3 -m lab.guest.stuck KIND MIB``: stage it, say ``ready culprits=PID[,PID]`` (whom a killer may take: those who
hold the memory, and not who holds them), and keep it so until the end of standard input. Whoever holds a victim lives
for 55 s (``tests.victims``): a scenario with one is shorter.

What the tests have no use for is made here of their parts: a victim that ``cpu.max`` starves, and one that is pinned on
a machine without v1 control groups.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.victims import stage
from tests.victims.program import holder
from tests.victims.staged import victim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.victims.staged import StagedVictim

_GROUP = Path("/sys/fs/cgroup/lab-starved")
# The least that the kernel takes: 1 ms of CPU in each second. A dying process frees some 5 MiB in it.
_CPU_MAX = "1000 1000000"


@contextlib.contextmanager
def _starved_by_cpu_max(*, size_bytes: int) -> Iterator[StagedVictim]:
    """It has taken its memory, and its group's CPU time is used up."""
    _GROUP.mkdir(exist_ok=True)
    with victim("idle", size_bytes=size_bytes, cgroup=_GROUP) as staged:
        (_GROUP / "cpu.max").write_text(_CPU_MAX)
        staged.on_release(lambda: (_GROUP / "cpu.max").write_text("max"))
        yield staged


@contextlib.contextmanager
def _pinned(*, size_bytes: int) -> Iterator[StagedVictim]:
    """Another process sleeps in a read of its memory, and keeps it whole beyond its death."""
    with victim("pin-target", size_bytes=size_bytes) as staged:
        facts = staged.helper.facts
        with holder("pin-remotely", staged.pid, facts["address"], facts["uffd"]) as reader:
            staged.on_release(reader.end)
            staged.wait_for_state("S")
            yield staged


@contextlib.contextmanager
def _mmap_lock_held(*, size_bytes: int) -> Iterator[StagedVictim]:
    with stage.mmap_lock_held(size_bytes=size_bytes) as (staged,):
        yield staged


KINDS: dict[str, Callable[..., AbstractContextManager[StagedVictim]]] = {
    "inode-lock": stage.inode_lock,
    "fuse": stage.fuse_read,
    "mmap-lock": _mmap_lock_held,
    "pinned": _pinned,
    "cpu-max": _starved_by_cpu_max,
    "parked-in-exit": stage.parked_in_exit,
}


def main(arguments: list[str]) -> int:
    """Stage one; the exit status."""
    kind, mib = arguments
    with KINDS[kind](size_bytes=int(mib) * stage.MIB) as staged:
        print(f"ready culprits={','.join(map(str, staged.pids))}", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
