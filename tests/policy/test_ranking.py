"""Who is chosen: stories that users tell, everybody who is protected, and what holds for any processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.decision import RankedProcess, Standing
from oomreaper.model.identity import Identity
from oomreaper.model.plan import KillUnit, Matcher, MatchField, MatchTest, Victims
from oomreaper.model.sample import ProcessSample, Profile, Wish
from oomreaper.policy import badness
from oomreaper.policy.protection import HIGHEST_PID, Ourselves, refuse_pid
from oomreaper.policy.ranking import Chooser, Context, Ranking
from tests.policy.test_badness import GIB, MIB, OLD, PLAIN, TOTAL

if TYPE_CHECKING:
    from collections.abc import Callable

OURSELVES = Ourselves(frozenset({100, 101}), frozenset({1, 90}), process_group=80, session=70)


def nobody(_identity: Identity) -> bool:
    """Nobody was served before."""
    return False


CONTEXT = Context("machine", TOTAL, 15 * GIB, None, OURSELVES, None, nobody)


def matcher(field: MatchField, regex: str) -> Matcher:
    """A matcher of one test, written "field = regex"."""
    return Matcher((MatchTest(field, regex, f"{field} = {regex}"),))


def sample(pid: int, anon_bytes: int = GIB, **changes: object) -> ProcessSample:
    """An old idle process; ``changes`` are fields of ProcessSample."""
    return PLAIN._replace(identity=Identity(pid, 5000), anon_bytes=anon_bytes, **changes)  # type: ignore[arg-type] # fields


def rank(*processes: ProcessSample, victims: Victims = Victims(), context: Context = CONTEXT) -> Ranking:  # noqa: B008 # immutable
    """The ranking by a fresh chooser."""
    return Chooser(victims).rank(processes, context)


def only(ranking: Ranking) -> RankedProcess:
    """The one process of a ranking of one."""
    (ranked,) = ranking.ranked
    return ranked


class Story(NamedTuple):
    """What users tell: who is there, and who is to die (None: nobody)."""

    claim: str
    processes: tuple[ProcessSample, ...]
    expected_pid: int | None
    victims: Victims = Victims()


STORIES = [
    Story(
        "a browser's helper with a raised adjustment is spared for the hog",
        (sample(500, 5 * MIB, oom_score_adj=300), sample(600, 5 * GIB)),
        600,
        Victims(smallest_percent=0.0),
    ),
    Story(
        "young, growing, raised to 1000 and preferred: still not before the hog",
        (
            sample(500, 5 * MIB, comm=b"tab", oom_score_adj=1000, growth_bytes=5 * MIB, age_seconds=1.0),
            sample(600, 5 * GIB),
        ),
        600,
        Victims(prefer=(matcher(MatchField.COMM, "tab"),), smallest_percent=0.0),
    ),
    Story(
        "a tab before a document of the same size",
        (sample(500, GIB, oom_score_adj=300), sample(600, GIB)),
        500,
    ),
    Story(
        "a database at -900 is spared for anybody who is worth a kill",
        (sample(500, 8 * GIB, oom_score_adj=-900), sample(600, 200 * MIB)),
        600,
    ),
    Story(
        "a database at -900 dies when nobody else is worth it",
        (sample(500, 8 * GIB, oom_score_adj=-900), sample(600, 20 * MIB)),
        500,
    ),
    Story(
        "a database at -1000 never does",
        (sample(500, 8 * GIB, oom_score_adj=-1000), sample(600, 20 * MIB)),
        None,
    ),
    Story(
        "the preferred before one twice its size",
        (sample(500, GIB, comm=b"java"), sample(600, 2 * GIB)),
        500,
        Victims(prefer=(matcher(MatchField.COMM, "^java$"),)),
    ),
    Story(
        "the avoided after one that is much smaller",
        (sample(500, 8 * GIB, comm=b"Xorg"), sample(600, 200 * MIB)),
        600,
        Victims(avoid=(matcher(MatchField.COMM, "^Xorg$"),)),
    ),
    Story(
        "the avoided when the others give back too little",
        (sample(500, 8 * GIB, comm=b"Xorg"), sample(600, 20 * MIB)),
        500,
        Victims(avoid=(matcher(MatchField.COMM, "^Xorg$"),)),
    ),
    Story(
        "of equals, the one that grew 500 MB in 10 s",
        (sample(500, 2 * GIB), sample(600, 2 * GIB, growth_bytes=500 * MIB)),
        600,
    ),
    Story(
        "also when the idle one is a little larger",
        (sample(500, 2500 * MIB), sample(600, 2048 * MIB, growth_bytes=500 * MIB)),
        600,
    ),
    Story(
        "a newcomer that grew to 4 GB in 10 s before an idle database of 8 GB",
        (sample(500, 8 * GIB), sample(600, 4 * GIB, growth_bytes=4 * GIB, age_seconds=10.0)),
        600,
    ),
    Story(
        "an idle hog of 8 GB before a program that starts up",
        (sample(500, 8 * GIB), sample(600, 600 * MIB, growth_bytes=600 * MIB, age_seconds=5.0)),
        500,
    ),
    Story(
        "of equals, the younger",
        (sample(500, GIB), sample(600, GIB, age_seconds=60.0)),
        600,
    ),
    Story(
        "memory that is swapped out counts",
        (sample(500, GIB), sample(600, 100 * MIB, swap_bytes=3 * GIB)),
        600,
    ),
    Story("nobody is there", (), None),
    Story("everybody is too small", (sample(500, MIB), sample(600, 2 * MIB)), None),
    Story(
        "everybody is protected",
        (sample(1, 8 * GIB), sample(100, 8 * GIB), sample(500, 8 * GIB, comm=b"keep")),
        None,
        Victims(never=(matcher(MatchField.COMM, "keep"),)),
    ),
    Story(
        "root's processes are spared by a rule on the user",
        (sample(500, 8 * GIB, uid=0), sample(600, 300 * MIB, uid=1000)),
        600,
        Victims(never=(matcher(MatchField.USER, "^0$"),)),
    ),
    Story(
        "a name that looks like the end of /proc/PID/stat is a name",
        (sample(500, 2 * GIB, comm=b"foo) Z "), sample(600, GIB, comm=b"\xff\n\x1b[2J")),
        500,
    ),
    Story(
        "a name within a name protects nobody",
        (sample(500, 2 * GIB, comm=b"x\nsshd\n"), sample(600, GIB)),
        500,
        Victims(never=(matcher(MatchField.COMM, "^sshd$"),)),
    ),
]


@pytest.mark.parametrize("story", STORIES, ids=[story.claim for story in STORIES])
def test_stories(story: Story) -> None:
    """Each is told by its name, and holds whatever order the processes come in."""
    there = Chooser(story.victims).rank(story.processes, CONTEXT).best
    back = Chooser(story.victims).rank(story.processes[::-1], CONTEXT).best

    assert story.expected_pid == (None if there is None else there.process.identity.pid)
    assert there == back


SET_ASIDE = CONTEXT._replace(is_set_aside=Identity(500, 5000).__eq__)


@pytest.mark.parametrize(
    ("process", "context", "reason"),
    [
        (sample(1), CONTEXT, "pid 1 is init"),
        (sample(100), CONTEXT, "oomreaper itself"),
        (sample(101), CONTEXT, "oomreaper itself"),
        (sample(90), CONTEXT, "descends from it"),
        (sample(80), CONTEXT, "leads the process group of oomreaper"),
        (sample(70), CONTEXT, "leads the session of oomreaper"),
        (sample(0), CONTEXT, "pid 0"),
        (sample(-5), CONTEXT, "negative pid"),
        (sample(HIGHEST_PID + 1), CONTEXT, "no process can have"),
        (sample(500, is_kernel_thread=True), CONTEXT, "it is a kernel thread"),
        (sample(500, is_dead=True), CONTEXT, "it is a zombie"),
        (sample(500, oom_score_adj=-1000), CONTEXT, "its oom_score_adj is -1000, which means never"),
        (sample(500, comm=b"sshd"), CONTEXT, "a never rule matches it: comm = ^sshd$"),
        (sample(500, profile=Profile(exe=b"/bin/x")), CONTEXT, "a never rule matches it: exe = ^/bin/x$"),
        (sample(500, profile=Profile(exe=b"", wish=Wish.OMIT)), CONTEXT, "user.oomd_omit"),
        (sample(500), SET_ASIDE, "it was served before"),
        (sample(500, uid=0), CONTEXT._replace(may_signal_uid=1000), "it is somebody else's"),
    ],
)
def test_the_protected_are_never_chosen(process: ProcessSample, context: Context, reason: str) -> None:
    """Each of them says why in words, and is the best of nobody, however large it is."""
    victims = Victims(never=(matcher(MatchField.COMM, "^sshd$"), matcher(MatchField.EXE, "^/bin/x$")))
    ranking = rank(process, victims=victims, context=context)

    assert ranking.best is None
    assert Standing.PROTECTED is only(ranking).standing
    assert reason in only(ranking).reasons[0]
    assert (ranking.considered, ranking.eligible, ranking.protected) == (1, 0, 1)


def test_ones_own_processes_may_be_signalled() -> None:
    """An ordinary user runs it for his own processes; the others are protected from him."""
    ranking = rank(sample(500, 8 * GIB, uid=0), sample(600), context=CONTEXT._replace(may_signal_uid=1000))

    assert ranking.best is not None
    assert ranking.best.process.identity.pid == 600


@given(pid=st.one_of(st.integers(-3, 200), st.integers(HIGHEST_PID - 2, HIGHEST_PID + 2)))
def test_a_pid_is_protected_exactly_if_protection_refuses_it(pid: int) -> None:
    """The short cut by number spares the call, and changes no answer."""
    refusal = refuse_pid(pid, OURSELVES)

    assert (refusal is not None) == (only(rank(sample(pid))).standing is Standing.PROTECTED)


@pytest.mark.parametrize(
    ("process", "victims", "reason"),
    [
        (
            sample(500, comm=b"Xorg"),
            Victims(avoid=(matcher(MatchField.COMM, "X"),)),
            "an avoid rule matches it: comm = X",
        ),
        (
            sample(500),
            Victims(never=(matcher(MatchField.CMDLINE, "x"),)),
            "its command line could not be read; a never rule may apply to it",
        ),
        (
            sample(500, profile=Profile(exe=b"/x")),
            Victims(never=(matcher(MatchField.UNIT, "x"),)),
            "its unit could not be read; a never rule may apply to it",
        ),
        (
            sample(500),
            Victims(avoid=(matcher(MatchField.EXE, "x"),)),
            "its program could not be read; an avoid rule may apply to it",
        ),
        (sample(500, oom_score_adj=None), Victims(), "its oom_score_adj could not be read; it may be -1000"),
        (sample(500, profile=Profile(wish=Wish.AVOID)), Victims(), "user.oomd_avoid"),
    ],
)
def test_who_is_killed_only_when_there_is_no_other(process: ProcessSample, victims: Victims, reason: str) -> None:
    """By a rule, by a wish, or because something that would protect it could not be read; the reason comes first."""
    other = sample(600, 200 * MIB, comm=b"other", profile=Profile(b"/y", b"y", "/y.service"))
    alone = rank(process, victims=victims)
    together = rank(process, other, victims=victims)

    assert alone.best is not None
    assert Standing.AVOIDED is alone.best.standing
    assert reason in alone.best.reasons[0]
    assert together.best is not None
    assert together.best.process == other


def test_wishes_count_only_when_they_are_honoured() -> None:
    """With honour_xattrs off, nobody's extended attribute matters."""
    victims = Victims(honour_xattrs=False)
    processes = [sample(500 + number, profile=Profile(wish=wish)) for number, wish in enumerate(Wish)]

    assert {Standing.ELIGIBLE} == {ranked.standing for ranked in rank(*processes, victims=victims).ranked}


