"""A scenario as values: what a machine has, who runs on it, what happens when; and the machine that is built from it.

Objects that several share (an inode, a gate, a group, an address space) are named. The tables say which kinds of
programs and events there are and what each takes; whoever reads scenarios from a file checks them against these.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.sim import programs
from oomreaper.sim.engine import Band
from oomreaper.sim.groups import CpuGroup, Freezer, MemoryGroup
from oomreaper.sim.locks import Mutex
from oomreaper.sim.machine import Machine
from oomreaper.sim.memory import Area, Kind, SharedPages
from oomreaper.sim.parameters import MS, PLAIN, Parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.killer import Killer
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process, Program


class ProgramSpec(NamedTuple):
    """What a thread runs: a kind of PROGRAM_KINDS and its options, by name; times in ms, sizes in MiB."""

    kind: str
    options: Mapping[str, Any] = MappingProxyType({})


class ProcessSpec(NamedTuple):
    """One process: a thread for each program.

    ``shares_with`` names an earlier one (CLONE_VM); ``group`` and the like name groups of the scenario.
    ``waited_after_ms`` None: nobody waits for it.
    """

    name: str
    programs: tuple[ProgramSpec, ...]
    anon_mib: float = 0
    swap_mib: float = 0
    file_mib: float = 0
    shared_mib: float = 0
    hugetlb_mib: float = 0
    locked_mib: float = 0
    shared_object: str | None = None
    notifier_blocks: bool = False
    shares_with: str | None = None
    oom_score_adj: int = 0
    uid: int = 1000
    band: str = "normal"
    group: str | None = None
    freezer: str | None = None
    cpu_group: str | None = None
    exit_gate: str | None = None
    waited_after_ms: float | None = 0
    ignores_term: bool = False


class EventSpec(NamedTuple):
    """Something that happens from outside, ``at_ms`` after boot: an action of ACTIONS on a named target."""

    at_ms: float
    action: str
    target: str


class GroupSpec(NamedTuple):
    """A memory cgroup; ``has_killer`` False: v1's oom_control 1."""

    limit_mib: float | None
    has_killer: bool = True


class Scenario(NamedTuple):
    """A machine and what runs on it. ``groups``, ``freezers`` and ``cpu_groups`` by their path ("/box")."""

    name: str
    processes: tuple[ProcessSpec, ...]
    parameters: Parameters = PLAIN
    events: tuple[EventSpec, ...] = ()
    groups: Mapping[str, GroupSpec] = MappingProxyType({})
    freezers: tuple[str, ...] = ()
    cpu_groups: Mapping[str, float] = MappingProxyType({})  # the quota in ms of each 100 ms
    kernel_mib: float = 64
    cache_mib: float = 64
    recycles_pids: bool = False


