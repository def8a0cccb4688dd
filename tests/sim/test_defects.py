"""Defects that the simulator has found in the reaper, each kept as the schedule or the fault that showed it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.jobs import Hello
from oomreaper.sim.choice import Seeded
from oomreaper.sim.linux.bind import bound
from oomreaper.sim.machine import Machine
from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.parameters import MS, SECOND
from oomreaper.sim.programs import Gate, busy, crash, idle, pin_memory_of, stand_in, thread_exit
from oomreaper.sim.reaping import Reaping
from oomreaper.sim.userland import ALL_FAULTS, NO_FAULTS, Faults, Userland

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.reaper.jobs import Report
    from oomreaper.sim.engine import Steps
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process, Program, Thread

    Staging = Callable[[Machine], tuple[Process, tuple[Process, ...]]]
    Saboteur = Callable[[str, object], int | None]

_SIZE_MIB = 256
_LEFT_PAGES = 16 << 8  # 16 MiB


def _shared(on: Machine) -> tuple[Process, tuple[Process, ...]]:
    victim = on.add_process("victim", [idle()], anon_mib=_SIZE_MIB)
    return victim, (on.add_process("sharer", [busy()], mm=victim.mm),)


def _pinned(on: Machine) -> tuple[Process, tuple[Process, ...]]:
    victim = on.add_process("victim", [idle()], anon_mib=_SIZE_MIB)
    mm = victim.mm
    on.add_process("reader", [pin_memory_of(lambda: mm, Gate("a fault that is not served"))])
    return victim, ()


def _reap(
    seed: int,
    staging: Staging,
    *,
    faults: Faults = NO_FAULTS,
    sabotage: Callable[[Process, tuple[Process, ...]], Saboteur] | None = None,
) -> tuple[Outcome, Mm, tuple[Process, ...]]:
    """One victim under one schedule: its outcome, what was its memory, and who shared it."""
    on = Machine(Seeded(seed))
    victim, sharers = staging(on)
    mm = victim.mm
    assert mm is not None
    on.add_process("other", [busy()], anon_mib=50)
    land = Userland(on, faults)
    if sabotage is not None:
        land.saboteur = sabotage(victim, sharers)
    with bound(land) as calls:
        on.engine.run(until_ns=on.engine.now_ns + MS)
        reaping = Reaping(land, calls, (victim.pid,))
        on.engine.run(until_ns=on.engine.now_ns + 60 * SECOND, max_steps=300_000)
    return reaping.outcomes[victim.pid], mm, sharers


def _fail_pidfds_of_sharer(times: int) -> Callable[[Process, tuple[Process, ...]], Saboteur]:
    """ENOMEM so many times in a row when a strike opens the sharer's pidfd; the first open is the look's."""

    def sabotage(_victim: Process, sharers: tuple[Process, ...]) -> Saboteur:
        opened: list[object] = []

        def fail(what: str, about: object) -> int | None:
            if what != "pidfd_open" or about != sharers[0].pid:
                return None
            opened.append(about)
            return errno.ENOMEM if 1 < len(opened) <= 1 + times else None

        return fail

    return sabotage


@pytest.mark.parametrize("times", [1, 3, 7, 9, 12])
def test_a_sharer_whose_pidfd_cannot_be_had_does_not_live_on(times: int) -> None:
    """However often it fails: the sharer is killed at last, and the memory is back when that is said."""
    for seed in range(20):
        outcome, mm, (sharer,) = _reap(seed, _shared, sabotage=_fail_pidfds_of_sharer(times))

        assert outcome.kind in (OutcomeKind.REAPED, OutcomeKind.EXITED), (seed, outcome)
        assert sharer.is_group_exit, seed
        assert mm.anon_pages <= _LEFT_PAGES, seed
        assert outcome.elapsed_ms is not None
        assert outcome.elapsed_ms < 1_000, seed


def test_a_sharer_that_can_never_be_looked_at_is_said_and_the_victim_killed_all_the_same() -> None:
    """After 200 ms the victim is signalled without; what its memory came to is not claimed."""
    for seed in range(20):
        outcome, mm, (sharer,) = _reap(seed, _shared, sabotage=_fail_pidfds_of_sharer(10_000))

        assert outcome.kind is OutcomeKind.UNREAPABLE, (seed, outcome)
        assert f"could not be looked at: {sharer.pid}" in outcome.reason
        assert outcome.elapsed_ms is not None  # it was signalled
        assert not sharer.is_group_exit
        assert mm.anon_pages > _LEFT_PAGES


def test_a_sharer_that_the_look_could_not_open_is_not_left_out() -> None:
    """A look of which that fails is made again: nobody is killed by a list of sharers that lacks one."""

    def sabotage(_victim: Process, sharers: tuple[Process, ...]) -> Saboteur:
        opened: list[object] = []

        def fail(what: str, about: object) -> int | None:
            if what != "pidfd_open" or about != sharers[0].pid:
                return None
            opened.append(about)
            return errno.ENOMEM if len(opened) == 1 else None

        return fail

    for seed in range(20):
        outcome, mm, (sharer,) = _reap(seed, _shared, sabotage=sabotage)

        assert outcome.sharers == (sharer.pid,), seed
        assert sharer.is_group_exit
        assert mm.anon_pages <= _LEFT_PAGES


def test_success_is_said_of_shared_memory_only_when_it_is_back() -> None:
    """All faults, the seeds that showed it and others: no sharer lives on behind an outcome that is a success."""
    for seed in (8, 17, 25, 0, 374, 376, *range(100, 160)):
        outcome, mm, (sharer,) = _reap(seed, _shared, faults=ALL_FAULTS)

        assert outcome.kind is not None
        if outcome.kind.is_success:
            assert mm.anon_pages <= _LEFT_PAGES, (seed, outcome)
            assert sharer.is_group_exit, (seed, outcome)


def test_a_deep_look_that_fails_makes_nothing_unreapable() -> None:
    """All faults, the seeds that showed it and others: what is pinned is lost or reaped, and so said."""
    for seed in (22, 72, *range(100, 160)):
        outcome, _mm, _ = _reap(seed, _pinned, faults=ALL_FAULTS)

        assert outcome.kind is not OutcomeKind.UNREAPABLE, (seed, outcome)


def test_a_worker_that_has_no_memory_to_start_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker never gets a pidfd: nobody says that the kernel refuses, it is replaced, the victim reaped."""
    problems: list[str | None] = []
    on_report = Crew.on_report

    def listen(crew: Crew, worker: int, report: Report, now_ns: int) -> None:
        if isinstance(report, Hello):
            problems.append(report.problem)
        on_report(crew, worker, report, now_ns)

    monkeypatch.setattr(Crew, "on_report", listen)

    def sabotage(victim: Process, _sharers: tuple[Process, ...]) -> Saboteur:
        first: list[object] = []

        def fail(what: str, about: object) -> int | None:
            if what != "pidfd_open" or about == victim.pid:
                return None
            first.append(about)
            return errno.ENOMEM if about == first[0] else None

        return fail

    outcome, mm, _ = _reap(1, _alone, sabotage=sabotage)

    assert problems == [None] * 3
    assert outcome.kind in (OutcomeKind.REAPED, OutcomeKind.EXITED)
    assert mm.anon_pages <= _LEFT_PAGES