def test_an_unread_preference_is_none() -> None:
    """Who may be preferred is not, until somebody has looked."""
    victims = Victims(prefer=(matcher(MatchField.EXE, "x"),))
    unread = rank(sample(500), victims=victims)
    read = rank(sample(500, profile=Profile(exe=b"x")), victims=victims)

    assert only(unread).points == GIB
    assert only(read).points == 4 * GIB
    assert only(read).reasons[1] == "a prefer rule matches it (exe = x): +3.0 GiB"


def test_too_small_says_so() -> None:
    """It is never the best; its points are what it holds, and its reason is the share."""
    ranking = rank(sample(500, 16 * MIB, oom_score_adj=1000))

    assert ranking.best is None
    assert (only(ranking).standing, only(ranking).points) == (Standing.TOO_SMALL, 16 * MIB)
    assert only(ranking).reasons == ("would give back 16 MiB, 0.10 % of the memory; less than 1 % is not worth a kill",)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (sample(500, GIB + 1), sample(600, GIB)),
        (sample(500, age_seconds=OLD), sample(600, age_seconds=OLD + 1)),
        (sample(600), sample(500)),
    ],
    ids=["larger gain", "younger", "higher pid"],
)
def test_ties(first: ProcessSample, second: ProcessSample) -> None:
    """Of equal points: the larger gain, then the younger, then the higher pid."""
    adj = {"oom_score_adj": -900}
    processes = [process._replace(**adj) for process in (second, first)]  # type: ignore[arg-type] # a field
    ranking = rank(*processes)

    assert [first.identity, second.identity] == [ranked.process.identity for ranked in ranking.ranked]


