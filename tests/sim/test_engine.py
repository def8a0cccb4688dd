"""Steps and time: one source of chance, bands, timers, and the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from oomreaper.sim.choice import Recorded, Replayed, Seeded
from oomreaper.sim.engine import Band, Ending, Engine, Rest, Signal, Sleep, TraceLine
from oomreaper.sim.parameters import MS
from oomreaper.sim.programs import busy, hog, idle
from tests.sim.making import go_on, machine

if TYPE_CHECKING:
    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.engine import Steps


def _walk(steps: int) -> Steps:
    for _ in range(steps):
        yield


def _trace(chooser: Chooser) -> list[TraceLine]:
    engine = Engine(chooser)
    engine.trace = []
    for name in "abc":
        engine.spawn(name, _walk(5))
    engine.run()
    return engine.trace


def test_the_same_seed_does_the_same_and_another_does_not() -> None:
    """A run is its seed: step for step, time for time."""
    assert _trace(Seeded(7)) == _trace(Seeded(7))
    assert _trace(Seeded(7)) != _trace(Seeded(8))


def test_a_recorded_run_is_replayed_from_its_list() -> None:
    """The list of choices is the schedule."""
    recorded = Recorded(Seeded(7))

    first = _trace(recorded)

    assert _trace(Replayed(recorded.choices)) == first
    assert all(choice < count for choice, count in zip(recorded.choices, recorded.counts, strict=True))


def test_every_list_is_a_schedule() -> None:
    """One that is too short, or has numbers that are too large, runs to its end all the same: a shrinker needs that."""
    assert len(_trace(Replayed([]))) == len(_trace(Replayed([99, 1, 99]))) == 18


def test_a_whole_machine_is_deterministic() -> None:
    """Tasks, page faults, timers and an exit: the same trace twice."""

    def run() -> list[object]:
        on = machine(5)
        on.engine.trace = []
        victim = on.add_process("victim", [idle(), busy()], anon_mib=200)
        on.add_process("hog", [hog(300, pause_ns=MS)])
        on.engine.call_later(MS, lambda: on.kill(victim))
        go_on(on, 0.2, max_steps=5_000)
        return list(on.engine.trace)

    assert run() == run()


def test_looking_changes_nothing() -> None:
    """With a trace and a check at every step, the run is the same: the same steps at the same time."""

    def run(*, is_watched: bool) -> tuple[int, int, int]:
        on = machine(5, swap_bytes=1 << 30)
        if is_watched:
            on.engine.trace = []
            on.engine.every_step.append(lambda: None)
        victim = on.add_process("victim", [idle(), busy()], anon_mib=200)
        on.add_process("hog", [hog(300, pause_ns=MS)])
        on.add_kernel_thread("fifo", busy(), band=Band.FIFO)
        on.add_process("slow", [busy()], band=Band.IDLE)
        on.engine.call_later(MS, lambda: on.kill(victim))
        go_on(on, 0.2, max_steps=5_000)
        return on.engine.steps, on.engine.now_ns, on.allocator.free

    assert run(is_watched=True) == run(is_watched=False)


def test_everybody_gets_on_under_chance() -> None:
    """Of ten that always want to run, each gets a tenth of the steps, within a fifth of it."""
    engine = Engine(Seeded(3))
    turns = dict.fromkeys(range(10), 0)

    def spin(number: int) -> Steps:
        while True:
            turns[number] += 1
            yield

    for number in turns:
        engine.spawn(str(number), spin(number))
    engine.run(max_steps=20_000)

    assert all(1_600 <= count <= 2_400 for count in turns.values())


def test_a_fifo_actor_keeps_one_cpu_and_two_keep_both() -> None:
    """Of two CPUs one is left to the rest by one FIFO spinner, and none by two."""

    def count_steps(spinners: int) -> int:
        engine = Engine(Seeded(1), cpus=2)
        mine = [0]

        def spin() -> Steps:
            while True:
                yield

        def ordinary() -> Steps:
            while True:
                mine[0] += 1
                yield

        for number in range(spinners):
            engine.spawn(f"fifo{number}", spin(), band=Band.FIFO)
        engine.spawn("ordinary", ordinary())
        engine.run(max_steps=1_000)
        return mine[0]

    assert 400 <= count_steps(1) <= 600
    assert count_steps(2) == 0


def test_an_idle_actor_runs_only_when_nobody_else_does() -> None:
    """SCHED_IDLE starves beside one who always runs, and runs when that one has gone."""
    engine = Engine(Seeded(1))
    idler = engine.spawn("idler", _walk(3), band=Band.IDLE)
    engine.spawn("walker", _walk(1_000))

    engine.run(max_steps=1_000)
    is_over_before = idler.is_over
    engine.run()

    assert not is_over_before
    assert idler.is_over


def test_time_jumps_when_all_sleep() -> None:
    """An hour of sleep is two steps."""
    engine = Engine(Seeded(1))

    def sleep() -> Steps:
        yield Sleep(3_600_000 * MS)

    engine.spawn("sleeper", sleep())

    ending = engine.run()

    assert (ending, engine.steps) == (Ending.QUIET, 2)
    assert engine.now_ns >= 3_600_000 * MS


def test_a_timer_that_came_too_late_wakes_nobody_a_second_time() -> None:
    """Woken by the signal, the sleeper's time-out does not fire in its next sleep."""
    engine = Engine(Seeded(1))
    signal = Signal("it", timeout_ns=10 * MS)
    seen: list[bool] = []

    def sleep() -> Steps:
        actor = engine.current
        assert actor is not None
        yield signal
        seen.append(actor.was_timed_out)
        yield Sleep(100 * MS)
        seen.append(engine.now_ns >= 100 * MS)

    engine.spawn("sleeper", sleep())
    engine.call_later(MS, signal.wake_all)
    engine.run()

    assert seen == [False, True]


@pytest.mark.parametrize(("wait", "expected"), [(Signal("it"), Ending.STUCK), (Rest(), Ending.QUIET)])
def test_a_run_in_which_nothing_can_happen_ends(wait: Signal, expected: Ending) -> None:
    """All asleep, no timer: that is the end, and whoever waits for something is stuck; who rests is not."""
    engine = Engine(Seeded(1))

    def sleep() -> Steps:
        yield wait

    engine.spawn("sleeper", sleep())

    assert engine.run() is expected


def test_what_a_step_may_yield_is_checked() -> None:
    """Anything but None, a number or a Wait is a fault of the program, named with its actor."""
    engine = Engine(Seeded(1))

    def wrong() -> Steps:
        yield "soon"

    engine.spawn("wrong", wrong())

    with pytest.raises(TypeError, match="wrong yielded 'soon'"):
        engine.run()
