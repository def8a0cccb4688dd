"""The real crew and the real workers on the model: the outcomes that they have on the real kernel."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.sim.choice import Recorded, Replayed, Seeded
from oomreaper.sim.engine import Band, Ending
from oomreaper.sim.groups import Freezer
from oomreaper.sim.linux.bind import bound
from oomreaper.sim.machine import Machine
from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.parameters import MS, SECOND
from oomreaper.sim.programs import (
    Gate,
    busy,
    crash,
    hold_mmap_lock,
    idle,
    pin_memory_of,
    stand_in,
    thread_exit,
)
from oomreaper.sim.reaping import Reaping
from oomreaper.sim.userland import ALL_FAULTS, NO_FAULTS, Faults, Userland

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.tasks import Process

    Staging = Callable[[Machine], Process]

_SIZE_MIB = 256
_REAPED, _EXITED = OutcomeKind.REAPED, OutcomeKind.EXITED
_LOST, _UNREAPABLE = OutcomeKind.LOST, OutcomeKind.UNREAPABLE


def _healthy(on: Machine) -> Process:
    return on.add_process("victim", [idle()], anon_mib=_SIZE_MIB)


def _running(on: Machine) -> Process:
    return on.add_process("victim", [busy(), busy(), idle()], anon_mib=_SIZE_MIB)


def _in_d(on: Machine) -> Process:
    return on.add_process("victim", [stand_in(Gate("a dead server"))], anon_mib=_SIZE_MIB)


def _locked(on: Machine) -> Process:
    return on.add_process("victim", [hold_mmap_lock(Gate("a frozen file system"))], anon_mib=_SIZE_MIB)


def _locked_for_a_while(on: Machine) -> Process:
    gate = Gate("a frozen file system")
    on.engine.call_later(450 * MS, gate.open)
    return on.add_process("victim", [hold_mmap_lock(gate)], anon_mib=_SIZE_MIB)


def _shared(on: Machine) -> Process:
    victim = on.add_process("victim", [stand_in(Gate("a dead server"))], anon_mib=_SIZE_MIB)
    on.add_process("sharer", [idle()], mm=victim.mm)
    return victim


def _frozen(on: Machine) -> Process:
    freezer = Freezer("/box")
    victim = on.add_process("victim", [busy()], anon_mib=_SIZE_MIB, freezer=freezer)
    on.engine.call_later(1, lambda: on.freeze(freezer))
    return victim


def _pinned(on: Machine) -> Process:
    victim = on.add_process("victim", [idle()], anon_mib=_SIZE_MIB)
    mm = victim.mm
    on.add_process("reader", [pin_memory_of(lambda: mm, Gate("a fault that is not served"))])
    return victim


def _zombie_led(on: Machine) -> Process:
    return on.add_process("victim", [thread_exit(), stand_in(Gate("a dead server"))], anon_mib=_SIZE_MIB)


def _dumping(on: Machine) -> Process:
    return on.add_process("victim", [crash(dump_ns=5 * SECOND)], anon_mib=_SIZE_MIB)


def _noticed(on: Machine) -> Process:
    area = Area(Kind.ANONYMOUS, "of a guest")
    area.notifier_blocks = True
    return on.add_process("victim", [stand_in(Gate("a device"))], areas=((area, _SIZE_MIB),))


def _starved(on: Machine) -> Process:
    for _ in range(3):
        on.add_process("busy", [busy()])
    return on.add_process("victim", [busy()], anon_mib=_SIZE_MIB, band=Band.IDLE)


def _reap(
    staging: Staging, chooser: Chooser, faults: Faults = NO_FAULTS
) -> tuple[Machine, Reaping, Process, Outcome, Ending]:
    on = Machine(chooser)
    victim = staging(on)
    bystander = on.add_process("bystander", [busy()], anon_mib=50)
    land = Userland(on, faults)
    with bound(land) as calls:
        on.engine.run(until_ns=on.engine.now_ns + MS)
        reaping = Reaping(land, calls, (victim.pid,))
        ending = on.engine.run(until_ns=on.engine.now_ns + 60 * SECOND, max_steps=100_000)
    assert not bystander.is_group_exit
    return on, reaping, victim, reaping.outcomes[victim.pid], ending


@pytest.mark.parametrize(
    ("staging", "allowed"),
    [
        (_healthy, {_REAPED, _EXITED}),
        (_running, {_REAPED, _EXITED}),
        (_in_d, {_REAPED}),
        (_locked, {_UNREAPABLE}),
        (_locked_for_a_while, {_REAPED, _EXITED}),
        (_shared, {_REAPED}),
        (_frozen, {_REAPED}),
        (_pinned, {_REAPED, _LOST}),
        (_zombie_led, {_REAPED}),
        (_dumping, {_REAPED, _EXITED}),
        (_noticed, {_UNREAPABLE}),
        (_starved, {_REAPED}),
    ],
)
def test_each_victim_has_the_outcome_that_it_has_on_the_real_kernel(
    staging: Staging, allowed: set[OutcomeKind]
) -> None:
    """As tests/real and the contract have it, under 15 schedules; and what is said of memory is so."""
    seen: Counter[OutcomeKind | None] = Counter()
    for seed in range(15):
        _on, _reaping, victim, outcome, ending = _reap(staging, Seeded(seed))
        seen[outcome.kind] += 1
        mm = victim.mm
        assert ending is Ending.DONE
        assert outcome.kind in allowed, (seed, outcome)
        if outcome.kind is _REAPED and mm is not None:
            assert mm.reapable_pages * 4096 <= 16 << 20, seed
    assert sum(seen.values()) == 15


def test_mmap_lock_is_given_up_in_ten_attempts_and_about_a_second() -> None:
    """A worker is lost for each attempt; the record says what it stood on, and where the victim's threads stand."""
    on, reaping, victim, outcome, _ending = _reap(_locked, Seeded(3))

    assert outcome.attempts == 10
    assert outcome.elapsed_ms is not None
    assert 900 <= outcome.elapsed_ms <= 1_300
    assert "mmap_lock is held" in outcome.reason
    assert reaping.crew is not None
    assert reaping.crew.statistics().workers_lost >= 10
    assert sum(each.comm == b"oomreaper/reap" for _, each, _ in on.kills) >= 10
    assert outcome.threads[0].wchan == "__vma_start_write"
    assert victim.mm is not None
    assert victim.mm.anon_pages > 0