def test_the_order_of_a_ranking() -> None:
    """Eligible, avoided, too small, protected; in each the best first."""
    ranking = rank(
        sample(600, 3 * GIB, oom_score_adj=-1000),
        sample(601, MIB),
        sample(602, 4 * GIB, comm=b"Xorg"),
        sample(603, 200 * MIB),
        sample(604, 300 * MIB),
        victims=Victims(avoid=(matcher(MatchField.COMM, "Xorg"),)),
    )

    assert [ranked.process.identity.pid for ranked in ranking.ranked] == [604, 603, 602, 601, 600]
    assert (ranking.considered, ranking.eligible, ranking.protected) == (5, 2, 1)


def test_who_is_named_when_not_all_can_be() -> None:
    """The protected who hold much are named before those who are too small; all are counted."""
    crowd = [sample(1000 + number, MIB) for number in range(500)]
    ranking = Chooser(Victims()).rank(
        [*crowd, sample(600, 3 * GIB, oom_score_adj=-1000), sample(601)], CONTEXT, limit=3
    )

    assert [ranked.process.identity.pid for ranked in ranking.ranked] == [601, 1499, 600]
    assert (ranking.considered, ranking.eligible, ranking.protected) == (502, 1, 1)


@pytest.mark.parametrize(
    ("victims", "expected"),
    [
        (Victims(honour_oom_group=False, honour_xattrs=False), False),
        (Victims(honour_oom_group=True, honour_xattrs=False), True),
        (Victims(honour_oom_group=False, honour_xattrs=True), True),
        (Victims(honour_oom_group=False, honour_xattrs=False, unit=KillUnit.CGROUP), True),
        (Victims(honour_oom_group=False, honour_xattrs=False, unit=KillUnit.SESSION), False),
        (Victims((matcher(MatchField.COMM, "x"),), (), (), KillUnit.PROCESS, 1.0, False, False), False),
        (Victims((matcher(MatchField.EXE, "x"),), (), (), KillUnit.PROCESS, 1.0, False, False), True),
        (Victims((), (matcher(MatchField.UNIT, "x"),), (), KillUnit.PROCESS, 1.0, False, False), True),
        (Victims((), (), (matcher(MatchField.CONTAINER, "x"),), KillUnit.PROCESS, 1.0, False, False), True),
    ],
)
def test_when_profiles_are_needed(victims: Victims, expected: bool) -> None:  # noqa: FBT001 # expected
    """Only when something rests on them."""
    assert Chooser(victims).needs_profile is expected


