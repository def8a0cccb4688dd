"""Looks ahead of need: fresh, few, and each pidfd closed once."""

from __future__ import annotations

from oomreaper.model.identity import Identity
from oomreaper.reaper.jobs import JobKind, Scouted
from tests.reaper.fakes import scouting
from tests.watch.fakes import MS, START_NS, World


def life(pid: int) -> Identity:
    """As the fakes bear it."""
    return Identity(pid, 7)


def make_world(count: int = 20) -> World:
    """Some processes and no shortage; nothing is asked of the watcher."""
    world = World()
    for pid in range(100, 100 + count):
        world.machine.born(pid, 10)
    return world


def answer_all(world: World, now_ns: int) -> None:
    """Whoever is being looked at is seen."""
    for handle, body in list(world.handles.open_handles.items()):
        world.scouts.on_scouted(handle, Scouted(scouting(body.identity.pid)), now_ns)


def test_a_look_that_was_taken_ahead_is_there_when_it_is_needed() -> None:
    """It comes with its pidfd, which is the taker's from then on."""
    world = make_world()
    world.scouts.want([life(100)], START_NS)
    before = world.scouts.take(life(100), START_NS)
    answer_all(world, START_NS)

    looked = world.scouts.take(life(100), START_NS + 900 * MS)

    assert before is None
    assert looked is not None
    assert looked.scouting == scouting(100)
    assert len(world.scouts) == 0
    assert list(world.handles.open_handles) == [looked.handle]


def test_an_old_look_is_not_decided_upon() -> None:
    """After a second it must be taken anew, with the same pidfd."""
    world = make_world()
    world.scouts.want([life(100)], START_NS)
    answer_all(world, START_NS)

    late_ns = START_NS + 1_001 * MS
    looked = world.scouts.take(life(100), late_ns)

    assert looked is None
    assert world.scouts.ask(life(100), late_ns)
    assert world.handles.opened == 1


def test_who_is_being_looked_at_again_is_not_handed_out() -> None:
    """Its answer would find its handle closed, or that of somebody else."""
    world = make_world()
    world.scouts.want([life(100)], START_NS)
    answer_all(world, START_NS)
    world.scouts.want([life(100)], START_NS + 600 * MS)

    assert world.scouts.take(life(100), START_NS + 600 * MS) is None


def test_a_look_is_renewed_before_it_is_old() -> None:
    """Wanted again within half a second: nothing is asked; after it: a new look."""
    world = make_world()

    def asked() -> int:
        return sum(job.kind is JobKind.SCOUT for job, _ in world.workers.jobs.values())

    world.scouts.want([life(100)], START_NS)
    answer_all(world, START_NS)
    first = asked()
    world.scouts.want([life(100)], START_NS + 400 * MS)
    second = asked()
    world.scouts.want([life(100)], START_NS + 500 * MS)

    assert (first, second, asked()) == (1, 1, 2)


def test_looks_ahead_never_go_beyond_the_limit() -> None:
    """With all places taken by those who are being looked at, nobody more is looked at ahead of need."""
    world = make_world()
    world.scouts.want([life(pid) for pid in range(100, 120)], START_NS)

    assert len(world.scouts) == 12
    assert len(world.handles.open_handles) == 12


def test_a_victim_is_looked_at_whatever_the_limit() -> None:
    """All places are taken by those who are being looked at: a victim that must be looked at now is, besides."""
    world = make_world()
    world.scouts.want([life(pid) for pid in range(100, 112)], START_NS)

    assert world.scouts.ask(life(112), START_NS)
    assert len(world.scouts) == 13


def test_the_place_of_whom_nobody_asked_for_longest_is_given_away() -> None:
    """Room is made by who was wanted longest ago; its pidfd is closed."""
    world = make_world()
    for number in range(12):
        world.scouts.want([life(100 + number)], START_NS + number * MS)
    answer_all(world, START_NS + 20 * MS)

    world.scouts.want([life(112)], START_NS + 21 * MS)

    assert len(world.scouts) == 12
    assert world.scouts.take(life(100), START_NS + 21 * MS) is None
    assert world.scouts.take(life(101), START_NS + 21 * MS) is not None


def test_whom_nobody_speaks_of_any_more_is_let_go_of() -> None:
    """After five seconds, and when nobody is wanted at all: a calm machine keeps no pidfds."""
    world = make_world()
    world.scouts.want([life(100), life(101)], START_NS)
    answer_all(world, START_NS)

    world.scouts.want([], START_NS + 5_001 * MS)

    assert len(world.scouts) == 0
    assert world.handles.open_handles == {}


def test_who_has_gone_cannot_be_asked() -> None:
    """No pidfd, no look; nothing is kept."""
    world = make_world()

    assert not world.scouts.ask(life(999), START_NS)
    assert len(world.scouts) == 0


def test_an_answer_about_nobody_is_nobodys() -> None:
    """The look of one who was let go of finds no taker."""
    world = make_world()

    assert world.scouts.on_scouted(77, Scouted(None), START_NS) is None


def test_letting_go_of_all_closes_all() -> None:
    """At the end each pidfd is closed once, whoever is still being looked at."""
    world = make_world()
    world.scouts.want([life(100), life(101)], START_NS)
    world.scouts.close()

    assert world.handles.opened == world.handles.closed == 2
