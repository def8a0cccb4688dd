"""Scenarios as values: what is written is what is built."""

from __future__ import annotations

import pytest

from oomreaper.sim.choice import Seeded
from oomreaper.sim.parameters import GIB, PLAIN
from oomreaper.sim.scenario import (
    ACTIONS,
    PROGRAM_KINDS,
    EventSpec,
    GroupSpec,
    ProcessSpec,
    ProgramSpec,
    Scenario,
    build,
)
from tests.sim.making import go_on

# A value for each option that a kind must have.
_OPTIONS = {
    "mib": 10,
    "after_ms": 5,
    "gate": "a gate",
    "inode": "a file",
    "of": "other",
    "dump_ms": 5,
    "child": "other",
}


@pytest.mark.parametrize("kind", PROGRAM_KINDS)
def test_every_kind_of_program_runs_and_leaves_no_page_behind(kind: str) -> None:
    """With what it must have and no more: it runs, is killed, its gates are opened, and all of its memory is back."""
    options = {name: _OPTIONS[name] for name in PROGRAM_KINDS[kind].needed}
    idler = ProcessSpec("other", (ProgramSpec("idle"),), anon_mib=5)
    subject = ProcessSpec("subject", (ProgramSpec(kind, options), ProgramSpec("idle")), anon_mib=20)
    stage = build(Scenario("one", (idler, subject)), Seeded(1))
    other_pages = stage.machine.allocator.anon - stage.machine.parameters.pages(20)
    go_on(stage.machine, 0.1, max_steps=5_000)

    for gate in stage.gates.values():
        gate.open()
    if not stage.processes["subject"].is_dead:
        stage.machine.kill(stage.processes["subject"])
    go_on(stage.machine, 1, max_steps=20_000)

    assert stage.processes["subject"].is_waited
    assert stage.machine.allocator.anon == other_pages


def test_what_a_process_has_is_what_was_written() -> None:
    """Memory of each kind, groups, a shared address space, a shared object, a zombie that nobody waits for."""
    scenario = Scenario(
        "all",
        (
            ProcessSpec(
                "first",
                (ProgramSpec("idle"),),
                anon_mib=10,
                swap_mib=20,
                file_mib=5,
                shared_mib=6,
                hugetlb_mib=4,
                locked_mib=3,
                group="/box",
                freezer="/cold",
                cpu_group="/slow",
                oom_score_adj=300,
                uid=7,
                band="idle",
                waited_after_ms=None,
                ignores_term=True,
            ),
            ProcessSpec("second", (ProgramSpec("idle"),), shares_with="first"),
        ),
        parameters=PLAIN._replace(swap_bytes=GIB),
        groups={"/box": GroupSpec(500, has_killer=False)},
        freezers=("/cold",),
        cpu_groups={"/slow": 10},
    )

    stage = build(scenario, Seeded(1))

    machine, first = stage.machine, stage.processes["first"]
    mm, pages = first.mm, machine.parameters.pages
    assert mm is not None
    assert (mm.anon_pages, mm.swap_pages, mm.file_pages, mm.shmem_pages) == (pages(13), pages(20), pages(5), pages(6))
    assert machine.allocator.hugetlb == pages(4)
    assert stage.processes["second"].mm is mm
    assert (first.group, first.threads[0].freezer) == (machine.groups["/box"], machine.freezers["/cold"])
    assert machine.groups["/box"].charged == pages(44)
    assert (first.oom_score_adj, first.uid, first.ignores_term, first.waits_after_ns) == (300, 7, True, None)


def test_events_happen_when_they_are_due() -> None:
    """Frozen at 10 ms, killed at 20 (and held), thawed at 30: dead after 30 and not before."""
    events = tuple(
        EventSpec(at_ms, action, target)
        for at_ms, action, target in ((10, "freeze", "/cold"), (20, "kill", "subject"), (30, "thaw", "/cold"))
    )
    subject = ProcessSpec("subject", (ProgramSpec("busy"),), anon_mib=10, freezer="/cold")
    stage = build(Scenario("events", (subject,), events=events, freezers=("/cold",)), Seeded(1))
    process = stage.processes["subject"]
    seen = []
    for _ in range(3):
        go_on(stage.machine, 0.0145)
        seen.append((process.is_group_exit, process.is_dead))

    assert seen == [(False, False), (True, False), (True, True)]
    assert {"open", "kill", "terminate", "freeze", "thaw"} == set(ACTIONS)