APP = Profile(cgroup="/app.slice/a.service/worker", oom_group="/app.slice/a.service")


@pytest.mark.parametrize(
    ("process", "victims", "unit", "key", "reason"),
    [
        (sample(500), Victims(), KillUnit.PROCESS, "", ""),
        (
            sample(500, process_group=7),
            Victims(unit=KillUnit.GROUP),
            KillUnit.GROUP,
            "7",
            "its process group 7 ends with it",
        ),
        (sample(500, session=7), Victims(unit=KillUnit.SESSION), KillUnit.SESSION, "7", "its session 7 ends with it"),
        (sample(500, process_group=0), Victims(unit=KillUnit.GROUP), KillUnit.PROCESS, "", "outside of our pid"),
        (sample(500, process_group=1), Victims(unit=KillUnit.GROUP), KillUnit.PROCESS, "", "that of init"),
        (sample(500, process_group=80), Victims(unit=KillUnit.GROUP), KillUnit.PROCESS, "", "that of oomreaper"),
        (sample(500, session=0), Victims(unit=KillUnit.SESSION), KillUnit.PROCESS, "", "outside of our pid"),
        (sample(500, session=1), Victims(unit=KillUnit.SESSION), KillUnit.PROCESS, "", "that of init"),
        (sample(500, session=70), Victims(unit=KillUnit.SESSION), KillUnit.PROCESS, "", "that of oomreaper"),
        (
            sample(500, profile=APP),
            Victims(),
            KillUnit.CGROUP,
            "/app.slice/a.service",
            "its control group /app.slice/a.service ends with it: memory.oom.group is set there",
        ),
        (sample(500, profile=APP), Victims(honour_oom_group=False), KillUnit.PROCESS, "", ""),
        (
            sample(500, profile=APP),
            Victims(honour_oom_group=False, unit=KillUnit.CGROUP),
            KillUnit.CGROUP,
            "/app.slice/a.service/worker",
            "its control group /app.slice/a.service/worker ends with it",
        ),
        (sample(500, profile=Profile(cgroup="/")), Victims(unit=KillUnit.CGROUP), KillUnit.PROCESS, "", "the root"),
        (sample(500, profile=Profile(oom_group="/")), Victims(), KillUnit.PROCESS, "", "the root"),
        (sample(500), Victims(unit=KillUnit.CGROUP), KillUnit.PROCESS, "", "could not be read"),
        (
            sample(500, profile=Profile(cgroup="/a\n\x1b")),
            Victims(unit=KillUnit.CGROUP),
            KillUnit.CGROUP,
            "/a\n\x1b",
            "its control group /a\\n\\x1b ends with it",
        ),
    ],
)
def test_what_dies_with_it(process: ProcessSample, victims: Victims, unit: KillUnit, key: str, reason: str) -> None:
    """The unit as configured, or the group to be killed as a whole; alone where that would take others along."""
    ranked = only(rank(process, victims=victims))

    assert (unit, key) == (ranked.unit, ranked.unit_key)
    assert reason in " | ".join(ranked.reasons)