class Stage:
    """What was built: the machine, and the named things on it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.processes: dict[str, Process] = {}
        self.inodes: dict[str, Mutex] = {}
        self.gates: dict[str, programs.Gate] = {}
        self.shared: dict[str, SharedPages] = {}

    def inode(self, name: str) -> Mutex:
        """An inode's lock, by its file's name."""
        if name not in self.inodes:
            self.inodes[name] = Mutex(self.machine.engine, f"the inode lock of {name}")
        return self.inodes[name]

    def gate(self, name: str) -> programs.Gate:
        """Where somebody stands in D until it is opened."""
        if name not in self.gates:
            self.gates[name] = programs.Gate(name)
        return self.gates[name]

    def find(self, name: str) -> Process | None:
        """A process by its name in the scenario."""
        return self.processes.get(name)

    def mm_of(self, name: str) -> Mm | None:
        """Its address space."""
        process = self.processes.get(name)
        return None if process is None else process.mm


class Kindred(NamedTuple):
    """One kind of program: which options it must and may have, and how it is made."""

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    make: Callable[[Stage, Mapping[str, Any]], Program]


def _ns(options: Mapping[str, Any], name: str, default_ms: float = 0) -> int:
    return int(options.get(name, default_ms) * MS)


PROGRAM_KINDS: Mapping[str, Kindred] = MappingProxyType(
    {
        "idle": Kindred((), (), lambda _stage, _options: programs.idle()),
        "busy": Kindred((), ("step_ms",), lambda _stage, options: programs.busy(_ns(options, "step_ms", 1))),
        "hog": Kindred(
            ("mib",),
            ("pause_ms", "start_ms"),
            lambda _stage, options: programs.hog(
                options["mib"], pause_ns=_ns(options, "pause_ms"), start_ns=_ns(options, "start_ms")
            ),
        ),
        "leave": Kindred(("after_ms",), (), lambda _stage, options: programs.leave_after(_ns(options, "after_ms"))),
        "thread_exit": Kindred((), (), lambda _stage, _options: programs.thread_exit()),
        "stand": Kindred(("gate",), (), lambda stage, options: programs.stand_in(stage.gate(options["gate"]))),
        "write_file": Kindred(
            ("inode",),
            ("mib", "pause_ms"),
            lambda stage, options: programs.write_file(
                stage.inode(options["inode"]), mib=options.get("mib", 1), pause_ns=_ns(options, "pause_ms")
            ),
        ),
        "hold_inode": Kindred(
            ("inode", "gate"),
            (),
            lambda stage, options: programs.hold_inode(stage.inode(options["inode"]), stage.gate(options["gate"])),
        ),
        "wait_for_inode": Kindred(
            ("inode",), (), lambda stage, options: programs.wait_for_inode(stage.inode(options["inode"]))
        ),
        "hold_mmap_lock": Kindred(
            ("gate",),
            ("is_writer",),
            lambda stage, options: programs.hold_mmap_lock(
                stage.gate(options["gate"]), is_writer=options.get("is_writer", True)
            ),
        ),
        "map_and_unmap": Kindred(
            (),
            ("mib", "is_killable", "pause_ms"),
            lambda _stage, options: programs.map_and_unmap(
                options.get("mib", 0.25),
                is_killable=options.get("is_killable", True),
                pause_ns=_ns(options, "pause_ms"),
            ),
        ),
        "pin_memory": Kindred(
            ("of", "gate"),
            (),
            lambda stage, options: programs.pin_memory_of(
                lambda: stage.mm_of(options["of"]), stage.gate(options["gate"])
            ),
        ),
        "crash": Kindred(
            ("dump_ms",),
            ("gate",),
            lambda stage, options: programs.crash(
                dump_ns=_ns(options, "dump_ms"), gate=stage.gate(options["gate"]) if "gate" in options else None
            ),
        ),
        "wait_for_child": Kindred(
            ("child",), (), lambda stage, options: programs.wait_for_child(lambda: stage.find(options["child"]))
        ),
    }
)

ACTIONS: Mapping[str, Callable[[Stage, str], None]] = MappingProxyType(
    {
        "open": lambda stage, target: stage.gate(target).open(),
        "kill": lambda stage, target: stage.machine.kill(stage.processes[target]),
        "terminate": lambda stage, target: stage.machine.terminate(stage.processes[target]),
        "freeze": lambda stage, target: stage.machine.freeze(stage.machine.freezers[target]),
        "thaw": lambda stage, target: stage.machine.freezers[target].thaw(),
    }
)
BANDS: Mapping[str, Band] = MappingProxyType({"fifo": Band.FIFO, "normal": Band.NORMAL, "idle": Band.IDLE})


def build(scenario: Scenario, chooser: Chooser, killer: Killer | None = None) -> Stage:
    """The machine of a scenario, at the moment of its boot.

    Raises:
        Violation: There is not so much memory.
        KeyError: A name that the scenario does not have; whoever read it from a file has checked that.
    """
    parameters = scenario.parameters
    machine = Machine(chooser, parameters, killer=killer, kernel_mib=scenario.kernel_mib, cache_mib=scenario.cache_mib)
    machine.recycles_pids = scenario.recycles_pids
    stage = Stage(machine)
    for path, group in scenario.groups.items():
        limit = None if group.limit_mib is None else parameters.pages(group.limit_mib)
        machine.groups[path] = MemoryGroup(path, limit, has_killer=group.has_killer)
    for path in scenario.freezers:
        machine.freezers[path] = Freezer(path)
    for path, quota_ms in scenario.cpu_groups.items():
        machine.cpu_groups[path] = CpuGroup(path, quota_ns=int(quota_ms * MS))
    for process in scenario.processes:
        _add(stage, process)
    for event in scenario.events:
        _schedule(stage, event)
    return stage


def _add(stage: Stage, spec: ProcessSpec) -> None:
    machine = stage.machine
    areas: list[tuple[Area, float]] = []
    if spec.hugetlb_mib:
        areas.append((Area(Kind.HUGETLB), spec.hugetlb_mib))
    if spec.locked_mib:
        areas.append((Area(Kind.ANONYMOUS, "mlocked", is_locked=True), spec.locked_mib))
    if spec.shared_object is not None:
        shared = stage.shared.setdefault(spec.shared_object, SharedPages())
        areas.append((Area(Kind.SHARED, spec.shared_object, shared=shared), 0))
    process = machine.add_process(
        spec.name,
        [PROGRAM_KINDS[program.kind].make(stage, program.options) for program in spec.programs],
        mm=None if spec.shares_with is None else stage.processes[spec.shares_with].mm,
        anon_mib=spec.anon_mib,
        swap_mib=spec.swap_mib,
        file_mib=spec.file_mib,
        shared_mib=spec.shared_mib,
        areas=areas,
        oom_score_adj=spec.oom_score_adj,
        uid=spec.uid,
        band=BANDS[spec.band],
        group=None if spec.group is None else machine.groups[spec.group],
        freezer=None if spec.freezer is None else machine.freezers[spec.freezer],
        cpu_group=None if spec.cpu_group is None else machine.cpu_groups[spec.cpu_group],
    )
    process.waits_after_ns = None if spec.waited_after_ms is None else int(spec.waited_after_ms * MS)
    process.ignores_term = spec.ignores_term
    if spec.exit_gate is not None:
        for thread in process.threads:
            thread.exit_gate = stage.gate(spec.exit_gate)
    if spec.notifier_blocks and process.mm is not None:
        for area in process.mm.areas:
            area.notifier_blocks = True
    stage.processes[spec.name] = process


def _schedule(stage: Stage, event: EventSpec) -> None:
    action = ACTIONS[event.action]
    stage.machine.engine.call_later(int(event.at_ms * MS), lambda: action(stage, event.target))
