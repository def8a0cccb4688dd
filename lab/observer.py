"""What was heard from a guest, and what it comes to: stalls, kills, memory back. Host side, no waiting, no clock.

All times here are the host's: those of the guest's kernel (a line of its tracer) are brought over by the heartbeats,
each of which has both clocks; the quickest of them says how far apart they are.

A *kill* is a process that was sent SIGKILL, or SIGTERM where its actor does not survive that. The tracer tells of both,
with the sender, also when the victim cannot die, and whoever ended of a signal that no line tells of counts as well.
What a process sends to others of its own actor, and not the kernel for it, is no kill: programs end their own, and so
do systemd's services (udev its idle workers), but for the one that is a killer.

Memory is *short* when less than the scenario's share is available (and, with swap, less of that is free), or the group
of the scenario is as near to its limit; it is *back* above the other share. Both are looked at 16 times a second.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.records import Kill
from lab.scenario import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lab.scenario import Scenario
    from lab.seam import Heard

_NS_IN_MS = 1_000_000
_SECOND = 1_000_000_000
# A level that is passed for a moment only, between two victims, is not back.
_BACK_FOR_NS = _SECOND
_SIGKILL, _SIGTERM = 9, 15
# include/uapi/asm-generic/siginfo.h: SI_KERNEL, as the kernel's own killer sends it.
_SI_KERNEL = 128
# include/trace/events/signal.h: TRACE_SIGNAL_DELIVERED; anything else was ignored, or pending already.
_DELIVERED = 0
_SIGNAL = re.compile(
    r"^\s*(?P<by>.*?)-(?P<by_pid>\d+)\s.*?(?P<at>\d+\.\d+): signal_generate: sig=(?P<signal>\d+) errno=-?\d+ "
    r"code=(?P<code>-?\d+) comm=(?P<comm>.*) pid=(?P<pid>\d+) grp=\d res=(?P<result>\d+)\s*$"
)
_SERVICE_PREFIX, _KILLING_SERVICE = "systemd-", "systemd-oomd"
_UNITS = {"K": 1, "M": 1 << 10, "G": 1 << 20}


class Signal(NamedTuple):
    """A line of the tracer: who sent what to whom, by the guest's clock."""

    guest_ns: int
    by: str
    by_pid: int
    signal: int
    code: int
    comm: str
    pid: int
    result: int


class Beat(NamedTuple):
    """One heartbeat. Numbers are None in those that have none."""

    at_ns: int
    guest_ns: int
    touched: int
    available_kib: int | None
    swap_free_kib: int | None
    full_us: int | None
    group_kib: int | None


class Figures(NamedTuple):
    """What one run comes to; names as in ``records.Record``."""

    killed: tuple[Kill, ...]
    shortage_to_kill_ms: float | None
    kill_to_memory_ms: float | None
    killed_before_shortage: bool
    was_short: bool
    is_back: bool
    longest_stall_ms: float
    guest_stall_ms: float
    psi_full_ms: float | None
    lowest_available_percent: float | None
    beats: int


def parse_signal(text: str) -> Signal | None:
    """A line of the tracer; None: it tells of something else."""
    match = _SIGNAL.match(text)
    if match is None:
        return None
    seconds, _, fraction = match["at"].partition(".")
    guest_ns = int(seconds) * _SECOND + int(fraction.ljust(9, "0")[:9])
    numbers = (int(match[name]) for name in ("by_pid", "signal", "code"))
    by_pid, signal, code = numbers
    return Signal(guest_ns, match["by"], by_pid, signal, code, match["comm"], int(match["pid"]), int(match["result"]))


