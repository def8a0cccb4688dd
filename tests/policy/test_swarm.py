"""Swarms: a fork bomb and a parallel build end together; a login, a crowd of old processes and a single hog do not."""

from __future__ import annotations

import pytest

from oomreaper.model.decision import RankedProcess, Standing
from oomreaper.model.identity import Identity
from oomreaper.model.plan import KillUnit, Matcher, MatchField, MatchTest, Victims
from oomreaper.model.sample import ProcessSample
from oomreaper.policy.protection import Ourselves
from oomreaper.policy.ranking import Chooser, Context, Ranking
from oomreaper.policy.swarm import SMALLEST_SWARM, YOUNG_SECONDS, Swarm, find_swarm
from tests.policy.test_badness import GIB, MIB, OLD, PLAIN, TOTAL

OURSELVES = Ourselves(frozenset({100}), frozenset({90}), process_group=80, session=70)
CONTEXT = Context("machine", TOTAL, 15 * GIB, None, OURSELVES, None, frozenset[Identity]().__contains__)


def crowd(count: int = 40, *, group: int = 500, session: int = 400, age_seconds: float = 3.0) -> list[ProcessSample]:
    """Young processes of 100 MiB, all of it grown just now."""
    return [
        PLAIN._replace(
            identity=Identity(2000 + number + 1000 * group, 9000),
            comm=b"bomb",
            process_group=group,
            session=session,
            anon_bytes=100 * MIB,
            growth_bytes=100 * MIB,
            age_seconds=age_seconds,
        )
        for number in range(count)
    ]


SHELL = PLAIN._replace(identity=Identity(500, 1), comm=b"sh", process_group=500, session=400, anon_bytes=4 * MIB)


def swarm_of(young: list[ProcessSample], **changes: float) -> Swarm | None:
    """The swarm on a machine of 16 GiB where the best single process has no points."""
    best_points = changes.get("best_points", 0.0)
    return find_swarm(
        young, total_bytes=TOTAL, smallest_bytes=TOTAL / 100, best_points=best_points, own_group=80, own_session=70
    )


def rank(processes: list[ProcessSample], victims: Victims = Victims()) -> tuple[Chooser, Ranking]:  # noqa: B008 # immutable
    """A chooser and its ranking."""
    chooser = Chooser(victims)
    return chooser, chooser.rank(processes, CONTEXT)


def best_of(ranking: Ranking) -> RankedProcess:
    """The best one, which there must be."""
    best = ranking.best
    assert best is not None
    return best


def test_a_fork_bomb_ends_together() -> None:
    """Each is too small to be worth a kill; together they stand first, and all of them die."""
    bomb = crowd()
    chooser, ranking = rank([SHELL, *bomb])
    best = best_of(ranking)

    assert (best.standing, best.unit, best.unit_key) == (Standing.ELIGIBLE, KillUnit.GROUP, "500")
    assert best.process in bomb
    assert {process.identity for process in bomb} == {
        process.identity for process in chooser.members_of(best, [SHELL, *bomb])
    }
    assert best.process == chooser.members_of(best, bomb)[0]
    assert "a swarm: 40 processes of process group 500" in best.reasons[0]
    assert "3.9 GiB" in best.reasons[0]


def test_the_old_shell_that_leads_the_group_stays() -> None:
    """Only the young die, and those who were born since the choice die too."""
    bomb = crowd()
    born_since = bomb[0]._replace(identity=Identity(777_777, 9001), age_seconds=0.1)
    chooser, ranking = rank([SHELL, *bomb])
    members = chooser.members_of(best_of(ranking), [SHELL, *bomb, born_since])

    assert SHELL not in members
    assert born_since in members


def test_a_swarm_stands_before_an_idle_database() -> None:
    """Who caused the shortage pays for it, though the database is larger."""
    database = PLAIN._replace(identity=Identity(600, 1), anon_bytes=5 * GIB)
    _, ranking = rank([database, *crowd()])

    assert best_of(ranking).unit is KillUnit.GROUP
    assert ranking.ranked[1].process == database


def test_a_single_hog_goes_before_a_swarm() -> None:
    """One kill is tried before many, unless the many have twice the points."""
    hog = PLAIN._replace(identity=Identity(600, 1), anon_bytes=4 * GIB, growth_bytes=4 * GIB)
    _, ranking = rank([hog, *crowd()])

    assert (hog, KillUnit.PROCESS) == (best_of(ranking).process, best_of(ranking).unit)


def test_a_hog_among_the_young_goes_alone() -> None:
    """A swarm of which one member is nearly all is that member."""
    bomb = crowd()
    hog = bomb[0]._replace(anon_bytes=6 * GIB, growth_bytes=6 * GIB)
    _, ranking = rank([hog, *bomb[1:]])

    assert (hog, KillUnit.PROCESS) == (best_of(ranking).process, best_of(ranking).unit)