@pytest.mark.parametrize("pid", [1, 90, 100])
def test_a_control_group_that_holds_us_is_not_killed(pid: int) -> None:
    """Nor one that holds init or who started us: its member dies alone, and the reason says why."""
    ours = sample(pid, profile=Profile(cgroup="/app.slice/a.service/control"))
    best = rank(sample(500, profile=APP), ours).best

    assert best is not None
    assert (best.unit, best.unit_key) == (KillUnit.PROCESS, "")
    assert "is in its control group /app.slice/a.service too" in best.reasons[-1]


FAMILY = (
    sample(500, 2 * GIB, process_group=7, session=6, profile=Profile(cgroup="/a/b")),
    sample(501, 20 * MIB, process_group=7, session=6, profile=Profile(cgroup="/a")),
    sample(502, 20 * MIB, process_group=8, session=6, profile=Profile(cgroup="/a/b/c")),
    sample(503, 20 * MIB, process_group=8, session=9, profile=Profile(cgroup="/a/bc")),
    sample(504, 20 * MIB, process_group=7, session=6, oom_score_adj=-1000, profile=Profile(cgroup="/a/b")),
    sample(90, 20 * MIB, process_group=7, session=6),
    sample(505, 20 * MIB, process_group=7, session=6, oom_score_adj=None, profile=Profile(cgroup="/a/b")),
)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (KillUnit.PROCESS, [500]),
        (KillUnit.GROUP, [500, 501]),
        (KillUnit.SESSION, [500, 501, 502]),
        (KillUnit.CGROUP, [500, 502]),
    ],
)
def test_the_members_of_a_unit(unit: KillUnit, expected: list[int]) -> None:
    """The chosen first; who is protected, or may be, stays out; groups go by whole parts of their path."""
    chooser = Chooser(Victims(unit=unit))
    best = chooser.rank(FAMILY, CONTEXT).best
    assert best is not None
    members = chooser.members_of(best, FAMILY[::-1])

    assert expected[0] == members[0].identity.pid
    assert set(expected) == {member.identity.pid for member in members}


