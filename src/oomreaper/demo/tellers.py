"""What the demo prints: ``Screen`` for people, ``JsonLines`` for programs. Both are ``acts.Listener``.

The lines of JSON, each with the name of its ``event``. ``act`` is "exit" or "lock"; ``at_ms`` counts from the begin
of the act:

========  ================================================================================================
size      size_bytes, wanted_bytes, why_less: what each victim gets
begin     act, at_ms, pid, title
sample    act, at_ms, anon_bytes: anonymous and swapped memory that the victim holds
killed    act, at_ms, state, wchan: SIGKILL was sent, and this is where the victim stood then
reaping   act, held_bytes: 1 s after SIGKILL
outcome   act, at_ms, and the record of ``oomreaper reap``
verdict   act, size_bytes, held_bytes (before the reap), left_bytes (after it), is_shown
released  act, at_ms, ended_after_ms: the victim was let go, and ended (null: it did not)
skipped   act, reason: this machine does not let it be shown
========  ================================================================================================
"""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Protocol, TextIO

from oomreaper.demo import timeline
from oomreaper.demo.acts import HOLD_NS, Listener
from oomreaper.demo.bounds import MIB

if TYPE_CHECKING:
    from oomreaper.demo.acts import Moment, Performance, State, Trap
    from oomreaper.demo.bounds import Size
    from oomreaper.model.outcome import Outcome

_NS_IN_MS = 1e6
_NS_IN_SECOND = 1e9
_HELD_FOR = f"{HOLD_NS / _NS_IN_SECOND:.1f} s"
_RESET, _BOLD, _GREEN, _RED = "\x1b[0m", "\x1b[1m", "\x1b[32m", "\x1b[31m"
# Below that no sentence can be read any more, and we rather let the terminal break the lines.
_LEAST_WIDTH = 20
_STATES = {"t": "stopped by its tracer", "D": "uninterruptible sleep", "Z": "dead"}


class Teller(Listener, Protocol):
    """Tells a whole demo."""

    def on_size(self, size: Size, wanted_bytes: int) -> None:
        """The first: how large the victims will be."""

    def on_skipped(self, trap: Trap, reason: str) -> None:
        """An act is not played."""


