"""The observer: from lines that were heard to stalls, kills, and memory that is back."""

from __future__ import annotations

from typing import Any

import pytest

from lab.observer import Figures, Observer, parse_signal, parse_size_kib
from lab.scenario import load_scenario
from lab.seam import Heard

_MS = 1_000_000
_S = 1_000_000_000
# The guest's clock began so much later than the host's, and a line takes that long to arrive.
_OFFSET_NS = 40 * _S
_WAY_NS = 2 * _MS
_MEMORY_KIB = 1_000_000


class Watcher:
    """Feeds an observer with what a guest would say; times are ms since the beginning."""

    def __init__(self, scenario: str = "leak_fast", *, swap_kib: int = 0) -> None:
        known = load_scenario(scenario)
        self.observer = Observer(known, memory_kib=_MEMORY_KIB, swap_kib=swap_kib, workers="oomreaper/")
        self.observer.begin(100 * _S)
        self._touched = 0

    def hear(self, ms: float, *, late_ns: int = 0, **message: Any) -> None:
        """At that time it is said."""
        self.observer.hear(Heard(100 * _S + int(ms * _MS) + _WAY_NS + late_ns, message))

    def beat(self, ms: float, available_percent: float | None = None, *, moves: bool = True, **numbers: Any) -> None:
        """A heartbeat."""
        self._touched += moves
        if available_percent is not None:
            numbers = {
                "available_kib": int(_MEMORY_KIB * available_percent / 100), "swap_free_kib": 0, "full_us": 0, **numbers
            }  # fmt: skip
        self.hear(ms, event="beat", at_ns=guest_ns(ms), touched=self._touched, **numbers)

    def signal(self, ms: float, comm: str = "hog", *, pid: int = 300, late_ns: int = 0, **changes: Any) -> None:
        """A line of the tracer."""
        self.hear(ms, late_ns=late_ns, event="trace", text=line(ms, comm, pid=pid, **changes))

    def figures(self, ms: float) -> Figures:
        """What it comes to by then."""
        return self.observer.figures(100 * _S + int(ms * _MS) + _WAY_NS)


def guest_ns(ms: float) -> int:
    """That time by the guest's clock."""
    return 100 * _S + int(ms * _MS) - _OFFSET_NS


def line(
    ms: float, comm: str, *, pid: int = 300, signal: int = 9, by: str = "oomreaper", code: int = 0, result: int = 0
) -> str:
    """As the kernel writes it."""
    return (
        f"           {by}-77      [001] d..2.    {guest_ns(ms) / _S:.6f}: signal_generate: sig={signal} errno=0 "
        f"code={code} comm={comm} pid={pid} grp=1 res={result}"
    )


def _fall_and_kill(watcher: Watcher, *, kill_ms: float = 400, back_ms: float = 600) -> None:
    """Short from 300 ms on; back at ``back_ms``; looked at until 3 s."""
    for ms in range(0, 3000, 50):
        percent = 50 - ms / 7.5 if ms <= 300 else 2
        watcher.beat(ms, percent if ms < back_ms else 60)
        if ms == kill_ms:
            watcher.signal(kill_ms)


# -- lines -------------------------------------------------------------------------------------------------


def test_a_line_of_the_tracer_is_read() -> None:
    """With a name that holds blanks, brackets and an equals sign; times to the microsecond."""
    text = (
        "  Web Content (x)-4242    [000] dN.2.   123.000045: signal_generate: sig=15 errno=0 code=0 comm=a b=c pid=1 "
        "grp=1 res=0"
    )

    assert parse_signal(text) == (123_000_045_000, "Web Content (x)", 4242, 15, 0, "a b=c", 1, 0)


@pytest.mark.parametrize(
    "text", ["", "# tracer: nop", "kworker-1 [000] ..... 1.5: mark_victim: pid=3", "CPU:1 [LOST 5 EVENTS]"]
)
def test_another_line_is_passed_over(text: str) -> None:
    """It tells of no signal."""
    assert parse_signal(text) is None


@pytest.mark.parametrize(
    ("text", "kib"), [("200M", 204_800), ("1G", 1 << 20), ("4096\n", 4), ("max", None), ("x", None)]
)
def test_the_size_in_a_groups_file_is_read(text: str, kib: int | None) -> None:
    """In KiB; no limit is None."""
    assert parse_size_kib(text) == kib


# -- times -------------------------------------------------------------------------------------------------


def test_a_shortage_is_timed_from_the_level_to_the_kill_to_memory_back() -> None:
    """10 % is passed after 300 ms, which is seen at the next look: 350."""
    watcher = Watcher()
    _fall_and_kill(watcher)
    figures = watcher.figures(3000)

    assert figures.shortage_to_kill_ms == pytest.approx(50, abs=0.2)
    assert figures.kill_to_memory_ms == pytest.approx(200, abs=0.2)
    assert figures.is_back
    assert not figures.killed_before_shortage
    assert [kill.comm for kill in figures.killed] == ["hog"]
    assert figures.killed[0].after_ms == figures.shortage_to_kill_ms
    assert figures.lowest_available_percent == 2.0