def test_the_members_of_an_oom_group() -> None:
    """All below the group that is to be killed as a whole."""
    processes = [sample(500 + number, GIB + number, profile=APP) for number in range(3)]
    chooser = Chooser(Victims())
    best = chooser.rank(processes, CONTEXT).best
    assert best is not None

    assert len(chooser.members_of(best, processes)) == 3
    assert best.reasons[-1] == "that is 3 processes, which give back 3.0 GiB in all"


def test_members_before_any_ranking_are_our_own_fault() -> None:
    """Without a context nobody can say who is protected."""
    with pytest.raises(BrokenPromiseError):
        Chooser(Victims()).members_of(only(rank(sample(500))), [])


def test_a_shared_memory_hog_is_found() -> None:
    """When shared memory is what fills the memory, its mappers have their part of it as gain."""
    hog = sample(500, 30 * MIB, shmem_bytes=9 * GIB)
    other = sample(600, GIB, shmem_bytes=MIB)
    scarce = CONTEXT._replace(shmem_bytes=9 * GIB)
    best = rank(hog, other, context=scarce).best
    without = rank(hog, other).best

    assert best is not None
    assert best.process == hog
    assert "its part of a segment of 9.0 GiB counts as 9.0 GiB more" in best.reasons[1]
    assert without is not None
    assert without.process == other


def test_mappers_of_one_segment_are_no_larger_than_a_hog() -> None:
    """Forty workers of a database that map the same 4 GiB have 100 MiB of it each; the hog dies."""
    workers = [sample(1000 + number, 10 * MIB, shmem_bytes=4 * GIB) for number in range(40)]
    best = rank(*workers, sample(500, 2 * GIB), context=CONTEXT._replace(used_bytes=8 * GIB, shmem_bytes=4 * GIB)).best

    assert best is not None
    assert best.process.identity.pid == 500


def test_a_growing_fault_is_seen_between_two_rankings() -> None:
    """Nothing of one ranking is carried into the next: the same chooser follows what changes."""
    chooser = Chooser(Victims(never=(matcher(MatchField.COMM, "^sshd$"),)))
    first = chooser.rank([sample(500, 2 * GIB), sample(600)], CONTEXT).best
    renamed = chooser.rank([sample(500, 2 * GIB, comm=b"sshd"), sample(600)], CONTEXT).best
    served = chooser.rank([sample(500, 2 * GIB), sample(600)], SET_ASIDE).best

    assert [ranked.process.identity.pid for ranked in (first, renamed, served) if ranked is not None] == [500, 600, 600]


VICTIMS = Victims(
    never=(matcher(MatchField.COMM, "^n"), matcher(MatchField.EXE, "^n")),
    avoid=(matcher(MatchField.COMM, "^a"), matcher(MatchField.CGROUP, "^/a")),
    prefer=(matcher(MatchField.COMM, "^p"), matcher(MatchField.USER, "^7$")),
    smallest_percent=1.0,
)

