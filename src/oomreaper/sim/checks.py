"""What must never be so in the model, and what is called at the transitions where it could come to be so.

A check costs O(1) at the transition that it concerns: no sweep over the machine at every step. The model itself always
checks its reference counts and the conservation of pages; what a killer or a scenario wants to be sure of hangs on
``Hooks``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Violation(Exception):  # noqa: N818 - it is no error of the program: it is what a simulation looks for
    """Something came to be so that must never be. ``invariant`` is its short name."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text


def require(truth: object, invariant: str, text: str) -> None:
    """Raise unless it is so."""
    if not truth:
        raise Violation(invariant, text)


class Hooks:
    """Lists of callables, each called at one kind of transition.

    ======== ============================ ==========================================================
    kill     process, sender              SIGKILL has been sent to it (sender None: unknown)
    exit     process                      its last thread has ended
    waited   process                      its parent has waited for it: its pid is free
    free     mm, area, pages, by          pages of an area go back to the allocator
    reap     mm, by                       somebody begins to reap an address space
    tear     mm, by                       its last user has gone: exit_mmap begins
    skip     mm, by                       MMF_OOM_SKIP is set
    drop     mm                           its last mm_count is gone
    slot     before, after                a killer's hand-off slot changes
    victim   process                      mark_oom_victim
    ======== ============================ ==========================================================
    """

    def __init__(self) -> None:
        self.kill: list[Callable[[Any, Any], None]] = []
        self.exit: list[Callable[[Any], None]] = []
        self.waited: list[Callable[[Any], None]] = []
        self.free: list[Callable[[Any, Any, int, Any], None]] = []
        self.reap: list[Callable[[Any, Any], None]] = []
        self.tear: list[Callable[[Any, Any], None]] = []
        self.skip: list[Callable[[Any, Any], None]] = []
        self.drop: list[Callable[[Any], None]] = []
        self.slot: list[Callable[[Any, Any], None]] = []
        self.victim: list[Callable[[Any], None]] = []
