"""Who could be taken: how fresh what a decision rests on is, and who stays out."""

from __future__ import annotations

import pytest

from oomreaper.model.decision import RankedProcess, Standing
from oomreaper.model.identity import Identity
from oomreaper.model.plan import MACHINE, KillUnit, Matcher, MatchField, MatchTest, Victims
from oomreaper.model.sample import Profile, ScopeSample
from oomreaper.policy.ranking import Ranking
from oomreaper.reaper.jobs import JobKind
from oomreaper.watch.mind.candidates import why_nobody
from tests.watch.fakes import MS, SECOND, START_NS, World, make_plan

PROFILED = Victims(honour_oom_group=False, honour_xattrs=True)


def sample_of(world: World, at_ms: float = 0) -> ScopeSample:
    """The machine's numbers."""
    sample = world.machine.read(MACHINE, START_NS + int(at_ms * MS))
    assert sample is not None
    return sample


def decide(world: World, at_ms: float = 0) -> Ranking:
    """A decision."""
    return world.candidates.decide(sample_of(world, at_ms), START_NS + int(at_ms * MS))


def best_of(ranking: Ranking) -> int | None:
    """Whose turn it is."""
    return None if ranking.best is None else ranking.best.process.identity.pid


def test_the_first_decision_reads_everybody() -> None:
    """Nothing was kept ready: all are read, and the largest is found wherever it hides."""
    world = World()
    world.machine.born(100, 3000)
    world.machine.born(101, 6500, is_in_front=False)

    assert best_of(decide(world)) == 101
    assert world.machine.census(MACHINE).calls == ["sweep"]


def test_a_decision_in_a_kept_census_reads_the_front_only() -> None:
    """Known and recent: no sweep, whatever the number of processes."""
    world = World()
    world.machine.born(100, 9700)
    world.candidates.keep_ready(sample_of(world), START_NS, is_near=True)
    decide(world, 10)

    assert world.machine.census(MACHINE).calls == ["sweep", "look 0"]


@pytest.mark.parametrize(("is_imminent", "is_looked_at"), [(True, True), (False, False)])
def test_who_was_born_a_moment_ago_is_looked_at_before_the_threshold_is_crossed(
    is_imminent: bool,  # noqa: FBT001 - a table
    is_looked_at: bool,  # noqa: FBT001 - a table
) -> None:
    """The order of the leaders is made anew every 20 ms when a threshold is about to be crossed, else every 250."""
    world = World()
    world.machine.born(100, 800)
    world.candidates.keep_ready(sample_of(world), START_NS, is_near=True)
    world.machine.born(101, 4000)
    for step in (20, 40):
        sample = sample_of(world, step)
        world.candidates.keep_ready(sample, START_NS + step * MS, is_near=True, is_imminent=is_imminent)
    scouted = {job.pid for job, _ in world.workers.jobs.values() if job.kind is JobKind.SCOUT}

    assert (101 in scouted) is is_looked_at


def test_what_went_unseen_adds_up_and_is_taken_back_when_memory_comes() -> None:
    """Looks between two decisions use up the fall that each explains: what none explains is not forgotten."""
    world = World()
    world.machine.born(100, 800)
    world.machine.born(101, 20, is_in_front=False)
    world.machine.eaten_mib[MACHINE] = 8100
    for step in range(8):
        world.machine.bodies[101].mib = 20 + 150 * step
        world.candidates.keep_ready(sample_of(world, 100 * step), START_NS + 100 * step * MS, is_near=True)
    world.machine.eaten_mib[MACHINE] = 7700

    assert best_of(decide(world, 800)) == 100
    assert "sweep" not in world.machine.census(MACHINE).calls[1:]

    world.machine.eaten_mib[MACHINE] = 8100

    world.candidates.keep_ready(sample_of(world, 900), START_NS + 900 * MS, is_near=True)
    assert best_of(decide(world, 900)) == 101