class Screen:
    """For people: a line when each thing begins, then the chart, the sentence and the record.

    Args:
        out: Where to.
        width: Columns; no line but the record is longer.
        use_color: Whether the terminal wants colour.
    """

    def __init__(self, out: TextIO, *, width: int, use_color: bool) -> None:
        self._out = out
        self._width = max(width, _LEAST_WIDTH)
        self._use_color = use_color
        self._use_unicode = timeline.can_draw_blocks(out.encoding)
        self._acts = 0
        self._pid = 0
        self._size_bytes = 0

    def on_size(self, size: Size, wanted_bytes: int) -> None:
        """What this is."""
        del wanted_bytes  # ``why_less`` names it
        self._size_bytes = size.size_bytes
        self._say("oomreaper demo: a process that cannot die is killed in vain, then reaped", color=_BOLD)
        if size.why_less:
            self._say(size.why_less)

    def on_begin(self, trap: Trap, pid: int, at_ns: int) -> None:
        """The title, and the first step."""
        del at_ns
        self._pid = pid
        self._say_act(trap.title)
        self._say(f"process {pid} fills {self._size_bytes // MIB} MiB of memory", indent="  ")

    def on_sample(self, moment: Moment) -> None:
        """Drawn later."""

    def on_killed(self, state: State, at_ns: int) -> None:
        """Where it stands."""
        del at_ns
        words = [word for word in (_STATES.get(state.letter), state.wchan) if word]
        known = f" ({', '.join(words)})" if words else ""
        self._say(f"SIGKILL: now in state {state.letter}{known}", indent="  ")

    def on_reaping(self, held_bytes: int) -> None:
        """The step."""
        self._say(f"{_HELD_FOR} later it holds {held_bytes // MIB} MiB; reaping it", indent="  ")

    def on_outcome(self, outcome: Outcome, at_ns: int) -> None:
        """Told with the whole act."""

    def on_performed(self, performance: Performance) -> None:
        """The chart, what it shows, and the record."""
        for line in self._draw(performance):
            self._print(line)
        self._say(summarize(performance), color=_GREEN if performance.is_shown else _RED)
        self._print(json.dumps(performance.outcome.as_json()))

    def on_released(self, trap: Trap, ended_after_ns: int | None, at_ns: int) -> None:
        """The end of the victim."""
        del at_ns
        if ended_after_ns is None:
            self._say(f"{trap.release}, and process {self._pid} still does not end", indent="  ", color=_RED)
        else:
            ended_ms = ended_after_ns / _NS_IN_MS
            self._say(f"{trap.release}: process {self._pid} ended {ended_ms:.0f} ms later", indent="  ")

    def on_skipped(self, trap: Trap, reason: str) -> None:
        """Why not."""
        self._say_act(trap.title)
        self._say(f"skipped: {reason}", indent="  ")

    def _draw(self, performance: Performance) -> list[str]:
        zero_ns = performance.killed_ns
        samples = [
            timeline.Sample((moment.at_ns - zero_ns) / _NS_IN_SECOND, moment.held_bytes)
            for moment in performance.moments
        ]
        reaped_s = (performance.reaped_ns - zero_ns) / _NS_IN_SECOND
        marks = [timeline.Mark(0.0, "SIGKILL 0.0 s"), timeline.Mark(reaped_s, f"reaped {reaped_s:.1f} s")]
        return timeline.render(
            samples,
            marks,
            scale_bytes=performance.size_bytes,
            width=self._width,
            use_unicode=self._use_unicode,
            use_color=self._use_color,
        )

    def _say_act(self, title: str) -> None:
        self._acts += 1
        self._print("")
        self._say(f"Act {self._acts}: {title}", color=_BOLD)

    def _say(self, text: str, *, indent: str = "", color: str = "") -> None:
        for line in textwrap.wrap(
            text, self._width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        ):
            self._print(f"{color}{line}{_RESET}" if color and self._use_color else line)

    def _print(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()


def summarize(performance: Performance) -> str:
    """One sentence or two: what the chart shows."""
    outcome = performance.outcome
    held = f"Killed at 0.0 s: {performance.held_bytes // MIB} MiB still held after {_HELD_FOR}"
    if not performance.has_stayed:
        return f"{held}. SIGKILL alone brought the memory back, so there was nothing to show."
    if not performance.has_come_back or outcome.freed_bytes is None or outcome.elapsed_ms is None:
        left = f"{performance.left_bytes // MIB} MiB are still held"
        return f"{held}; the reap did not bring it back: {outcome.reason}; {left}."
    end = "while the process still cannot die" if outcome.still_dying else "and the process went with it"
    return f"{held}; reaped: {outcome.freed_bytes // MIB} MiB back in {outcome.elapsed_ms:.0f} ms {end}."


class JsonLines:
    """For programs: every event when it happens, one object a line; the table is at the head of this module."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._act = ""
        self._begin_ns = 0

    def on_size(self, size: Size, wanted_bytes: int) -> None:
        """The first line."""
        self._print("size", size_bytes=size.size_bytes, wanted_bytes=wanted_bytes, why_less=size.why_less)

    def on_begin(self, trap: Trap, pid: int, at_ns: int) -> None:
        """Time counts from here."""
        self._act, self._begin_ns = trap.name, at_ns
        self._print_of_act("begin", at_ns, pid=pid, title=trap.title)

    def on_sample(self, moment: Moment) -> None:
        """Every 50 ms, and whenever it has changed."""
        self._print_of_act("sample", moment.at_ns, anon_bytes=moment.held_bytes)

    def on_killed(self, state: State, at_ns: int) -> None:
        """The first signal: the demo's own, not the reaper's."""
        self._print_of_act("killed", at_ns, state=state.letter, wchan=state.wchan)

    def on_reaping(self, held_bytes: int) -> None:
        """The second is over."""
        self._print("reaping", act=self._act, held_bytes=held_bytes)

    def on_outcome(self, outcome: Outcome, at_ns: int) -> None:
        """The record of ``oomreaper reap``."""
        self._print_of_act("outcome", at_ns, **outcome.as_json())

    def on_performed(self, performance: Performance) -> None:
        """The verdict."""
        self._print(
            "verdict",
            act=self._act,
            size_bytes=performance.size_bytes,
            held_bytes=performance.held_bytes,
            left_bytes=performance.left_bytes,
            is_shown=performance.is_shown,
        )

    def on_released(self, trap: Trap, ended_after_ns: int | None, at_ns: int) -> None:
        """The end of the victim."""
        del trap
        ended_after_ms = None if ended_after_ns is None else round(ended_after_ns / _NS_IN_MS, 3)
        self._print_of_act("released", at_ns, ended_after_ms=ended_after_ms)

    def on_skipped(self, trap: Trap, reason: str) -> None:
        """Why not."""
        self._print("skipped", act=trap.name, reason=reason)

    def _print_of_act(self, event: str, at_ns: int, **fields: object) -> None:
        self._print(event, act=self._act, at_ms=round((at_ns - self._begin_ns) / _NS_IN_MS, 3), **fields)

    def _print(self, event: str, **fields: object) -> None:
        self._out.write(json.dumps({"event": event, **fields}) + "\n")
        self._out.flush()