def test_a_line_that_arrives_late_counts_when_it_was_written() -> None:
    """The tracer's pipe may be read seconds later: the guest's clock and the heartbeats say when it was."""
    watcher = Watcher()
    for ms in range(0, 3000, 50):
        watcher.beat(ms, 5 if 300 <= ms < 600 else 60)
    watcher.signal(400, late_ns=2 * _S)

    assert watcher.figures(3000).shortage_to_kill_ms == pytest.approx(100, abs=0.2)


def test_memory_that_is_back_for_a_moment_only_is_not_back() -> None:
    """As between two victims, while the next hog goes on."""
    watcher = Watcher()
    for ms in range(0, 4000, 50):
        watcher.beat(ms, 60 if ms < 300 or 600 <= ms < 800 or ms >= 1500 else 2)
    watcher.signal(400)

    assert watcher.figures(4000).kill_to_memory_ms == pytest.approx(1100, abs=0.2)


def test_without_a_kill_there_is_no_time() -> None:
    """Null, and no number that looks like a quick one."""
    watcher = Watcher()
    for ms in range(0, 1000, 50):
        watcher.beat(ms, 2)
    figures = watcher.figures(1000)

    assert (figures.shortage_to_kill_ms, figures.kill_to_memory_ms, figures.is_back) == (None, None, False)


def test_a_kill_before_the_shortage_is_said_to_be_one() -> None:
    """Its time after the shortage would be a negative one, or none."""
    watcher = Watcher()
    watcher.signal(100)
    _fall_and_kill(watcher)
    figures = watcher.figures(3000)

    assert figures.killed_before_shortage
    assert figures.shortage_to_kill_ms is None


def test_with_swap_a_machine_is_short_when_that_is_used_up_too() -> None:
    """Memory alone says nothing then."""
    watcher = Watcher(swap_kib=100_000)
    for ms in range(0, 2000, 50):
        watcher.beat(ms, 5, swap_free_kib=100_000 if ms < 1000 else 5_000)
    watcher.signal(1500)

    assert watcher.figures(2000).shortage_to_kill_ms == pytest.approx(500, abs=0.2)


def test_in_a_groups_scenario_the_groups_limit_is_what_counts() -> None:
    """The machine has memory to spare all the time; the group of 200 MiB is full."""
    watcher = Watcher("unit_oom_group")
    for ms in range(0, 3000, 50):
        watcher.beat(ms, 70, group_kib=200_000 if 500 <= ms < 1000 else 40_000)
    watcher.signal(700)
    figures = watcher.figures(3000)

    assert figures.shortage_to_kill_ms == pytest.approx(200, abs=0.2)
    assert figures.kill_to_memory_ms == pytest.approx(300, abs=0.2)
    assert figures.lowest_available_percent == pytest.approx(2.34, abs=0.01)


# -- stalls ------------------------------------------------------------------------------------------------


def test_the_longest_stall_is_the_longest_time_without_progress() -> None:
    """Heartbeats that come and say the same count are no progress."""
    watcher = Watcher()
    for ms in range(0, 2000, 10):
        watcher.beat(ms, moves=not 500 < ms < 1300)
    figures = watcher.figures(2000)

    assert figures.longest_stall_ms == pytest.approx(800, abs=0.1)
    assert figures.guest_stall_ms == pytest.approx(800, abs=0.1)


def test_a_guest_that_says_nothing_more_stalls_to_the_end() -> None:
    """A hang is no quiet guest."""
    watcher = Watcher()
    for ms in range(0, 500, 10):
        watcher.beat(ms)

    assert watcher.figures(60_000).longest_stall_ms == pytest.approx(59_510, abs=1)


def test_a_guest_that_never_beat_stalls_all_the_time() -> None:
    """From the beginning."""
    assert Watcher().figures(5_000).longest_stall_ms == pytest.approx(5_000, abs=5)


def test_what_was_before_the_beginning_does_not_count() -> None:
    """Neither stalls nor kills of setting up."""
    watcher = Watcher()
    watcher.beat(-3000)
    watcher.signal(-2000, pid=5)
    for ms in range(0, 1000, 10):
        watcher.beat(ms)
    figures = watcher.figures(1000)

    assert figures.killed == ()
    assert figures.longest_stall_ms == pytest.approx(10, abs=3)


# -- kills -------------------------------------------------------------------------------------------------


def _killed(watcher: Watcher) -> list[tuple[str, bool]]:
    return [(kill.comm, kill.is_innocent) for kill in watcher.figures(10_000).killed]


