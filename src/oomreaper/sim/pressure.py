"""Pressure stall information: how long somebody, and how long everybody, waited for memory. Pure.

``some`` counts while a task stands in the allocator's slow path, ``full`` while none that is not stalled is runnable.
Whether somebody is runnable is looked at when a stall begins or ends and when the totals are read, and taken to have
been so since the last such moment: between them the error is one stall's length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.engine import Engine


class Pressure:
    """The machine's memory pressure."""

    def __init__(self, engine: Engine, *, trigger_ns: int, window_ns: int) -> None:
        self._engine = engine
        self._trigger_ns = trigger_ns
        self._window_ns = window_ns
        self._some_ns = 0
        self._full_ns = 0
        self._seen_ns = engine.now_ns
        self._window_start_ns = engine.now_ns
        self._window_some_ns = 0
        self.stalled = 0
        self.on_trigger: list[Callable[[], None]] = []

    def enter(self) -> None:
        """A task begins to wait for memory."""
        self._turn()
        self.stalled += 1

    def leave(self) -> None:
        """It has got it, or gone."""
        self._turn()
        self.stalled -= 1

    def totals_us(self) -> tuple[int, int]:
        """``some`` and ``full`` since boot."""
        self._turn()
        return self._some_ns // 1000, self._full_ns // 1000

    def _turn(self) -> None:
        now_ns = self._engine.now_ns
        passed_ns, self._seen_ns = now_ns - self._seen_ns, now_ns
        if not self.stalled or not passed_ns:
            return
        self._some_ns += passed_ns
        if self._engine.runnable_count <= self.stalled:
            self._full_ns += passed_ns
        if now_ns - self._window_start_ns >= self._window_ns:
            self._window_start_ns, self._window_some_ns = now_ns, self._some_ns - passed_ns
        if self.on_trigger and self._some_ns - self._window_some_ns >= self._trigger_ns:
            self._window_start_ns, self._window_some_ns = now_ns, self._some_ns
            for callback in self.on_trigger:
                callback()
