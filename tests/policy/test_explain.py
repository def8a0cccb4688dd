"""The state in plain values, and the sentences that say why nothing is done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.model.decision import RankedProcess, Reading, RuleReading, Standing
from oomreaper.model.identity import Identity
from oomreaper.model.plan import MACHINE, Condition, KillUnit, Metric, Rule, Step, StepKind, Unit
from oomreaper.model.sample import ProcessSample, Profile, ScopeSample
from oomreaper.policy.explain import (
    Counts,
    ScopeView,
    VictimView,
    build_state,
    find_nearness,
    fit_state,
    why_nothing,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB, GIB = 1 << 20, 1 << 30
SECOND = 1_000_000_000
NOW_NS = 1000 * SECOND

AVAILABLE = Condition(Metric.MEM_AVAILABLE, True, 4.0, Unit.PERCENT, None, "mem_available < 4%")
SWAP = Condition(Metric.SWAP_FREE, True, 10.0, Unit.PERCENT, None, "swap_free < 10%")
STALLED = Condition(Metric.PSI_MEMORY_FULL, False, 40.0, Unit.PERCENT, 10 * SECOND, "psi_memory_full > 40% over 10s")
FORECAST = Condition(Metric.TIME_TO_EXHAUSTION, True, 2.0, Unit.SECONDS, None, "time_to_exhaustion < 2s")
CURRENT = Condition(Metric.MEMORY_CURRENT, False, 95.0, Unit.PERCENT, None, "memory_current > 95% of limit")
FLOOR = Condition(Metric.MEM_AVAILABLE, True, 512.0 * MIB, Unit.BYTES, None, "mem_available < 512M")
RECOVERED = Condition(Metric.MEM_AVAILABLE, False, 8.0, Unit.PERCENT, None, "mem_available > 8%")
ASK = Step(StepKind.TERMINATE, 0, None, "terminate")
KILL = Step(StepKind.KILL, 10 * SECOND, None, "kill after 10s")
MACHINE_VIEW = ScopeView(
    ScopeSample(MACHINE, NOW_NS, 16 * GIB, 9 * GIB, 2 * GIB, GIB, psi_some_us=5, psi_full_us=1),
    1.5,
    0.25,
    1e6,
    90.0,
    500,
)


def _rule(name: str = "low", *when: Condition, for_ns: int = 0) -> Rule:
    return Rule(name, MACHINE, when or (AVAILABLE,), for_ns, (RECOVERED,), (ASK, KILL))


def _reading(
    rule: Rule,
    *measured: float | None,
    scope: str = MACHINE,
    held_ns: int | None = None,
    is_active: bool = False,
    steps_taken: int = 0,
) -> RuleReading:
    readings = []
    for condition, value in zip(rule.when, measured, strict=True):
        distance = None
        if value is not None:
            distance = value - condition.threshold if condition.is_below else condition.threshold - value
        readings.append(Reading(condition.text, value, distance is not None and distance <= 0, distance))
    return RuleReading(rule, scope, tuple(readings), held_ns, is_active, steps_taken)


def _ranked(
    pid: int,
    gain_bytes: int,
    standing: Standing = Standing.ELIGIBLE,
    *,
    comm: bytes = b"hog",
    uid: int = 1000,
    reasons: tuple[str, ...] = ("gives back much",),
    profile: Profile | None = None,
) -> RankedProcess:
    process = ProcessSample(
        Identity(pid, pid * 10), comm, uid, 1, pid, pid, False, False, 0, gain_bytes, 0, 0, 0, 5, 60.0, profile
    )
    return RankedProcess(process, standing, float(gain_bytes), reasons)


def _why(
    readings: Sequence[RuleReading] = (), ranking: Sequence[RankedProcess] | None = None, **keywords: object
) -> list[str]:
    ranking = [_ranked(7, GIB)] if ranking is None else ranking
    arguments: dict[str, object] = {"now_ns": NOW_NS, "scopes": [MACHINE_VIEW], **keywords}
    return why_nothing(readings or [_reading(_rule(), 56.25)], ranking, **arguments)  # type: ignore[arg-type] # by name


# -- why nothing -------------------------------------------------------------------------------------------------


def test_no_rule_is_near() -> None:
    """The closest is named, with what would have to happen, in the unit that people think in."""
    readings = [_reading(_rule("far", STALLED), 0.0), _reading(_rule(), 56.25)]

    assert _why(readings) == ["no rule is near: the closest is low, mem_available would have to fall by 8.4 GiB"]


def test_a_rule_that_is_near_is_not_called_far() -> None:
    """From four fifths of the way on, the sentence does not calm anybody."""
    assert _why([_reading(_rule(), 10.0)]) == [
        "no rule has fired; the closest is low, mem_available would have to fall by 983 MiB"
    ]


def test_of_several_conditions_the_farthest_counts() -> None:
    """All must hold: a rule is as far from firing as its farthest condition."""
    reading = _reading(_rule("low", AVAILABLE, SWAP), 4.5, 50.0)

    assert "swap_free would have to fall by 819 MiB" in _why([reading])[0]


@pytest.mark.parametrize(
    ("condition", "measured", "words"),
    [
        (STALLED, 10.0, "psi_memory_full would have to rise by 30.0 %"),
        (FORECAST, 90.0, "time_to_exhaustion would have to fall by 88 s"),
        (FORECAST, None, "memory does not run out at the present rate"),
        (FORECAST, float("inf"), "memory does not run out at the present rate"),
        (FLOOR, 9.0 * GIB, "mem_available would have to fall by 8.5 GiB"),
        (CURRENT, 50.0, "memory_current would have to rise by 45.0 %"),
    ],
)
def test_each_metric_says_its_gap(condition: Condition, measured: float | None, words: str) -> None:
    """Shares of time in per cent, times in seconds, memory in bytes; time that does not run out is no lack."""
    assert _why([_reading(_rule("r", condition), measured)]) == [f"no rule is near: the closest is r, {words}"]


def test_a_group_s_limit_is_what_its_per_cent_are_of() -> None:
    """memory_current of a group with 1 GiB of limit: the gap is in bytes of that; the group is named."""
    view = ScopeView(ScopeSample("/job", NOW_NS, GIB, GIB // 2, current_bytes=GIB // 2, limit_bytes=GIB))

    notes = _why([_reading(_rule("r", CURRENT), 50.0, scope="/job")], scopes=[MACHINE_VIEW, view])

    assert notes == ["no rule is near: the closest is r in /job, memory_current would have to rise by 461 MiB"]


@pytest.mark.parametrize(
    ("condition", "sample", "words"),
    [
        (STALLED, ScopeSample(MACHINE, 0, GIB, GIB), "this kernel has no PSI"),
        (STALLED, ScopeSample("/g", 0, GIB, GIB), "this group has no PSI"),
        (STALLED, MACHINE_VIEW.sample, "psi_memory_full needs looks of a whole window first"),
        (CURRENT, ScopeSample("/g", 0, GIB, GIB), "the group has no limit, or what is charged to it is not told"),
    ],
)
def test_a_rule_that_cannot_be_read_says_why(condition: Condition, sample: ScopeSample, words: str) -> None:
    """What the kernel lacks is told apart from what is only not known yet."""
    reading = _reading(_rule("r", condition), None, scope=sample.scope)
    name = "r" if sample.scope == MACHINE else "r in /g"

    assert _why([reading], scopes=[ScopeView(sample)]) == [f"rule {name} cannot be read here: {words}"]


def test_a_rule_that_holds_but_not_long_enough() -> None:
    """It says since when, and when it fires."""
    reading = _reading(_rule(for_ns=2 * SECOND), 3.0, held_ns=SECOND // 2)

    assert _why([reading]) == ["rule low holds since 0.5 s; it fires after 2.0 s"]


@pytest.mark.parametrize(
    ("steps_taken", "words"),
    [
        (1, "1 of 2 steps taken, next is kill after 10s, unless it has recovered (mem_available > 8%) by then"),
        (2, "and all its 2 steps are taken: it waits for mem_available > 8%"),
    ],
)
def test_a_rule_that_has_fired(steps_taken: int, words: str) -> None:
    """Where on its ladder it stands, and what it waits for."""
    notes = _why([_reading(_rule(), 3.0, held_ns=0, is_active=True, steps_taken=steps_taken)])

    assert len(notes) == 1
    assert notes[0].startswith("rule low has fired")
    assert notes[0].endswith(words)


def test_what_is_awaited_comes_first() -> None:
    """A dry run, a victim in work and a kernel kill are more immediate than any rule."""
    victim = VictimView(Identity(123, 5), b"a\nb", NOW_NS - SECOND, "REAPING")

    notes = _why(victims=[victim], kernel_kill_ns=NOW_NS - 400_000_000, is_dry_run=True)

    assert notes[:3] == [
        "this is a dry run: nobody is signalled, whatever happens",
        "a victim is being reaped (pid 123, a\\nb): its memory is awaited before anybody else is taken",
        "a kernel OOM kill 0.4 s ago is awaited",
    ]


@pytest.mark.parametrize(
    ("ranking", "words"),
    [
        ([], "no process has been looked at yet: that begins when a rule comes near"),
        (
            [_ranked(5, 64 * MIB, Standing.TOO_SMALL), _ranked(6, GIB, Standing.PROTECTED)],
            "nobody is worth a kill: the largest eligible process would give back 0.4 % of the memory",
        ),
        (
            [_ranked(5, MIB, Standing.AVOIDED, comm=b"Xorg")],
            "only processes to be avoided are left: Xorg (5) would be taken",
        ),
        (
            [_ranked(pid, pid * MIB, Standing.PROTECTED, comm=b"p%d" % pid, reasons=("never",)) for pid in range(2, 7)],
            "all 5 candidates are protected: p6 (never); p5 (never); p4 (never); ..",
        ),
    ],
)
def test_why_nobody_would_be_chosen(ranking: list[RankedProcess], words: str) -> None:
    """Nobody looked at, too small, to be avoided, protected: each has its sentence."""
    assert _why(ranking=ranking)[-1] == words


def test_an_eligible_process_needs_no_excuse() -> None:
    """While somebody can be chosen, no sentence speaks of the ranking."""
    notes = _why(ranking=[_ranked(5, GIB), _ranked(6, GIB, Standing.PROTECTED)])

    assert len(notes) == 1


def test_notes_are_never_empty_and_never_many() -> None:
    """Without any rule that is said; a thousand unreadable groups are counted, not listed."""
    unreadable = [_reading(_rule("r", CURRENT), None, scope=f"/{number}") for number in range(1000)]

    assert why_nothing([], [], now_ns=0, scopes=[])[0].startswith("there is no rule")
    assert len(_why(unreadable)) == 12
    assert _why(unreadable)[-1] == "and 989 more of this kind"


# -- nearness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measured", "distance", "is_below", "unit", "nearness"),
    [
        (100.0, 96.0, True, "%", 0.0),
        (52.0, 48.0, True, "%", 0.5),
        (4.0, 0.0, True, "%", 1.0),
        (1.0, -3.0, True, "%", 1.0),
        (0.0, 40.0, False, "%", 0.0),
        (30.0, 10.0, False, "%", 0.75),
        (20.0, 18.0, True, "s", 0.1),
        (9.0 * GIB, 8.0 * GIB, True, "bytes", 7 / 15),
        (float("inf"), float("inf"), True, "s", 0.0),
    ],
)
def test_nearness(measured: float, distance: float, *, is_below: bool, unit: str, nearness: float) -> None:
    """0 is calm, 1 is met, and between them it is the share of the way."""
    found = find_nearness(measured=measured, distance=distance, is_below=is_below, unit=unit, whole=16.0 * GIB)

    assert found == pytest.approx(nearness)


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(
    measured=NUMBERS,
    distance=NUMBERS,
    is_below=st.booleans(),
    unit=st.sampled_from(["%", "s", "bytes", ""]),
    whole=st.none() | NUMBERS,
)
def test_nearness_is_always_a_share(
    *,
    measured: float,
    distance: float,
    is_below: bool,
    unit: str,
    whole: float | None,
) -> None:
    """Whatever was measured, and whatever a socket said: from 0 to 1, and no error."""
    assert 0.0 <= find_nearness(measured=measured, distance=distance, is_below=is_below, unit=unit, whole=whole) <= 1.0


# -- the state ---------------------------------------------------------------------------------------------------

INT, TEXT, BOOL, LIST = (int,), (str,), (bool,), (list,)
NUMBER = (int, float)
NONE = (type(None),)
SCHEMA: dict[str, dict[str, tuple[type, ...]]] = {
    "": {
        "event": TEXT,
        "version": INT,
        "dry_run": BOOL,
        "config": TEXT + NONE,
        "scopes": LIST,
        "rules": LIST,
        "ranking": LIST,
        "counts": (dict,),
        "victims": LIST,
        "last": LIST,
        "notes": LIST,
        "statistics": (dict,),
    },
    "scopes": {
        "scope": TEXT,
        "total_bytes": INT,
        "available_bytes": INT,
        "swap_total_bytes": INT,
        "swap_free_bytes": INT,
        "current_bytes": INT + NONE,
        "limit_bytes": INT + NONE,
        "psi_some_percent": NUMBER + NONE,
        "psi_full_percent": NUMBER + NONE,
        "fall_bytes_per_second": NUMBER + NONE,
        "seconds_to_exhaustion": NUMBER + NONE,
        "next_look_ms": NUMBER,
    },
    "rules": {
        "rule": TEXT,
        "scope": TEXT,
        "is_active": BOOL,
        "held_s": NUMBER + NONE,
        "steps": LIST,
        "steps_taken": INT,
        "conditions": LIST,
    },
    "conditions": {
        "text": TEXT,
        "measured": NUMBER + NONE,
        "unit": TEXT,
        "is_met": BOOL,
        "distance": NUMBER + NONE,
    },
    "ranking": {
        "rank": INT + NONE,
        "pid": INT,
        "start_time_ticks": INT,
        "comm": TEXT,
        "uid": INT,
        "standing": TEXT,
        "points_bytes": NUMBER + NONE,
        "gain_bytes": INT,
        "shmem_bytes": INT,
        "growth_bytes": INT,
        "oom_score_adj": INT + NONE,
        "age_s": NUMBER + NONE,
        "cmdline": TEXT + NONE,
        "exe": TEXT + NONE,
        "cgroup": TEXT + NONE,
        "kill_unit": TEXT,
        "kill_unit_key": TEXT,
        "reasons": LIST,
    },
    "counts": {"considered": INT, "eligible": INT, "protected": INT},
    "victims": {"pid": INT, "comm": TEXT, "since_s": NUMBER, "state": TEXT},
}


def _assert_schema(row: dict[str, object], name: str) -> None:
    fields = SCHEMA[name]
    assert list(row) == list(fields)
    for key, value in row.items():
        assert type(value) in fields[key], (name, key, value)
        if key in SCHEMA and isinstance(value, list):
            for each in value:
                _assert_schema(each, key)
        elif key == "counts":
            assert isinstance(value, dict)
            _assert_schema(value, key)
        elif key in ("notes", "steps", "reasons"):
            assert isinstance(value, list)
            assert all(type(each) is str and each.isprintable() for each in value), (key, value)
        elif isinstance(value, str):
            assert value.isprintable(), (key, value)


SIZES = st.integers(0, 1 << 62)
SOME_FLOATS = st.none() | NUMBERS
PATHS = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too, as os.fsdecode makes them
CONDITIONS = st.sampled_from([AVAILABLE, SWAP, STALLED, FORECAST, CURRENT, FLOOR])
SAMPLES = st.builds(
    ScopeSample,
    st.just(MACHINE) | PATHS,
    st.just(NOW_NS),
    SIZES,
    SIZES,
    SIZES,
    SIZES,
    st.none() | SIZES,
    st.none() | SIZES,
    st.none() | SIZES,
    st.none() | SIZES,
    st.none() | SIZES,
    st.none() | SIZES,
    st.none() | SIZES,
)
VIEWS = st.builds(ScopeView, SAMPLES, SOME_FLOATS, SOME_FLOATS, SOME_FLOATS, SOME_FLOATS, st.floats(0, 1e6))
RULES = st.builds(
    Rule,
    PATHS,
    st.just(MACHINE) | PATHS,
    st.lists(CONDITIONS, min_size=1, max_size=3).map(tuple),
    SIZES,
    st.just((RECOVERED,)),
    st.just((ASK, KILL)),
)


@st.composite
def _readings(draw: st.DrawFn) -> RuleReading:
    rule = draw(RULES)
    measured = [draw(SOME_FLOATS) for _ in rule.when]
    return _reading(
        rule,
        *measured,
        scope=draw(st.just(MACHINE) | PATHS),
        held_ns=draw(st.none() | SIZES),
        is_active=draw(st.booleans()),
        steps_taken=draw(st.integers(0, 2)),
    )


PROFILES = st.builds(
    Profile, st.none() | st.binary(max_size=400), st.none() | st.binary(max_size=400), st.none() | PATHS
)
PROCESSES = st.builds(
    ProcessSample,
    st.builds(Identity, st.integers(1, 1 << 22), SIZES),
    st.binary(max_size=15),
    st.integers(0, 1 << 32),
    SIZES,
    SIZES,
    SIZES,
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(-1000, 1000),
    SIZES,
    SIZES,
    SIZES,
    SIZES,
    SIZES,
    st.floats(0, 1e12),
    st.none() | PROFILES,
)
RANKED = st.builds(
    RankedProcess,
    PROCESSES,
    st.sampled_from(Standing),
    NUMBERS,
    st.lists(PATHS, max_size=3).map(tuple),
    st.sampled_from(KillUnit),
    PATHS,
)
VICTIMS = st.builds(
    VictimView, st.builds(Identity, st.integers(1, 99), SIZES), st.binary(max_size=15), SIZES, st.just("S")
)


@given(
    scopes=st.lists(VIEWS, max_size=3),
    readings=st.lists(_readings(), max_size=4),
    ranking=st.lists(RANKED, max_size=6),
    victims=st.lists(VICTIMS, max_size=2),
    is_dry_run=st.booleans(),
    config_path=st.none() | PATHS,
    kernel_kill_ns=st.none() | st.just(NOW_NS - SECOND),
    reader_uid=st.sampled_from([None, 0, 1000]),
)
def test_every_state_has_the_schema_and_is_json(
    *,
    scopes: list[ScopeView],
    readings: list[RuleReading],
    ranking: list[RankedProcess],
    victims: list[VictimView],
    is_dry_run: bool,
    config_path: str | None,
    kernel_kill_ns: int | None,
    reader_uid: int | None,
) -> None:
    """Whatever is measured and named: every field, in its order, of its type, printable, and strict JSON."""
    state = build_state(
        now_ns=NOW_NS,
        scopes=scopes,
        readings=readings,
        ranking=ranking,
        victims=victims,
        is_dry_run=is_dry_run,
        config_path=config_path,
        kernel_kill_ns=kernel_kill_ns,
        reader_uid=reader_uid,
        statistics={"looks": 3, "share": float("inf")},
    )

    _assert_schema(state, "")
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def _state(ranking: Sequence[RankedProcess], *, reader_uid: int | None = 0, **keywords: object) -> dict[str, object]:
    arguments: dict[str, object] = {"readings": [_reading(_rule(), 56.25)], "scopes": [MACHINE_VIEW], **keywords}
    return build_state(now_ns=NOW_NS, ranking=ranking, reader_uid=reader_uid, **arguments)  # type: ignore[arg-type] # by name


def _rows(state: dict[str, object], key: str = "ranking") -> list[dict[str, object]]:
    rows = state[key]
    assert isinstance(rows, list)
    return rows


def test_only_who_can_be_chosen_has_a_rank() -> None:
    """Ranks count from 1 through the eligible and the avoided; the others follow without, largest first."""
    ranking = [
        _ranked(1, GIB),
        _ranked(2, GIB, Standing.AVOIDED),
        _ranked(3, 1, Standing.TOO_SMALL),
        _ranked(4, 5, Standing.PROTECTED),
        _ranked(5, 6, Standing.PROTECTED),
    ]

    rows = _rows(_state(ranking))

    assert [(row["rank"], row["pid"], row["standing"]) for row in rows] == [
        (1, 1, "eligible"),
        (2, 2, "avoided"),
        (None, 3, "too_small"),
        (None, 5, "protected"),
        (None, 4, "protected"),
    ]


@pytest.mark.parametrize(("reader_uid", "sees"), [(0, True), (1000, True), (1001, False), (None, False)])
def test_command_lines_are_for_root_and_their_owner(reader_uid: int | None, *, sees: bool) -> None:
    """Another user, and somebody unknown, learn neither the command line nor the program."""
    profile = Profile(b"/usr/bin/x", b"x --password=1", "/user.slice")

    (row,) = _rows(_state([_ranked(1, GIB, profile=profile)], reader_uid=reader_uid))

    assert (row["cmdline"], row["exe"]) == (("x --password=1", "/usr/bin/x") if sees else (None, None))
    assert row["cgroup"] == "/user.slice"


def test_counts_are_of_all_processes() -> None:
    """The ranking names some; the counts are those of the whole, where they are given, else of what is named."""
    ranking = [_ranked(1, GIB), _ranked(2, GIB, Standing.AVOIDED), _ranked(3, 1, Standing.PROTECTED)]

    assert _state(ranking)["counts"] == {"considered": 3, "eligible": 1, "protected": 1}
    assert _state(ranking, counts=Counts(900, 5, 800))["counts"] == {"considered": 900, "eligible": 5, "protected": 800}


def test_a_thousand_groups_are_told_by_those_nearest_to_firing() -> None:
    """What is left out is counted, the one that has fired is there, and scopes are those of the rules that are told."""
    group = _rule("group", AVAILABLE)
    calm = [_reading(group, 50.0, scope=f"/{number}") for number in range(1000)]
    near, fired = _reading(group, 4.5, scope="/near"), _reading(group, 3.0, scope="/fired", is_active=True)
    views = [ScopeView(ScopeSample(each.scope, 0, GIB, GIB)) for each in (*calm, near, fired)]

    state = _state([], readings=[*calm, near, fired], scopes=[MACHINE_VIEW, *views])

    assert [row["scope"] for row in _rows(state, "rules")][:2] == ["/fired", "/near"]
    assert len(_rows(state, "rules")) == 48
    assert len(_rows(state, "scopes")) == 49
    assert "954 more readings" in str(state["notes"])


def test_a_hostile_crowd_fits_one_message() -> None:
    """10,000 processes with the longest names, paths and reasons that escape worst: one message all the same."""
    profile = Profile(b"\xff" * 4096, b"\\" * 4096, "\U0001f480" * 4096)
    crowd = [
        _ranked(pid, GIB, Standing(pid % 4), comm=b"\x00" * 15, reasons=("\U0001f480" * 999,) * 20, profile=profile)
        for pid in range(1, 10_000)
    ]
    last = [{"event": "settled", "reason": "x" * 100}] * 20

    state = fit_state(_state(crowd, last=last))

    assert len(json.dumps(state)) <= 200_000
    assert _rows(state)[0]["rank"] == 1
    assert len(_rows(state, "last")) == 10
    assert state["counts"] == {"considered": 9999, "eligible": 2499, "protected": 2500}


def test_an_ordinary_crowd_is_not_cut() -> None:
    """What 10,000 ordinary processes make fits with all the rows that are ever told."""
    profile = Profile(
        b"/usr/lib/firefox/firefox", b"/usr/lib/firefox/firefox -contentproc " + b"x" * 200, "/user.slice/a"
    )
    crowd = [_ranked(pid, GIB, Standing(pid % 4), profile=profile) for pid in range(1, 10_000)]
    state = _state(crowd)

    assert fit_state(state) is state
    assert len(_rows(state)) == 40 + 8 + 24


def test_a_state_that_cannot_be_cut_further_ends() -> None:
    """Rows first, then the older records; without either it is what it is."""
    state = _state([_ranked(1, GIB), _ranked(2, GIB)], last=[{"n": 1}, {"n": 2}, {"n": 3}])

    bare = fit_state(state, most_bytes=1)

    assert (bare["ranking"], bare["last"]) == ([], [])
    without_rows = len(json.dumps({**state, "ranking": []}))
    assert fit_state(state, most_bytes=without_rows - 1)["last"] == [{"n": 3}]