def test_who_comes_first_only_after_others_were_read_is_read_too() -> None:
    """Stale numbers: those in front turn out small, and the next had become protected since: it is not chosen."""
    world = World()
    for pid in range(100, 130):
        world.machine.born(pid, 300)
    world.candidates.keep_ready(sample_of(world), START_NS, is_near=False)
    for body in world.machine.bodies.values():
        body.is_in_front = False
        body.mib = 5
        body.oom_score_adj = -1000
    world.machine.bodies[129].oom_score_adj = 0
    world.machine.bodies[129].mib = 400

    assert best_of(decide(world, 10)) == 129


def test_who_is_set_aside_stays_out_until_his_time_is_over() -> None:
    """And is back afterwards."""
    world = World()
    world.machine.born(100, 6000)
    world.machine.born(101, 3000)
    world.candidates.set_aside(Identity(100, 7), START_NS + SECOND)

    assert best_of(decide(world, 500)) == 101
    assert best_of(decide(world, 1_000)) == 100


def test_who_is_hunted_or_was_served_stays_out() -> None:
    """A second decision while the first victim is being reaped, and one after that, take others."""
    world = World()
    world.machine.born(100, 6000, on_kill="stuck")
    world.machine.born(101, 3700)
    world.run(5)
    hunted = best_of(decide(world, 6))
    world.run(1_500)
    world.machine.born(102, 1000)
    world.machine.readmit(Identity(100, 7))  # though its files may be read again
    served = best_of(decide(world, 2_000))

    assert hunted == 101
    assert 100 in world.machine.bodies
    assert served == 102


def test_ourselves_and_init_stay_out_whatever_they_hold() -> None:
    """The largest are init, ourselves and who started us."""
    world = World()
    for pid in (1, 2, 3, 4):
        world.machine.born(pid, 2000)
    world.machine.born(100, 200)

    assert best_of(decide(world)) == 100


def test_an_unknown_profile_is_awaited_for_20_ms() -> None:
    """The best one's preferences are unknown: it is asked for once, awaited so long, and then not any more."""
    world = World(make_plan(victims=PROFILED))
    world.machine.born(100, 6000, profile=None)
    best = decide(world).best
    assert best is not None

    awaited = [world.candidates.awaits_profile(best, START_NS + at * MS) for at in (0, 10, 19, 20, 30)]

    assert awaited == [True, True, True, False, False]
    assert world.machine.asked_profiles == [Identity(100, 7)]


def test_a_known_profile_or_none_wanted_is_not_awaited() -> None:
    """No rule looks at profiles: nothing is asked."""
    world = World()
    world.machine.born(100, 6000, profile=None)
    best = decide(world).best
    assert best is not None

    assert not world.candidates.awaits_profile(best, START_NS)
    assert world.machine.asked_profiles == []


def test_profiles_come_to_every_scope_that_knows_the_process() -> None:
    """One answer serves the machine and the group."""
    world = World(make_plan(victims=PROFILED))
    world.machine.groups = {"/a": 1000}
    world.machine.born(100, 500, group="/a", profile=None)
    for scope in (MACHINE, "/a"):
        sample = world.machine.read(scope, START_NS)
        assert sample is not None
        world.candidates.keep_ready(sample, START_NS, is_near=False)
    profile = Profile(exe=b"/bin/hog")
    world.candidates.on_profiled([(Identity(100, 7), profile), (Identity(101, 7), None)])

    assert [sample.profile for scope in (MACHINE, "/a") for sample in world.machine.census(scope).processes()] == [
        profile,
        profile,
    ]


def test_near_a_threshold_the_leaders_are_looked_at_and_calm_lets_them_go() -> None:
    """Three pidfds while it is near; none when all has been calm for a while."""
    world = World()
    for pid in range(100, 110):
        world.machine.born(pid, 300 + pid)
    world.candidates.keep_ready(sample_of(world), START_NS, is_near=True)
    near = sorted(body.identity.pid for body in world.handles.open_handles.values())
    world.run(100)
    world.candidates.keep_ready(sample_of(world, 30_000), START_NS + 30 * SECOND, is_near=False)

    assert near == [107, 108, 109]
    assert world.handles.open_handles == {}