profiles = st.one_of(
    st.none(),
    st.builds(
        Profile,
        exe=st.sampled_from([None, b"n", b"x"]),
        cmdline=st.none(),
        cgroup=st.sampled_from([None, "/", "/a/b", "/b"]),
        oom_group=st.sampled_from([None, "/", "/a"]),
        wish=st.sampled_from([None, *Wish]),
    ),
)
some_processes = st.lists(
    st.builds(
        ProcessSample,
        identity=st.builds(Identity, st.sampled_from([1, 70, 80, 90, 100, *range(500, 560)]), st.just(3)),
        comm=st.one_of(st.sampled_from([b"n", b"a", b"p", b"x"]), st.binary(max_size=15)),
        uid=st.sampled_from([0, 7, 1000]),
        parent_pid=st.just(2),
        process_group=st.sampled_from([0, 1, 80, 500]),
        session=st.sampled_from([0, 1, 70, 500]),
        is_kernel_thread=st.sampled_from([False] * 7 + [True]),
        is_dead=st.sampled_from([False] * 7 + [True]),
        oom_score_adj=st.sampled_from([None, -1000, -999, -20, 0, 0, 0, 300, 1000]),
        anon_bytes=st.sampled_from([0, 100 * MIB, 200 * MIB, GIB, 8 * GIB]),
        swap_bytes=st.sampled_from([0, 0, GIB]),
        page_table_bytes=st.sampled_from([0, 4096]),
        shmem_bytes=st.sampled_from([0, GIB]),
        growth_bytes=st.sampled_from([0, -GIB, 100 * MIB, GIB]),
        age_seconds=st.sampled_from([0.0, 31.0, 599.0, OLD]),
        profile=profiles,
    ),
    unique_by=lambda process: process.identity,
    max_size=40,
)
contexts = st.builds(
    CONTEXT._replace,
    may_signal_uid=st.sampled_from([None, None, 7]),
    shmem_bytes=st.sampled_from([None, GIB, 9 * GIB]),
    is_set_aside=st.sampled_from([nobody, Identity(500, 3).__eq__]),
)


def is_protected(process: ProcessSample, context: Context) -> bool:
    """The rules once more, as plainly as they can be said."""
    profile = process.profile or Profile()
    return (
        refuse_pid(process.identity.pid, OURSELVES) is not None
        or process.is_kernel_thread
        or process.is_dead
        or process.oom_score_adj == -1000
        or (context.may_signal_uid is not None and process.uid != context.may_signal_uid)
        or process.comm.startswith(b"n")
        or profile.exe == b"n"
        or profile.wish is Wish.OMIT
        or context.is_set_aside(process.identity)
    )


@given(processes=some_processes, context=contexts, unit=st.sampled_from(KillUnit))
def test_nobody_protected_is_ever_chosen(processes: list[ProcessSample], context: Context, unit: KillUnit) -> None:
    """Not as the best, and not as a member of what dies with it; and all of them are counted."""
    chooser = Chooser(VICTIMS._replace(unit=unit))
    ranking = chooser.rank(processes, context)
    doomed = () if ranking.best is None else chooser.members_of(ranking.best, processes)

    assert not [process for process in doomed if is_protected(process, context)]
    assert ranking.protected == sum(is_protected(process, context) for process in processes)
    assert ranking.considered == len(processes)


@given(processes=some_processes, context=contexts, data=st.data())
def test_the_order_they_come_in_is_no_matter(
    processes: list[ProcessSample], context: Context, data: st.DataObject
) -> None:
    """Any permutation ranks the same, to the last reason."""
    shuffled = data.draw(st.permutations(processes))

    assert rank(*processes, victims=VICTIMS, context=context) == rank(*shuffled, victims=VICTIMS, context=context)