def test_fifteen_are_no_swarm() -> None:
    """A program that starts up is none."""
    assert swarm_of(crowd(SMALLEST_SWARM - 1)) is None
    assert swarm_of(crowd(SMALLEST_SWARM)) is not None


def test_the_old_are_no_swarm() -> None:
    """A browser's processes have been there for hours."""
    assert rank(crowd(age_seconds=YOUNG_SECONDS))[1].best is None


def test_a_swarm_that_holds_nothing_is_not_worth_it() -> None:
    """Together they must give back what one would have to."""
    small = [process._replace(anon_bytes=MIB, growth_bytes=MIB) for process in crowd()]

    assert swarm_of(small) is None


def test_young_ones_of_many_groups_are_no_swarm() -> None:
    """Services that start together have each their own group and session."""
    assert swarm_of([crowd(1, group=group, session=group)[0] for group in range(1000, 1040)]) is None


def test_a_bomb_that_leaves_its_group_is_found_by_its_session() -> None:
    """Of one session, with the old shell as its leader."""
    swarm = swarm_of([crowd(1, group=group, session=400)[0] for group in range(1000, 1040)])

    assert swarm is not None
    assert (swarm.unit, swarm.key, len(swarm.members)) == (KillUnit.SESSION, 400, 40)


def test_a_login_is_no_bomb() -> None:
    """A session whose leader is young itself starts up."""
    young = [crowd(1, group=group, session=400)[0] for group in range(1000, 1040)]
    leader = young[0]._replace(identity=Identity(400, 9000))

    assert swarm_of([leader, *young]) is None


@pytest.mark.parametrize(("group", "session"), [(0, 0), (80, 70)])
def test_groups_that_are_not_to_be_named(group: int, session: int) -> None:
    """0 is whatever lies outside of the pid namespace; our own group is left alone."""
    assert swarm_of(crowd(group=group, session=session)) is None


def test_of_two_swarms_the_one_with_more_points() -> None:
    """Whatever order they come in."""
    one, other = crowd(40, group=500), crowd(50, group=600)

    assert {600} == {swarm.key for swarm in (swarm_of(one + other), swarm_of(other + one)) if swarm is not None}


def test_the_protected_and_the_avoided_do_not_belong() -> None:
    """A never rule and an avoid rule hold in a swarm as elsewhere."""
    bomb = crowd()
    kept = bomb[0]._replace(comm=b"keep")
    spared = bomb[1]._replace(comm=b"spare")
    victims = Victims(
        never=(Matcher((MatchTest(MatchField.COMM, "keep", "comm = keep"),)),),
        avoid=(Matcher((MatchTest(MatchField.COMM, "spare", "comm = spare"),)),),
    )
    everyone = [kept, spared, *bomb[2:]]
    chooser, ranking = rank(everyone, victims)
    members = chooser.members_of(best_of(ranking), everyone)

    assert {process.identity for process in bomb[2:]} == {process.identity for process in members}


def test_a_swarm_to_be_avoided_is_the_last_resort() -> None:
    """It dies when nobody else is worth it, and not before anybody who is."""
    bomb = crowd()
    victims = Victims(avoid=(Matcher((MatchTest(MatchField.COMM, "bomb", "comm = bomb"),)),))
    chooser, ranking = rank(bomb, victims)
    best = best_of(ranking)
    bystander = PLAIN._replace(identity=Identity(600, 1), anon_bytes=GIB // 4)

    assert (best.standing, best.unit) == (Standing.AVOIDED, KillUnit.GROUP)
    assert len(chooser.members_of(best, bomb)) == 40
    assert best_of(rank([bystander, *bomb], victims)[1]).process == bystander


def test_a_swarm_may_be_chosen_in_any_order() -> None:
    """The same processes make the same swarm, with the same points, whatever order they come in."""
    bomb = [process._replace(anon_bytes=process.anon_bytes + number) for number, process in enumerate(crowd())]

    assert best_of(rank(bomb)[1]) == best_of(rank(bomb[::-1])[1])


def test_an_age_that_passes_does_not_lose_the_chosen() -> None:
    """A member that has grown old between choice and kill still dies as the one that was chosen."""
    bomb = crowd()
    chooser, ranking = rank(bomb)
    best = best_of(ranking)
    aged = [process._replace(age_seconds=OLD) for process in bomb]

    assert (best.process,) == chooser.members_of(best, aged)


@pytest.mark.parametrize("changes", [{"group": 80, "session": 70}, {"group": 0, "session": 0}])
def test_a_ranking_leaves_our_own_group_alone(changes: dict[str, int]) -> None:
    """What was started beside us is no swarm, nor is what comes from outside of the pid namespace."""
    assert rank(crowd(**changes))[1].best is None