def parse_size_kib(text: str) -> int | None:
    """The size in a file of a control group: bytes, or with K, M, G; None for "max"."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    if match is None:
        return None
    return int(match[1]) * _UNITS[match[2]] if match[2] else int(match[1]) // 1024


class Observer:
    """Takes everything that is heard, and tells what it comes to.

    Args:
        scenario: Whose names and levels count.
        memory_kib: All of the guest's memory.
        swap_kib: All of its swap.
        workers: How the names of the killer's own helpers begin: what it does to them is no kill, unlike the kernel's.
    """

    def __init__(self, scenario: Scenario, *, memory_kib: int, swap_kib: int, workers: str = "\0") -> None:
        self._scenario = scenario
        self._memory_kib = memory_kib
        self._swap_kib = swap_kib
        self._workers = workers
        self._limit_kib = _find_limit(scenario)
        self.beats: list[Beat] = []
        self._signals: list[tuple[int, Signal]] = []
        self._ends: list[tuple[int, Mapping[str, Any]]] = []
        self._culprit_pids: dict[int, str] = {}
        self._user_ended = False
        self.begin_ns: int | None = None

    # -- what is heard -------------------------------------------------------------------------------------

    def begin(self, at_ns: int) -> None:
        """The first program that makes the shortage is started now; what was before does not count."""
        self.begin_ns = at_ns

    def take_culprits(self, actor: str, pids: Sequence[int]) -> None:
        """These processes of an actor are to blame, whatever their names are."""
        self._culprit_pids.update(dict.fromkeys(pids, actor))

    def hear(self, heard: Heard) -> None:
        """Take a message; those that say nothing of memory or kills are passed over."""
        message = heard.message
        match message.get("event"):
            case "beat":
                self._user_ended = self._user_ended or bool(message.get("user_ended"))
                self.beats.append(_make_beat(heard))
            case "trace":
                signal = parse_signal(str(message["text"]))
                if signal is not None:
                    self._signals.append((heard.at_ns, signal))
            case "ended":
                self._ends.append((heard.at_ns, message))

    # -- while it runs -------------------------------------------------------------------------------------

    def is_over(self, now_ns: int, quiet_ns: int) -> bool:
        """Whether all that is wanted has come, and memory has been back for so long that nothing more will."""
        wanted = self._scenario.expectation
        if not wanted.is_kill_wanted or self.begin_ns is None:
            return False
        found = list(self._found(now_ns))
        since_ns = self._back_since_ns()
        if since_ns is None or sum(kill.actor is not None for _, kill in found) < wanted.least_kills:
            return False
        return now_ns - max(since_ns, *(at_ns for at_ns, _ in found)) >= quiet_ns

    def _back_since_ns(self) -> int | None:
        """Since when, up to the last look, memory has been back without a break."""
        since_ns = None
        for beat in reversed(self.beats):
            if beat.available_kib is None:
                continue
            if not self._is_back(beat):
                break
            since_ns = beat.at_ns
        return since_ns

    # -- what it comes to ----------------------------------------------------------------------------------

    def figures(self, end_ns: int) -> Figures:
        """Everything between the beginning and ``end_ns``."""
        begin_ns = end_ns if self.begin_ns is None else self.begin_ns
        beats = [beat for beat in self.beats if begin_ns <= beat.at_ns <= end_ns]
        looks = [beat for beat in beats if beat.available_kib is not None]
        short_ns = next((beat.at_ns for beat in looks if self._is_short(beat)), None)
        times = self._kill_times(end_ns)
        kill_ns = min(times.values(), default=None)
        is_before = kill_ns is not None and (short_ns is None or kill_ns < short_ns)
        back_ns = None if kill_ns is None else self._find_back(looks, kill_ns)
        return Figures(
            killed=tuple(sorted(self._kills(end_ns, short_ns), key=lambda kill: times[kill.pid])),
            shortage_to_kill_ms=_ms_between(None if is_before else short_ns, kill_ns),
            kill_to_memory_ms=_ms_between(kill_ns, back_ns),
            killed_before_shortage=is_before,
            was_short=short_ns is not None,
            is_back=bool(looks) and self._is_back(looks[-1]),
            longest_stall_ms=self._longest_stall_ms([(beat.at_ns, beat.touched) for beat in beats], begin_ns, end_ns),
            guest_stall_ms=self._guest_stall_ms(beats),
            psi_full_ms=_psi_full_ms(looks),
            lowest_available_percent=min(map(self._available_percent, looks), default=None),
            beats=len(beats),
        )

    def _available_percent(self, beat: Beat) -> float:
        assert beat.available_kib is not None
        if self._limit_kib is not None:
            return round(100 - 100 * (beat.group_kib or 0) / self._limit_kib, 2)
        return round(100 * beat.available_kib / self._memory_kib, 2)

    def _is_short(self, beat: Beat) -> bool:
        below = self._scenario.shortage.below_percent
        if self._available_percent(beat) >= below:
            return False
        if self._limit_kib is not None or not self._swap_kib:
            return True
        return 100 * (beat.swap_free_kib or 0) < below * self._swap_kib

    def _is_back(self, beat: Beat) -> bool:
        return self._available_percent(beat) >= self._scenario.shortage.back_percent

    def _find_back(self, looks: Sequence[Beat], kill_ns: int) -> int | None:
        """When memory was back first after the first kill, for a while or to the end."""
        since_ns = None
        for beat in looks:
            if beat.at_ns < kill_ns:
                continue
            if not self._is_back(beat):
                since_ns = None
                continue
            since_ns = beat.at_ns if since_ns is None else since_ns
            if beat.at_ns - since_ns >= _BACK_FOR_NS:
                return since_ns
        return since_ns

    def _longest_stall_ms(self, seen: Sequence[tuple[int, int]], begin_ns: int, end_ns: int) -> float:
        """The longest time without progress. The end of the run ends it, and so a machine that is lost stalls long."""
        longest_ns, moved_ns = 0, begin_ns
        for (at_ns, touched), (_, before) in zip(seen[1:], seen[:-1], strict=True):
            if touched != before:
                longest_ns = max(longest_ns, at_ns - moved_ns)
                moved_ns = at_ns
        return round(max(longest_ns, end_ns - moved_ns) / _NS_IN_MS, 1)

    def _guest_stall_ms(self, beats: Sequence[Beat]) -> float:
        if not beats:
            return 0.0
        seen = [(beat.guest_ns, beat.touched) for beat in beats]
        return self._longest_stall_ms(seen, beats[0].guest_ns, beats[-1].guest_ns)

    # -- kills ---------------------------------------------------------------------------------------------

    def _found(self, end_ns: int) -> Iterator[tuple[int, Kill]]:
        """When each was killed, and what is known of it."""
        if self.begin_ns is None:
            return
        offset_ns = min((beat.at_ns - beat.guest_ns for beat in self.beats), default=None)
        seen: set[int] = set()
        for heard_ns, signal in self._signals:
            at_ns = heard_ns if offset_ns is None else signal.guest_ns + offset_ns
            if not self.begin_ns <= at_ns <= end_ns or signal.pid in seen or not self._is_kill(signal):
                continue
            seen.add(signal.pid)
            actor, is_innocent = self._who(signal.pid, signal.comm)
            is_by_kernel = signal.code == _SI_KERNEL
            by = "kernel" if is_by_kernel else signal.by
            yield at_ns, Kill(signal.pid, signal.comm, actor, is_innocent, signal.signal, by, is_by_kernel, None)
        for heard_ns, message in self._ends:
            number, pid = message.get("signal"), int(message["pid"])
            if number not in (_SIGKILL, _SIGTERM) or pid in seen or not self.begin_ns <= heard_ns <= end_ns:
                continue
            name = _actor_name(str(message["name"]))
            actor, is_innocent = self._who(pid, name)
            yield heard_ns, Kill(pid, name, actor, is_innocent, int(number), "?", False, None)

    def _kill_times(self, end_ns: int) -> dict[int, int]:
        return {kill.pid: at_ns for at_ns, kill in self._found(end_ns)}

    def _kills(self, end_ns: int, short_ns: int | None = None) -> list[Kill]:
        return [kill._replace(after_ms=_ms_between(short_ns, at_ns)) for at_ns, kill in self._found(end_ns)]

    def _is_kill(self, signal: Signal) -> bool:
        if signal.result != _DELIVERED:
            return False
        target, _ = self._who(signal.pid, signal.comm)
        sender, _ = self._who(signal.by_pid, signal.by)
        if signal.code != _SI_KERNEL and target is not None and sender == target:
            return False
        is_service = signal.by.startswith(_SERVICE_PREFIX) and signal.by != _KILLING_SERVICE
        is_worker = signal.comm.startswith(self._workers)
        if signal.code != _SI_KERNEL and target is None and (is_service or is_worker):
            return False
        survivors = {actor.name for actor in self._scenario.actors if actor.survives_term}
        return signal.signal != _SIGTERM or target not in survivors

    def _who(self, pid: int, comm: str) -> tuple[str | None, bool]:
        """The actor of a process, and whether it is innocent."""
        if pid in self._culprit_pids:
            return self._culprit_pids[pid], False
        actor, role = self._scenario.role_of(comm)
        return actor, role is Role.INNOCENT

    @property
    def has_user_ended(self) -> bool:
        """Whether the probe's own user has been killed, which ends all figures of stalls."""
        return self._user_ended


def _find_limit(scenario: Scenario) -> int | None:
    """The limit of the group in which memory is short, in KiB; None: it is the machine's memory that is."""
    if scenario.shortage.group is None:
        return None
    files = next(group.files for group in scenario.groups if group.name == scenario.shortage.group)
    return parse_size_kib(files.get("memory.max", files.get("memory.high", "max")))


def _make_beat(heard: Heard) -> Beat:
    message = heard.message
    numbers = (message.get(name) for name in ("available_kib", "swap_free_kib", "full_us", "group_kib"))
    return Beat(heard.at_ns, int(message["at_ns"]), int(message["touched"]), *numbers)


def _actor_name(name: str) -> str:
    """Of several processes of one actor, each is started under its name and a number."""
    return name.partition("#")[0]


def _psi_full_ms(looks: Sequence[Beat]) -> float | None:
    totals = [beat.full_us for beat in looks if beat.full_us is not None and beat.full_us >= 0]
    return round((totals[-1] - totals[0]) / 1000, 1) if totals else None


def _ms_between(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None else round((end_ns - start_ns) / _NS_IN_MS, 1)