def _alone(on: Machine) -> tuple[Process, tuple[Process, ...]]:
    return on.add_process("victim", [idle()], anon_mib=_SIZE_MIB), ()


def _leave_at(after_ns: int) -> Program:
    """A thread that ends after so long."""

    def program(on: Machine, thread: Thread) -> Steps:
        yield from on.nap(thread, after_ns)
        yield from thread_exit()(on, thread)

    return program


@pytest.mark.parametrize("at_ms", [30, 35, 40, 45, 50])
def test_a_thread_that_ends_in_the_middle_of_a_look_hides_no_sharer(at_ms: int) -> None:
    """What was compared with it since says nothing: whoever shares the memory is compared with another thread."""

    def staging(on: Machine) -> tuple[Process, tuple[Process, ...]]:
        victim = on.add_process("victim", [_leave_at(at_ms * MS), idle()], anon_mib=_SIZE_MIB)
        return victim, (on.add_process("sharer", [idle()], mm=victim.mm),)

    for seed in range(60):
        outcome, mm, (sharer,) = _reap(seed, staging)

        assert outcome.sharers == (sharer.pid,), (seed, outcome)
        assert mm.anon_pages <= _LEFT_PAGES, seed


def _part_that_cannot_be_reaped(on: Machine) -> tuple[Process, tuple[Process, ...]]:
    """8 of 25 MiB can be reaped; the victim goes at once, its sharer stands at the start of his exit."""
    area = Area(Kind.ANONYMOUS, "of a guest")
    area.notifier_blocks = True
    victim = on.add_process("victim", [idle()], anon_mib=8, areas=((area, 17),))
    return victim, (on.add_process("sharer", [stand_in(Gate("a server"))], mm=victim.mm),)