def test_a_frozen_victim_is_let_out_of_its_freezer() -> None:
    """After the reap it is moved to the root group, thaws and goes; its group stays frozen."""
    on = Machine(Seeded(3))
    victim = _frozen(on)
    land = Userland(on)
    with bound(land) as calls:
        on.engine.run(until_ns=on.engine.now_ns + MS)
        reaping = Reaping(land, calls, (victim.pid,), stop_when_done=False)
        on.engine.run(until_ns=on.engine.now_ns + SECOND)

    assert reaping.outcomes[victim.pid].kind is _REAPED
    assert victim.is_waited
    assert on.freezers["/box"].is_frozen


def test_a_process_with_oom_score_adj_minus_1000_is_refused() -> None:
    """Nobody is signalled."""

    def protected(on: Machine) -> Process:
        return on.add_process("victim", [idle()], anon_mib=_SIZE_MIB, oom_score_adj=-1000)

    on, _reaping, _victim, outcome, _ending = _reap(protected, Seeded(1))

    assert outcome.kind is OutcomeKind.REFUSED
    assert not on.kills


@pytest.mark.parametrize("staging", [_healthy, _in_d, _locked, _shared, _frozen, _pinned, _zombie_led, _dumping])
def test_with_all_faults_an_outcome_comes_and_nobody_else_is_killed(staging: Staging) -> None:
    """EMFILE, ENOMEM, EAGAIN, dead and slow workers, pidfds that do not arrive: 10 seeds, pids recycled at once."""
    for seed in range(10):

        def stage(on: Machine) -> Process:
            on.recycles_pids = True
            victim = staging(on)
            on.hooks.waited.append(lambda _process: _be_born(on))
            return victim

        on, _reaping, victim, _outcome, ending = _reap(stage, Seeded(seed), ALL_FAULTS)
        assert ending is Ending.DONE, seed
        strangers = [
            each.name
            for _, each, _ in on.kills
            if each is not victim and each.comm not in (b"oomreaper/reap", b"sharer")
        ]
        assert strangers == [], seed


def _be_born(on: Machine) -> None:
    on.add_process("stranger", [idle()], anon_mib=1)


def test_a_run_of_our_code_is_replayed_by_its_list() -> None:
    """Faults, workers, page by page: the same trace from the same choices."""

    def run(chooser: Chooser) -> tuple[object, ...]:
        on, reaping, _victim, outcome, _ending = _reap(_in_d, chooser, ALL_FAULTS)
        return on.engine.steps, on.engine.now_ns, outcome, tuple(reaping.events)

    recorded = Recorded(Seeded(11))

    first = run(recorded)

    assert run(Replayed(recorded.choices)) == first
    assert run(Seeded(11)) == first
