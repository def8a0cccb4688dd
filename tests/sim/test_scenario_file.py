"""A scenario file is read to values, and a broken one has every fault of it named."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from oomreaper.config.source import parse_source
from oomreaper.errors import ConfigError, UsageError
from oomreaper.sim.choice import Seeded
from oomreaper.sim.parameters import MIB, MS
from oomreaper.sim.scenario import PROGRAM_KINDS, EventSpec, ProgramSpec, build
from oomreaper.sim.scenario_file import MOST_FAULTS, Setup, load_scenario, names, read_scenario
from oomreaper.sim.scenario_format import program_fields

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = "[machine]\nmemory_mib = 512\n"
PROCESS = '[[process]]\nname = "a"\n'
# A broken text, and for each of its faults the key path, its line, and words that must be told.
BROKEN: dict[str, tuple[str, list[tuple[str, int | None, str]]]] = {
    "empty": ("", [("machine", None, "it is missing"), ("process", None, "it is missing")]),
    "no toml": ("[machine\n", [("", 1, "no TOML")]),
    "no process": (MACHINE, [("process", None, "must have processes")]),
    "machine is no table": ("machine = 3\n" + PROCESS, [("machine", 1, "found 3")]),
    "process is no array": (MACHINE + "[process]\n", [("process", 3, "array of tables")]),
    "process is a text": ('process = "x"\n' + MACHINE, [("process", 1, "array of tables")]),
    "unknown table": (MACHINE + PROCESS + "[[processx]]\n", [("processx", 5, 'did you mean "process"?')]),
    "misspelt key": (MACHINE + PROCESS + "anon_mb = 3\n", [("process[0].anon_mb", 5, 'did you mean "anon_mib"?')]),
    "misspelt required key": (
        MACHINE + '[[process]]\nnames = "a"\n',
        [("process[0].names", 4, 'did you mean "name"?')],
    ),
    "no name": (MACHINE + "[[process]]\n", [("process[0].name", 3, "must have it")]),
    "no memory": ("[machine]\n" + PROCESS, [("machine.memory_mib", 1, "must have it")]),
    "a size that is none": (MACHINE + PROCESS + 'anon_mib = "4 MiB"\n', [("process[0].anon_mib", 5, "a size in MiB")]),
    "a negative size": (MACHINE + PROCESS + "anon_mib = -1\n", [("process[0].anon_mib", 5, "from 0")]),
    "not a number": (MACHINE + PROCESS + "anon_mib = nan\n", [("process[0].anon_mib", 5, "found nan")]),
    "a flag in quotes": (
        MACHINE + PROCESS + 'ignores_term = "yes"\n',
        [("process[0].ignores_term", 5, "true or false, without quotes")],
    ),
    "an unknown band": (MACHINE + PROCESS + 'band = "fifi"\n', [("process[0].band", 5, 'did you mean "fifo"?')]),
    "an unknown program": (
        MACHINE + PROCESS + '[[process.thread]]\ndoes = "write_fil"\n',
        [("process[0].thread[0].does", 6, 'did you mean "write_file"?')],
    ),
    "a program's option missing": (
        MACHINE + PROCESS + '[[process.thread]]\ndoes = "hog"\n',
        [("process[0].thread[0].mib", 5, "must have it")],
    ),
    "another program's option": (
        MACHINE + PROCESS + '[[process.thread]]\ndoes = "idle"\nmib = 3\n',
        [("process[0].thread[0].mib", 7, "known are does")],
    ),
    "a time without a unit": (
        MACHINE + PROCESS + '[[process.thread]]\ndoes = "leave"\nafter = 3\n',
        [("process[0].thread[0].after", 7, 'did you mean "3s"?')],
    ),
    "the second process's thread": (
        MACHINE
        + PROCESS
        + '[[process.thread]]\ndoes = "idle"\n[[process]]\nname = "b"\n[[process.thread]]\ndoes = 1\n',
        [("process[1].thread[0].does", 10, "found 1")],
    ),
    "threads are no tables": (MACHINE + PROCESS + "thread = [1]\n", [("process[0].thread", 5, "found a list")]),
    "two of a name": (MACHINE + PROCESS + PROCESS, [("process[1].name", 6, "again")]),
    "shares with nobody": (
        MACHINE + PROCESS + 'shares_with = "b"\n[[process]]\nname = "b"\n',
        [("process[0].shares_with", 5, "a process further up")],
    ),
    "pins nobody": (
        MACHINE + PROCESS + '[[process.thread]]\ndoes = "pin_memory"\nof = "aa"\ngate = "x"\n',
        [("process[0].thread[0].of", 7, 'did you mean "a"?')],
    ),
    "a group that is not there": (
        MACHINE + PROCESS + 'group = "/b"\n[[group]]\nname = "/box"\n',
        [("process[0].group", 5, 'did you mean "/box"?')],
    ),
    "a gate that nobody stands at": (
        MACHINE + PROCESS + '[[event]]\nat = "1s"\ndoes = "open"\ntarget = "x"\n',
        [("event[0].target", 8, "a gate that somebody stands at")],
    ),
    "an event without a time": (
        MACHINE + PROCESS + '[[event]]\ndoes = "kill"\ntarget = "a"\n',
        [("event[0].at", 5, "must have it")],
    ),
    "too much from the start": (
        MACHINE + PROCESS + "anon_mib = 500\n",
        [("machine.memory_mib", 2, "644 MiB are held from the start")],
    ),
    "too much swapped": (MACHINE + PROCESS + "swap_mib = 5\n", [("machine.swap_mib", 1, "5 MiB are swapped")]),
    "too many": (MACHINE + PROCESS + "count = 2001\n", [("process[0].count", 5, "from 1 to 2000")]),
    "nothing to start": (
        MACHINE + PROCESS + 'start_every = "1ms"\n',
        [("process[0].start_every", 5, "none of its threads has a start")],
    ),
    "settings of the watcher": (
        MACHINE + PROCESS + "[watcher.settings.kill]\nattemptsx = 3\n",
        [("watcher.settings.kill.attemptsx", 6, 'did you mean "attempts"?')],
    ),
    "several at once": (
        '[machine]\nmemory_mib = 1\ncpu = 2\n[[process]]\nname = ""\nband = 3\n[[event]]\n',
        [
            ("machine.memory_mib", 2, "from 64"),
            ("machine.cpu", 3, 'did you mean "cpus"?'),
            ("process[0].name", 5, 'found ""'),
            ("process[0].band", 6, "found 3"),
            ("event[0].at", 7, "must have it"),
            ("event[0].does", 7, "must have it"),
            ("event[0].target", 7, "must have it"),
        ],
    ),
    "what a terminal would obey": (
        MACHINE + PROCESS + '"\\u001b[31m" = 1\n',
        [("process[0].\\x1b[31m", 3, "no such key")],
    ),
}


def _read(text: str) -> Setup:
    return read_scenario(parse_source(text, "x.toml"), name="x")


@pytest.mark.parametrize("name", BROKEN)
def test_every_fault_of_a_broken_file_is_named(name: str) -> None:
    """Key path, line and what is allowed, for each fault and no other."""
    text, expected = BROKEN[name]

    with pytest.raises(ConfigError) as raised:
        _read(text)
    faults = raised.value.faults
    assert sorted((key, line) for key, line, _ in expected) == sorted((fault.key, fault.line) for fault in faults)
    for key, _, words in expected:
        assert any(fault.key == key and words in fault.text for fault in faults), (key, words)
    assert all(fault.text.isprintable() for fault in faults)


def test_a_file_of_faults_does_not_flood() -> None:
    """A hundred are told, and how many more there are."""
    text = MACHINE + PROCESS + "".join(f"x{number} = 1\n" for number in range(150))

    with pytest.raises(ConfigError) as raised:
        _read(text)
    assert len(raised.value.faults) == MOST_FAULTS + 1
    assert raised.value.faults[-1].found == "and 50 faults more"


def test_a_file_says_what_it_means() -> None:
    """Every kind of value arrives: sizes, times, names, counts, events, and what the watcher is to do."""
    setup = _read(
        'about = "two of them"\n'
        '[machine]\nmemory_mib = 256\nswap_mib = 10\ncpus = 1\nkernel_mib = 10\nreap_sleep = "50ms"\n'
        '[[process]]\nname = "hog"\ncount = 2\nstart_every = "20ms"\nanon_mib = 4\nswap_mib = 2\n'
        "is_waited_for = false\n"
        '[[process.thread]]\ndoes = "hog"\nmib = 8\nstart = "5ms"\n[[process.thread]]\ndoes = "stand"\ngate = "door"\n'
        '[[event]]\nat = "1.5s"\ndoes = "open"\ntarget = "door"\n'
        "[watcher]\nrealtime = false\n[watcher.settings.kill]\nattempts = 3\n"
    )
    scenario = setup.scenario

    assert (setup.about, setup.is_realtime) == ("two of them", False)
    assert setup.plan is not None
    assert setup.plan.attempts == 3
    assert scenario.parameters.memory_bytes == 256 * MIB
    assert (scenario.parameters.cpus, scenario.parameters.reap_sleep_ns, scenario.kernel_mib) == (1, 50 * MS, 10)
    assert [process.name for process in scenario.processes] == ["hog-1", "hog-2"]
    assert [dict(process.programs[0].options) for process in scenario.processes] == [
        {"mib": 8, "start_ms": 5},
        {"mib": 8, "start_ms": 25},
    ]
    assert scenario.processes[1].programs[1] == ProgramSpec("stand", {"gate": "door"})
    assert scenario.processes[0].waited_after_ms is None
    assert scenario.events == (EventSpec(1500, "open", "door"),)


@pytest.mark.parametrize("kind", PROGRAM_KINDS)
def test_every_kind_of_program_can_be_written(kind: str) -> None:
    """A file with just what a program needs makes a machine on which it is."""
    values = {"mib": "1", "gate": '"x"', "inode": '"x"', "of": '"a"', "child": '"a"'}
    lines = [
        f"{field.key} = {values.get(field.key, chr(34) + '1s' + chr(34))}\n"
        for field in program_fields(kind)
        if field.is_required
    ]

    setup = _read(MACHINE + PROCESS + f'[[process.thread]]\ndoes = "{kind}"\n' + "".join(lines))
    stage = build(setup.scenario, Seeded(0))
    stage.machine.engine.run(max_steps=100)
    assert stage.find("a") is not None


@pytest.mark.parametrize("name", names())
def test_every_built_in_scenario_can_be_read_and_built(name: str) -> None:
    """Each has words about it, and its machine stands."""
    setup = load_scenario(name)

    assert setup.scenario.name == name
    assert re.match(r"[a-z].*\S", setup.about)
    assert len(build(setup.scenario, Seeded(0)).processes) == len(setup.scenario.processes)


def test_what_is_no_scenario_is_told_with_what_there_is(tmp_path: Path) -> None:
    """A name that there is none of, with the one that was meant; a file that is not there; a directory."""
    with pytest.raises(UsageError, match=r'did you mean "healthy"\?.*inode_lock'):
        load_scenario("helthy")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scenario(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="it is a directory"):
        load_scenario(f"{tmp_path}/")