def test_who_is_no_culprit_is_innocent() -> None:
    """An actor with that role, and whoever the scenario does not know."""
    watcher = Watcher()
    watcher.beat(0, 50)
    for number, comm in enumerate(("desk", "systemd-journal", "hog")):
        watcher.signal(100 + number, comm, pid=300 + number)

    assert _killed(watcher) == [("desk", True), ("systemd-journal", True), ("hog", False)]


def test_a_process_is_killed_once() -> None:
    """However many signals it was sent; the first counts."""
    watcher = Watcher()
    watcher.beat(0, 50)
    watcher.signal(100, signal=15)
    watcher.signal(200)
    watcher.signal(300, by="kernel", code=128)

    assert [(kill.signal, kill.is_by_kernel) for kill in watcher.figures(1000).killed] == [(15, False)]


def test_a_signal_that_was_ignored_or_pending_is_no_kill() -> None:
    """The tracer's ``res`` says it."""
    watcher = Watcher()
    watcher.beat(0, 50)
    watcher.signal(100, result=1)
    watcher.signal(200, result=2)

    assert _killed(watcher) == []


def test_sigterm_is_no_kill_for_who_survives_it() -> None:
    """SIGKILL afterwards is; and that is when the first kill was."""
    watcher = Watcher("stubborn")
    watcher.beat(0, 50)
    watcher.signal(100, signal=15)
    watcher.signal(900)

    assert [kill.signal for kill in watcher.figures(1000).killed] == [9]


def test_what_an_actor_does_to_its_own_is_no_kill() -> None:
    """A browser ends its tabs; but what the kernel does while the actor allocates is the kernel's."""
    watcher = Watcher("browser_family")
    watcher.beat(0, 50)
    watcher.signal(100, "tab", pid=301, by="browser")
    watcher.signal(200, "tab", pid=302, by="leaktab", code=128)

    assert [(kill.pid, kill.by) for kill in watcher.figures(1000).killed] == [(302, "kernel")]


def test_a_service_that_ends_its_own_workers_kills_nobody() -> None:
    """As udev does all day; systemd-oomd is a killer, and so is a service to an actor."""
    watcher = Watcher()
    watcher.beat(0, 50)
    watcher.signal(100, "(udev-worker)", pid=301, by="systemd-udevd", signal=15)
    watcher.signal(200, "dbus-daemon", pid=302, by="systemd-oomd")
    watcher.signal(300, "desk", pid=303, by="systemd-udevd")

    assert [kill.pid for kill in watcher.figures(1000).killed] == [302, 303]


def test_a_killer_that_replaces_its_own_worker_kills_nobody() -> None:
    """Its workers are disposable, and made anew; one that the kernel's killer takes is a loss."""
    watcher = Watcher()
    watcher.beat(0, 50)
    watcher.signal(100, "oomreaper/reap", pid=301, by="python3")
    watcher.signal(200, "oomreaper/reap", pid=302, by="hog", code=128)

    assert [kill.pid for kill in watcher.figures(1000).killed] == [302]


def test_a_stuck_actors_victims_are_known_by_their_pids() -> None:
    """Who holds them has the same name, and is innocent."""
    watcher = Watcher("stuck_fuse")
    watcher.observer.take_culprits("stuck", [400])
    watcher.beat(0, 50)
    watcher.signal(100, "victims", pid=400)
    watcher.signal(200, "victims", pid=399)

    assert _killed(watcher) == [("victims", False), ("victims", True)]


def test_who_ended_of_a_signal_that_no_line_tells_of_was_killed() -> None:
    """As on a kernel without the tracer, or when its buffer ran over; one that is told of twice counts once."""
    watcher = Watcher()
    watcher.beat(0, 50)
    watcher.signal(100, pid=300)
    for pid, name, number in ((300, "hog", 9), (301, "desk", 15), (302, "idler", None), (303, "idler", 11)):
        watcher.hear(200, event="ended", name=name, pid=pid, status=None, signal=number, at_ns=guest_ns(199))

    assert _killed(watcher) == [("hog", False), ("desk", True)]


# -- when it is over ---------------------------------------------------------------------------------------


def test_it_is_over_when_memory_has_been_back_for_a_while() -> None:
    """Not while it is short, not at once, and not before as many are killed as it takes."""
    watcher = Watcher()
    _fall_and_kill(watcher)

    def is_over(ms: float) -> bool:
        return watcher.observer.is_over(100 * _S + int(ms * _MS) + _WAY_NS, quiet_ns=2 * _S)

    assert not is_over(2500)
    assert is_over(2650)
    impatient = Watcher()
    impatient.beat(0, 60)
    assert not impatient.observer.is_over(200 * _S, quiet_ns=_S)


def test_where_nobody_is_to_be_killed_it_is_over_with_its_time() -> None:
    """However quiet it is."""
    watcher = Watcher("thrash")
    watcher.beat(0, 60)

    assert not watcher.observer.is_over(900 * _S, quiet_ns=_S)
