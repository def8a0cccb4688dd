"""What one part has is brought to the other, in the same turn."""

from __future__ import annotations

from oomreaper.reaper.jobs import JobKind, UnitKilled
from tests.watch.fakes import KILL, MS, SECOND, World, make_plan


def test_a_look_that_fails_in_the_same_turn_is_brought_in_the_same_turn() -> None:
    """All workers are found dead when the look is handed out: the next step does not wait for a deadline."""
    world = World(make_plan(KILL))
    world.machine.born(100, 9_700)
    world.workers.assign = lambda *_: False  # type: ignore[method-assign] # whoever is needed is gone
    world.team.on_time(world.now_ns)

    assert world.crew.take_scouted() == []
    assert any("it was gone when it was needed" in told.text for told in world.voice.told)


def test_what_died_with_a_victim_is_told_and_who_had_gone_is_no_news() -> None:
    """A unit's answer in words; nothing at all when nobody was left to be signalled."""
    world = World()
    answers = [UnitKilled((), (), 1, 0), UnitKilled((), ("5 (x): EPERM",), 1, 0), UnitKilled((), (), 2, 3)]
    world.crew.take_unit_killed = lambda: [answers.pop(0)] if answers else []  # type: ignore[method-assign] # answers
    for _ in range(4):
        world.team.collect(world.now_ns)

    assert [told.text for told in world.voice.of("warning")] == [
        "0 more processes were killed with it; left out: 5 (x): EPERM",
        "3 more processes were killed with it",
    ]


def test_driving_goes_on_until_it_is_done_or_its_time_is_over() -> None:
    """Whoever drives says how to wait; the deadline of the parts bounds each wait."""
    world = World(make_plan(KILL))
    world.machine.born(100, 9_700)
    waits: list[int] = []

    def wait(wait_ns: int | None) -> int:
        waits.append(wait_ns or 0)
        world.now_ns += max(MS, wait_ns or 0)
        return world.now_ns

    looked = world.team.drive(lambda: world.watcher.looks >= 3, wait, world.now_ns + 60 * SECOND)
    never = world.team.drive(lambda: False, wait, world.now_ns + SECOND)

    assert looked
    assert not never
    assert max(waits) <= 60 * SECOND


def test_the_next_deadline_is_the_nearest_of_all() -> None:
    """A look, a hunt or a worker: whoever is first."""
    world = World(make_plan(KILL))
    world.machine.born(100, 9_700, on_look="silent")
    world.run(5)
    jobs = [job.kind for job, _ in world.workers.jobs.values()]
    deadline_ns = world.team.next_deadline_ns()

    assert JobKind.SCOUT in jobs
    assert deadline_ns is not None
    assert deadline_ns <= world.now_ns + 100 * MS