def test_a_group_dies_as_a_whole_only_without_protected_members() -> None:
    """One member of -1000: the others die by name, and the group is not killed as one."""
    victims = Victims(unit=KillUnit.CGROUP, honour_oom_group=False, honour_xattrs=False)
    world = World(make_plan(victims=victims))
    for pid in (100, 101, 102):
        world.machine.born(pid, 3000, group="/a")
    best = decide(world).best
    assert best is not None
    whole = world.candidates.find_members(sample_of(world), best)
    world.machine.bodies[102].oom_score_adj = -1000
    later = decide(world, 10).best
    assert later is not None
    part = world.candidates.find_members(sample_of(world, 10), later)

    assert (len(whole[0]), whole[1]) == (3, True)
    assert (sorted(member.identity.pid for member in part[0]), part[1]) == ([100, 101], False)


def test_a_process_dies_alone() -> None:
    """Unit "process": itself, and that is all of it."""
    world = World()
    world.machine.born(100, 6000, process_group=50)
    world.machine.born(101, 10, process_group=50)
    best = decide(world).best
    assert best is not None

    assert world.candidates.find_members(sample_of(world), best) == ((best.process,), True)


def test_the_coldest_is_the_largest_that_does_not_grow() -> None:
    """Who grows uses its memory; nobody at all when all grow."""
    world = World()
    world.machine.born(100, 6000, growth_mib=50)
    world.machine.born(101, 2000)
    world.machine.born(102, 1000)
    decide(world)
    coldest = world.candidates.find_coldest(sample_of(world))
    for body in world.machine.bodies.values():
        body.growth_mib = 1
    decide(world, 10)

    assert coldest == Identity(101, 7)
    assert world.candidates.find_coldest(sample_of(world, 10)) is None


@pytest.mark.parametrize(
    ("traits", "expected"),
    [({}, Standing.ELIGIBLE), ({"oom_score_adj": -1000}, Standing.PROTECTED), ({"mib": 5}, Standing.TOO_SMALL)],
)
def test_one_who_is_being_taken_can_be_judged_again(traits: dict[str, object], expected: Standing) -> None:
    """By what it is now, though it is set aside for all others; who has gone is not judged."""
    world = World()
    body = world.machine.born(100, 6000)
    decide(world)
    world.candidates.set_aside(body.identity, START_NS + SECOND)
    for name, value in traits.items():
        setattr(body, name, value)
    judged = world.candidates.judge_again(sample_of(world, 1), body.identity, START_NS + MS)
    gone = world.candidates.judge_again(sample_of(world, 1), Identity(100, 8), START_NS + MS)

    assert judged is not None
    assert judged.standing is expected
    assert gone is None


def test_a_never_rule_of_a_new_plan_counts_at_once() -> None:
    """After a reload the next ranking goes by the new preferences."""
    world = World()
    world.machine.born(100, 6000)
    world.machine.born(101, 3000, comm=b"other")
    before = best_of(decide(world))
    never = Matcher((MatchTest(MatchField.COMM, "^hog$", "hog"),))
    world.candidates.adopt(make_plan(victims=Victims(never=(never,), honour_oom_group=False, honour_xattrs=False)))

    assert (before, best_of(decide(world, 10))) == (100, 101)


def _ranking(count: int, protected: int) -> Ranking:
    world = World()
    process = world.machine.born(100, 1).sample()
    return Ranking((RankedProcess(process, Standing.PROTECTED, 0, ()),), count, 0, protected)


def test_why_nobody_tells_one_reason_from_another_whatever_the_numbers() -> None:
    """Another number of protected processes is no news; that somebody is too small is."""
    reasons = [why_nobody(_ranking(*numbers))[0] for numbers in ((0, 0), (5, 5), (9, 9), (9, 8))]

    assert reasons == ["nobody", "protected", "protected", "too small"]
    assert "all 9 processes are protected" in why_nobody(_ranking(9, 9))[1]