def test_what_a_killed_sharer_still_holds_is_not_said_to_be_back() -> None:
    """However small the victim was: he was seen to share it, so what he holds is the victim's."""
    for seed in range(40):
        outcome, mm, (sharer,) = _reap(seed, _part_that_cannot_be_reaped)

        assert mm.anon_pages > 8 << 8
        assert outcome.kind is OutcomeKind.UNREAPABLE, (seed, outcome)
        assert outcome.sharers == (sharer.pid,)


def _small_and_dumping(on: Machine) -> tuple[Process, tuple[Process, ...]]:
    victim = on.add_process("victim", [crash(dump_ns=SECOND)], anon_mib=24)
    return victim, (on.add_process("sharer", [stand_in(Gate("a server"))], mm=victim.mm),)


def test_the_memory_of_a_small_victim_is_reaped_through_its_killed_sharer() -> None:
    """The victim dumped core, so the first strike could not reap; then it went by itself, and the sharer could not."""
    for seed in range(40):
        outcome, mm, (sharer,) = _reap(seed, _small_and_dumping)

        assert sharer.is_group_exit
        assert mm.anon_pages <= 8 << 8, (seed, outcome)
        assert outcome.kind is not None
        assert outcome.kind.is_success


def _pinned_beside_two_that_share(on: Machine) -> tuple[Process, tuple[Process, ...]]:
    couple = on.add_process("one", [idle()], anon_mib=_SIZE_MIB)
    on.add_process("other", [idle()], mm=couple.mm)
    return _pinned(on)


def _pinned_beside_two_led_by_a_zombie(on: Machine) -> tuple[Process, tuple[Process, ...]]:
    couple = on.add_process("one", [thread_exit(), idle()], anon_mib=_SIZE_MIB)
    on.add_process("other", [idle()], mm=couple.mm)
    return _pinned(on)


@pytest.mark.parametrize("staging", [_pinned_beside_two_that_share, _pinned_beside_two_led_by_a_zombie])
def test_what_others_share_among_them_hides_no_pinned_memory(
    staging: Callable[[Machine], tuple[Process, tuple[Process, ...]]],
) -> None:
    """Added up twice, it made up for all that nobody owns: what was pinned was said to be taken up by others."""
    kinds = set()
    for seed in range(40):
        outcome, mm, _ = _reap(seed, staging)
        kinds.add(outcome.kind)

        assert outcome.kind is OutcomeKind.LOST or mm.anon_pages <= _LEFT_PAGES, (seed, outcome)

    assert OutcomeKind.LOST in kinds


def _bear_after(steps: int) -> Program:
    """A process that shares its memory with one that is born after so many steps."""

    def program(on: Machine, thread: Thread) -> Steps:
        for _ in range(steps):
            yield from on.user(thread)
        on.add_process("newborn", [idle()], mm=thread.process.mm)
        while True:
            yield from on.nap(thread, 10 * MS)

    return program


def test_a_sharer_that_is_born_after_the_look_is_not_taken_for_others() -> None:
    """Who holds what did not come back cannot be told once the victim has gone: then that is what is said."""
    kinds = set()
    for seed in range(200):

        def staging(on: Machine, steps: int = 1 + seed * 7 % 120) -> tuple[Process, tuple[Process, ...]]:
            return on.add_process("victim", [_bear_after(steps)], anon_mib=_SIZE_MIB), ()

        outcome, mm, _ = _reap(seed, staging)
        assert outcome.kind is not None
        kinds.add(outcome.kind)

        assert not outcome.kind.is_success or mm.anon_pages <= _LEFT_PAGES, (seed, outcome)

    assert OutcomeKind.UNREAPABLE in kinds


def test_a_look_that_is_lost_makes_nobody_refused() -> None:
    """All faults: whoever is there and may be killed is looked at again for a second."""
    refused = [
        (seed, outcome.reason)
        for seed in range(200)
        for outcome, _, _ in [_reap(seed, _alone, faults=ALL_FAULTS)]
        if outcome.kind is OutcomeKind.REFUSED
    ]

    assert refused == []
