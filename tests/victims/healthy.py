"""Victims that SIGKILL alone does free, sooner or later, and those whose other half has to die with them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

from tests.victims.program import run_directory
from tests.victims.staged import DEFAULT_SIZE_BYTES, StagedVictim, victim

if TYPE_CHECKING:
    from collections.abc import Iterator

MemoryKind = Literal["anon", "locked", "huge", "private-file", "shared", "memfd", "swapped"]

_SHARED_KINDS: frozenset[MemoryKind] = frozenset({"shared", "memfd"})


@contextlib.contextmanager
def plain(
    memory: MemoryKind = "anon",
    *,
    sharers: int = 0,
    user: int | None = None,
    size_bytes: int = DEFAULT_SIZE_BYTES,
) -> Iterator[StagedVictim]:
    """One thread, asleep, that SIGKILL ends at once.

    Kinds of memory: ``anon`` in 4 KiB pages; ``locked`` (mlock); ``huge`` (transparent huge pages);
    ``private-file`` (copied on write, so anonymous); ``swapped`` (as much as fits); ``shared`` and ``memfd`` (shmem,
    which no reaper frees: ``size_bytes`` of the victim is 0).

    With ``sharers``, so many other processes live in its address space (CLONE_VM without CLONE_THREAD), all asleep;
    ``release`` ends them, and the victim sleeps on. ``user`` is the id of the user to run as.
    """
    with victim(
        "sharers" if sharers else "idle",
        size_bytes=size_bytes,
        anon_bytes=0 if memory in _SHARED_KINDS else size_bytes,
        memory=memory,
        path=run_directory() if memory == "private-file" else None,
        count=sharers,
        user=user,
    ) as staged:
        if sharers:
            staged.on_release(staged.helper.close_stdin)
        staged.wait_for_state("S")
        yield staged


@contextlib.contextmanager
def many_threads(count: int = 2000, *, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """A process of ``count`` sleeping threads and its leader: each has to be woken to die."""
    with victim("threads", size_bytes=size_bytes, count=count) as staged:
        staged.wait_for_state("S")
        yield staged


@contextlib.contextmanager
def zombie_leader(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """The first thread has left, the second sleeps: /proc/PID shows a zombie without memory that holds all of it."""
    with victim("zombie-leader", size_bytes=size_bytes) as staged:
        staged.wait_for_state("Z")
        yield staged


@contextlib.contextmanager
def vfork_parent(*, size_bytes: int = DEFAULT_SIZE_BYTES) -> Iterator[StagedVictim]:
    """A parent that waits in vfork() for a child in its memory that neither execs nor ends until ``release``."""
    with victim("vfork-parent", size_bytes=size_bytes) as staged:
        staged.on_release(staged.helper.close_stdin)
        staged.wait_for_state("D")
        yield staged
