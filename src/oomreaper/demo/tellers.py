"""What the demo prints: ``Screen`` for people, ``JsonLines`` for programs.

Both are ``acts.Listener`` and ``shortage.WatchListener``.

The lines of JSON, each with the name of its ``event``. ``act`` is "watch", "exit" or "lock"; ``at_ms`` counts from the
begin of the act, and is when a thing happened: in "watch", what the gauge and what the watcher say may be told in
another order, a moment later:

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
cast      act, at_ms, group, limit_bytes, idle_pids, watcher_pid: who is there when the watcher watches
usage     act, at_ms, used_bytes: what the control group holds
record    act, at_ms, record: what the watcher says, as it came from its event socket
watched   act, limit_bytes, peak_bytes, left_bytes, state, wchan (of the victim; null: it has ended), idle_alive,
          is_shown
========  ================================================================================================
"""

from __future__ import annotations

import json
import os
import textwrap
from typing import TYPE_CHECKING, Protocol, TextIO

from oomreaper.demo import timeline
from oomreaper.demo.acts import HOLD_NS, Listener
from oomreaper.demo.bounds import MIB
from oomreaper.demo.shortage import WatchListener
from oomreaper.model.outcome import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oomreaper.demo.acts import Act, Moment, Performance, State, Trap
    from oomreaper.demo.bounds import Size
    from oomreaper.demo.shortage import Cast, Watched
    from oomreaper.model.outcome import Outcome

_NS_IN_MS = 1e6
_NS_IN_SECOND = 1e9
_HELD_FOR = f"{HOLD_NS / _NS_IN_SECOND:.1f} s"
_RESET, _BOLD, _GREEN, _RED = "\x1b[0m", "\x1b[1m", "\x1b[32m", "\x1b[31m"
# Below that no sentence can be read any more, and we rather let the terminal break the lines.
_LEAST_WIDTH = 20
_STATES = {"t": "stopped by its tracer", "D": "uninterruptible sleep", "Z": "dead"}


# The record of the watcher in short: what people ask first. The whole of it is in the JSON lines.
_SHORT_RECORD = (
    "event",
    "incident",
    "time",
    "rule",
    "pid",
    "comm",
    "outcome",
    "freed_bytes",
    "elapsed_ms",
    "attempts",
    "still_dying",
)