@given(processes=some_processes, context=contexts, limit=st.integers(1, 10))
def test_who_is_left_out_changes_nothing(processes: list[ProcessSample], context: Context, limit: int) -> None:
    """With few named, the best is who it is with all of them named; so are the counts and those who can be chosen."""
    full = Chooser(VICTIMS).rank(processes, context, limit=1000)
    short = Chooser(VICTIMS).rank(processes, context, limit=limit)

    assert full.best == short.best
    assert (full.considered, full.eligible, full.protected) == (short.considered, short.eligible, short.protected)
    assert len(full.ranked) == len(processes)
    choosable = [ranked for ranked in full.ranked if ranked.standing <= Standing.AVOIDED]
    assert choosable[:limit] == [ranked for ranked in short.ranked if ranked.standing <= Standing.AVOIDED]


@given(processes=some_processes, context=contexts)
def test_the_best_is_the_one_with_the_most_points(processes: list[ProcessSample], context: Context) -> None:
    """Against the plainest ranking there is: count everybody's points, sort, take the first."""
    context = context._replace(shmem_bytes=None)
    best = rank(*processes, victims=VICTIMS, context=context).best
    candidates = [
        process
        for process in processes
        if not is_protected(process, context) and process.gain_bytes >= TOTAL / 100 and not _is_avoided(process)
    ]
    if best is None or best.standing is not Standing.ELIGIBLE or best.unit is KillUnit.GROUP:
        assert not candidates or best is not None
        return
    plain = max(candidates, key=_plain_key)

    assert plain == best.process


def _is_avoided(process: ProcessSample) -> bool:
    profile = process.profile or Profile()
    return (
        process.oom_score_adj is None
        or process.comm.startswith(b"a")
        or profile.exe is None
        or profile.cgroup is None
        or profile.cgroup.startswith("/a")
        or profile.wish is Wish.AVOID
    )


def _plain_key(process: ProcessSample) -> tuple[float, ...]:
    is_preferred = process.comm.startswith(b"p") or process.uid == 7
    points = badness.score(process, total_bytes=TOTAL, is_preferred=is_preferred).points
    return (points, process.gain_bytes, -process.age_seconds, process.identity.pid)


@given(processes=some_processes, context=contexts, more_bytes=st.integers(1, GIB))
def test_to_hold_more_saves_nobody(processes: list[ProcessSample], context: Context, more_bytes: int) -> None:
    """Monotone: when the best grows still larger, it is the best still."""
    context = context._replace(shmem_bytes=None)
    before = rank(*processes, victims=VICTIMS, context=context).best
    if before is None or before.unit is KillUnit.GROUP:
        return
    larger = [
        process._replace(anon_bytes=process.anon_bytes + more_bytes)
        if process.identity == before.process.identity
        else process
        for process in processes
    ]
    after = rank(*larger, victims=VICTIMS, context=context).best

    assert after is not None
    assert before.process.identity == after.process.identity


@settings(max_examples=20)
@given(names=st.lists(st.binary(max_size=15), min_size=1, max_size=20))
def test_hostile_names_never_reach_a_reason(names: list[bytes]) -> None:
    """Whatever processes are called, what is said of them is printable."""
    processes = [
        sample(500 + number, GIB, comm=name, profile=Profile(cgroup=f"/x{name!r}\n\x07\udcff"))
        for number, name in enumerate(names)
    ]
    ranking = rank(*processes, victims=Victims(unit=KillUnit.CGROUP))

    assert all(reason.isprintable() for ranked in ranking.ranked for reason in ranked.reasons)


def test_ten_thousand_are_asked_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are counted only for those worth a kill, and words are made only for those who are named."""
    counted = _count_calls(monkeypatch, "score")
    worded = _count_calls(monkeypatch, "reasons_of")
    crowd = [sample(1000 + number, MIB) for number in range(10_000)]
    large = [sample(20_000 + number) for number in range(80)]
    ranking = Chooser(Victims()).rank([*crowd, *large], CONTEXT)

    assert (counted(), worded()) == (80, 64)
    assert (ranking.considered, ranking.eligible) == (10_080, 80)


def _count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], int]:
    calls: list[object] = []
    function = getattr(badness, name)

    def counting(process: ProcessSample, *rest: object, **named: object) -> object:
        calls.append(process)
        return function(process, *rest, **named)

    monkeypatch.setattr(badness, name, counting)
    return lambda: len(calls)
