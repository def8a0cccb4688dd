"""Scenario files: what they say, and every fault of one that says nonsense."""

from __future__ import annotations

import pytest

from lab.contestants import CONTESTANTS, Service
from lab.guest import container
from lab.scenario import Program, Role, Scenario, load_scenario, names, read_scenario
from oomreaper.config.source import parse_source
from oomreaper.errors import ConfigError, UsageError

_GOOD = """
about = "One leaks."
duration = "30s"
[machine]
image = "small"
memory_mib = 512
[[actor]]
name = "desk"
role = "innocent"
arguments = ["hold"]
[[actor]]
name = "hog"
role = "culprit"
start = "1s"
arguments = ["leak"]
"""
# What the issue asks for; a file may serve two.
_ASKED = {
    "leak_slow", "leak_fast", "leak_burst", "thrash", "fork_bomb", "many_medium", "shm_filler", "tmpfs_filler",
    "stuck_inode_lock", "stuck_fuse", "stuck_mmap_lock", "stuck_pinned", "stuck_cpu_max", "stubborn", "browser_family",
    "unit_oom_group", "container_limit", "user_sessions", "churn", "leak_swap", "leak_zram", "several_shortages",
}  # fmt: skip


def _read(text: str) -> Scenario:
    return read_scenario(parse_source(text, "test.toml"), name="test")


def _faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _read(text)
    return [fault.text for fault in caught.value.faults]


def test_every_scenario_that_was_asked_for_is_there() -> None:
    """And can be read."""
    assert set(names()) >= _ASKED
    assert [load_scenario(name).name for name in names()] == list(names())


@pytest.mark.parametrize("name", names())
def test_a_scenario_has_somebody_who_must_live_and_who_makes_the_shortage(name: str) -> None:
    """Without the first no wrong kill could be seen, without the second nothing happens."""
    scenario = load_scenario(name)
    roles = {role for actor in scenario.actors for role in (actor.role, *actor.children.values())}

    assert Role.INNOCENT in roles
    assert any(actor.start_ns is not None for actor in scenario.actors)
    assert (Role.CULPRIT in roles) == scenario.expectation.is_kill_wanted


@pytest.mark.parametrize("name", names())
def test_a_stuck_victim_outlives_its_scenario(name: str) -> None:
    """Its holders live for 55 s; up to 8 of these pass while it is staged and the rest comes to rest."""
    scenario = load_scenario(name)

    if any(actor.program is Program.STUCK for actor in scenario.actors):
        assert scenario.duration_ns <= 47 * 10**9


def test_what_a_stuck_actor_stages_is_known_to_the_guests_program() -> None:
    """A kind that there is none of would be found out in the guest only."""
    from lab.guest.stuck import KINDS

    kinds = {
        actor.arguments[0]
        for scenario in map(load_scenario, names())
        for actor in scenario.actors
        if actor.program is Program.STUCK
    }

    assert kinds
    assert kinds <= KINDS.keys()


def test_no_contestant_is_told_of_a_scenario() -> None:
    """No name of an actor stands in anybody's settings: they are for machines that nobody has seen before."""
    actors = {
        name
        for scenario in map(load_scenario, names())
        for actor in scenario.actors
        for name in (actor.name, *actor.children)
    }
    settings = [
        text
        for contestant in CONTESTANTS
        for way in contestant.ways.values()
        if isinstance(way, Service)
        for text in way.files.values()
    ]

    assert settings
    assert not [(name, text) for name in actors for text in settings if name in text.replace("-", " ").split()]


def test_the_container_runs_who_the_scenario_says() -> None:
    """The names of its processes, and the group with the limit."""
    (actor,) = (actor for actor in load_scenario("container_limit").actors if actor.program is Program.COMMAND)
    config = str(container.make_config(actor.arguments[2], actor.arguments[3]))

    assert [name for name in actor.children if name not in config] == []
    assert f"/{load_scenario('container_limit').shortage.group}" == actor.arguments[2]