class Teller(Listener, WatchListener, Protocol):
    """Tells a whole demo."""

    def on_size(self, size: Size, wanted_bytes: int) -> None:
        """The first: how large the victims will be."""

    def on_skipped(self, act: Act, reason: str) -> None:
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
        self._begin_ns = 0

    def on_size(self, size: Size, wanted_bytes: int) -> None:
        """What this is."""
        del wanted_bytes  # ``why_less`` names it
        self._size_bytes = size.size_bytes
        self._say("oomreaper demo: memory runs out, and the process that took it cannot die", color=_BOLD)
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

    def on_cast(self, cast: Cast, at_ns: int) -> None:
        """The title, and who is there."""
        self._pid, self._begin_ns = cast.hog_pid, at_ns
        self._say_act(cast.act.title)
        self._say(
            f"it watches a control group of {cast.limit_bytes // MIB} MiB; in there, processes {_list(cast.idle_pids)} "
            f"do nothing; {cast.hog_pid} takes all it can, ignores SIGTERM, and a debugger stops it in its exit",
            indent="  ",
        )

    def on_usage(self, moment: Moment) -> None:
        """Drawn later."""

    def on_record(self, record: dict[str, object], at_ns: int) -> None:
        """Each as a line, but what was announced: that is said when it is done."""
        text = describe(record)
        if text:
            self._say(f"{(at_ns - self._begin_ns) / _NS_IN_SECOND:4.1f} s  {text}", indent="  ", hang=8)

    def on_watched(self, watched: Watched) -> None:
        """The chart, what it shows, and the record."""
        for line in self._draw_watched(watched):
            self._print(line)
        self._say(summarize_watched(watched), color=_GREEN if watched.is_shown else _RED)
        if watched.settled is not None:
            self._print(json.dumps({name: watched.settled.get(name) for name in _SHORT_RECORD}))

    def on_released(self, act: Act, ended_after_ns: int | None, at_ns: int) -> None:
        """The end of the victim."""
        del at_ns
        if ended_after_ns is None:
            self._say(f"{act.release}, and process {self._pid} still does not end", indent="  ", color=_RED)
        else:
            ended_ms = ended_after_ns / _NS_IN_MS
            self._say(f"{act.release}: process {self._pid} ended {ended_ms:.0f} ms later", indent="  ")

    def on_skipped(self, act: Act, reason: str) -> None:
        """Why not."""
        self._say_act(act.title)
        self._say(f"skipped: {reason}", indent="  ")

    def _draw(self, performance: Performance) -> list[str]:
        marks = [(performance.killed_ns, "SIGKILL"), (performance.reaped_ns, "reaped")]
        return self._render(performance.moments, marks, performance.killed_ns, performance.size_bytes)

    def _draw_watched(self, watched: Watched) -> list[str]:
        return self._render(watched.moments, find_marks(watched), watched.begin_ns, watched.cast.limit_bytes)

    def _render(
        self, moments: Sequence[Moment], marks: Sequence[tuple[int, str]], zero_ns: int, scale_bytes: int
    ) -> list[str]:
        times = [((at_ns - zero_ns) / _NS_IN_SECOND, label) for at_ns, label in marks]
        return timeline.render(
            [timeline.Sample((moment.at_ns - zero_ns) / _NS_IN_SECOND, moment.held_bytes) for moment in moments],
            [timeline.Mark(at_s, f"{label} {at_s:.1f} s") for at_s, label in times],
            scale_bytes=scale_bytes,
            width=self._width,
            use_unicode=self._use_unicode,
            use_color=self._use_color,
        )

    def _say_act(self, title: str) -> None:
        self._acts += 1
        self._print("")
        self._say(f"Act {self._acts}: {title}", color=_BOLD)

    def _say(self, text: str, *, indent: str = "", hang: int = 0, color: str = "") -> None:
        following = indent + " " * hang
        for line in textwrap.wrap(
            text, self._width, initial_indent=indent, subsequent_indent=following, break_on_hyphens=False
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


def describe(record: dict[str, object]) -> str:
    """What a record of the watcher says, in a line; "" for what is not worth one of its own."""
    match record.get("event"):
        case "warning" | "skipped":
            return f"{record.get('text')}"
        case "announce":
            return f"chooses {record.get('pid')}: {_join(record.get('why'))}; because {record.get('reason')}"
        case "killed":
            return f"{record.get('signal')} to {record.get('pid')}"
        case "settled":
            freed_bytes, elapsed_ms = record.get("freed_bytes"), record.get("elapsed_ms")
            freed = f"{freed_bytes // MIB} MiB back" if isinstance(freed_bytes, int) else "nothing back"
            after = f" {elapsed_ms:.0f} ms after SIGKILL" if isinstance(elapsed_ms, int | float) else ""
            return f"{record.get('outcome')}: {freed}{after}"
        case _:
            return ""


def find_marks(watched: Watched) -> list[tuple[int, str]]:
    """What stands beneath the chart: when (monotonic), and what. In order of time."""
    found = [
        (watched.find("warning"), "noticed"),
        (watched.find("killed", signal="SIGTERM"), "SIGTERM"),
        (watched.find("killed", signal="SIGKILL"), "SIGKILL"),
        (watched.settled, "reaped" if watched.has_come_back else "settled"),
    ]
    marks = [(int(str(record["monotonic_ns"])), label) for record, label in found if record is not None]
    return sorted(marks, key=lambda mark: mark[0])


def summarize_watched(watched: Watched) -> str:
    """One sentence or two: what the chart shows."""
    held = f"The group held {watched.peak_bytes // MIB} of {watched.cast.limit_bytes // MIB} MiB"
    lost = len(watched.cast.idle_pids) - watched.idle_alive
    others = "nobody else was touched" if lost == 0 else f"{lost} of {len(watched.cast.idle_pids)} bystanders died"
    if watched.others_taken:
        others = f"it also took {_list(watched.others_taken)}"
    settled = watched.settled
    if settled is None:
        return f"{held}; the watcher did nothing about it, or not to the end; {others}."
    if not watched.has_come_back:
        return f"{held}; its memory did not come back: {settled.get('outcome')}, {settled.get('reason')}; {others}."
    if watched.state is None:
        return f"{held}; the process died and its memory came back with it, so there was nothing to show; {others}."
    where = _STATES.get(watched.state.letter)
    stands = f"state {watched.state.letter}{f' ({where})' if where else ''}"
    return (
        f"{held}, and now {watched.left_bytes // MIB}; process {watched.cast.hog_pid} still cannot die: {stands}; "
        f"{others}. What SIGKILL alone does to such a process is the next act."
    )


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

    def on_cast(self, cast: Cast, at_ns: int) -> None:
        """Time counts from here."""
        self._act, self._begin_ns = cast.act.name, at_ns
        self._print_of_act("begin", at_ns, pid=cast.hog_pid, title=cast.act.title)
        self._print_of_act(
            "cast",
            at_ns,
            group=printable(os.fsencode(cast.group)),
            limit_bytes=cast.limit_bytes,
            idle_pids=list(cast.idle_pids),
            watcher_pid=cast.watcher_pid,
        )

    def on_usage(self, moment: Moment) -> None:
        """Every 50 ms, and whenever it has changed."""
        self._print_of_act("usage", moment.at_ns, used_bytes=moment.held_bytes)

    def on_record(self, record: dict[str, object], at_ns: int) -> None:
        """As it came."""
        self._print_of_act("record", at_ns, record=record)

    def on_watched(self, watched: Watched) -> None:
        """The verdict."""
        self._print(
            "watched",
            act=self._act,
            limit_bytes=watched.cast.limit_bytes,
            peak_bytes=watched.peak_bytes,
            left_bytes=watched.left_bytes,
            state=None if watched.state is None else watched.state.letter,
            wchan=None if watched.state is None else watched.state.wchan,
            idle_alive=watched.idle_alive,
            is_shown=watched.is_shown,
        )

    def on_released(self, act: Act, ended_after_ns: int | None, at_ns: int) -> None:
        """The end of the victim."""
        del act
        ended_after_ms = None if ended_after_ns is None else round(ended_after_ns / _NS_IN_MS, 3)
        self._print_of_act("released", at_ns, ended_after_ms=ended_after_ms)

    def on_skipped(self, act: Act, reason: str) -> None:
        """Why not."""
        self._print("skipped", act=act.name, reason=reason)

    def _print_of_act(self, event: str, at_ns: int, **fields: object) -> None:
        self._print(event, act=self._act, at_ms=round((at_ns - self._begin_ns) / _NS_IN_MS, 3), **fields)

    def _print(self, event: str, **fields: object) -> None:
        self._out.write(json.dumps({"event": event, **fields}) + "\n")
        self._out.flush()


def _list(pids: Sequence[int]) -> str:
    return " and ".join(map(str, pids))


def _join(reasons: object) -> str:
    return ", ".join(map(str, reasons)) if isinstance(reasons, list) else "?"