def test_what_is_left_out_has_its_usual_value() -> None:
    """Two CPUs, no swap, a kill wanted, one enough, nobody limited."""
    scenario = _read(_GOOD)

    assert (scenario.machine.cpus, scenario.machine.swap_mib, scenario.machine.zram_mib) == (2, 0, 0)
    assert scenario.expectation == (True, 1, None)
    assert scenario.shortage == (None, 10.0, 15.0)
    assert [actor.start_ns for actor in scenario.actors] == [None, 10**9]
    assert (scenario.is_decisive, scenario.is_in_smoke) == (False, False)


def test_a_machine_of_the_full_image_has_more_memory() -> None:
    """So that what the scenario is about has as much as on the small one."""
    scenario = _read(_GOOD)

    assert scenario.on("6.1", "small").memory_mib == 512
    assert scenario.on("6.1", "full").memory_mib > 512
    assert (scenario.fits("small"), scenario.fits("full")) == (True, True)
    assert not _read(_GOOD.replace('"small"', '"full"')).fits("small")


def test_a_process_belongs_to_an_actor_by_its_name() -> None:
    """A child's role is its own; who is nobody's is innocent."""
    scenario = load_scenario("browser_family")

    assert scenario.role_of("leaktab") == ("browser", Role.CULPRIT)
    assert scenario.role_of("tab") == ("browser", Role.INNOCENT)
    assert scenario.role_of("systemd-journal") == (None, Role.INNOCENT)


def test_all_faults_are_named_at_once() -> None:
    """By their key paths and lines, with what was meant where that can be guessed."""
    text = _GOOD.replace('"30s"', "30").replace("memory_mib = 512", "memory_mib = 64\ncpu = 2")
    text = text.replace('role = "culprit"', 'role = "culprits"').replace('name = "desk"', 'name = "Desk of mine"')

    found = _faults(text)

    assert len(found) == 5
    assert any("test.toml:3: duration: found 30, without a unit" in fault for fault in found)
    assert any("machine.memory_mib: found 64" in fault for fault in found)
    assert any("machine.cpu: there is no such key" in fault and 'did you mean "cpus"' in fault for fault in found)
    assert any("actor[0].name" in fault for fault in found)
    assert any('actor[1].role: found "culprits"' in fault and 'did you mean "culprit"' in fault for fault in found)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (('name = "hog"', 'name = "desk"'), 'actor[1].name: found "desk" again'),
        (('role = "culprit"', 'role = "innocent"'), "actor: found no culprit"),
        (('start = "1s"', 'start = "40s"'), "actor[1].start: found a start after the end"),
        (('start = "1s"', 'start = "1s"\ngroup = "lab/x"'), 'actor[1].group: found "lab/x"'),
        (('start = "1s"', 'start = "1s"\ngroup = "../x"'), 'actor[1].group: found "../x"'),
        (("[machine]", "[expect]\nkill = false\nmost_kills = 1\n[machine]"), "expect.kill: found false"),
        (("[machine]", "[expect]\nleast_kills = 2\nmost_kills = 1\n[machine]"), "expect.most_kills: found 1"),
        (("[machine]", '[shortage]\nback = "5%"\n[machine]'), "shortage.back: found 5%"),
        (("[machine]", '[shortage]\ngroup = "lab/x"\n[machine]'), 'shortage.group: found "lab/x"'),
        (('arguments = ["leak"]', "arguments = [3]"), "actor[1].arguments: found a list"),
        (('start = "1s"', 'start = "1s"\nchildren = {a = "guest"}'), 'actor[1].children: found "guest"'),
        (('about = "One leaks."', ""), "about: it is missing"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_its_key(change: tuple[str, str], fault: str) -> None:
    """Each alone, and nothing else is said."""
    found = _faults(_GOOD.replace(*change))

    assert len(found) == 1
    assert fault in found[0]


def test_a_scenario_that_there_is_none_of_is_guessed() -> None:
    """The name that was meant is offered."""
    with pytest.raises(UsageError, match='did you mean "leak_fast"'):
        load_scenario("leak_fsat")
