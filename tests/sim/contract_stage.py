"""The victims of ``tests/victims/stage.py``, built on the modelled machine, by the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim import programs
from oomreaper.sim.choice import Seeded
from oomreaper.sim.engine import Band, Signal
from oomreaper.sim.groups import Freezer, MemoryGroup
from oomreaper.sim.locks import Mutex
from oomreaper.sim.machine import Machine
from oomreaper.sim.memory import Area, Kind
from oomreaper.sim.parameters import PLAIN, SECOND
from oomreaper.sim.programs import Gate, idle
from tests.sim.contract import SIZE_MIB, SimSubject

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.tasks import Process, Thread

    Staging = Callable[[Machine], SimSubject]

# A dump that is not aborted lasts longer than any script.
_LONG_NS = 3_600 * SECOND
_THREADS = 200


def stage_on(staging: Staging, seed: int) -> SimSubject:
    """A machine with this victim on it."""
    return staging(Machine(Seeded(seed), PLAIN))


def plain(machine: Machine) -> SimSubject:
    """Sleeps."""
    return SimSubject(machine, machine.add_process("victim", (idle(),), anon_mib=SIZE_MIB))


def many_threads(machine: Machine) -> SimSubject:
    """Many sleepers of one process."""
    return SimSubject(machine, machine.add_process("victim", (idle(),) * _THREADS, anon_mib=SIZE_MIB))


def zombie_leader(machine: Machine) -> SimSubject:
    """The leader has left."""
    victim = machine.add_process("victim", (programs.thread_exit(), idle()), anon_mib=SIZE_MIB)
    return SimSubject(machine, victim)


def sharers(machine: Machine) -> SimSubject:
    """Another process in the same memory."""
    victim = machine.add_process("victim", (idle(),), anon_mib=SIZE_MIB)
    return SimSubject(machine, victim, others=[machine.add_process("sharer", (idle(),), mm=victim.mm)])


def vfork_parent(machine: Machine) -> SimSubject:
    """A parent that waits in D for a child in its memory."""
    children: list[Process] = []
    victim = machine.add_process(
        "victim", (programs.wait_for_child(lambda: children[0] if children else None),), anon_mib=SIZE_MIB
    )
    gate = Gate("the child's pipe")

    def wait_on_pipe(machine: Machine, thread: Thread) -> Steps:
        pipe = Signal("a pipe", is_interruptible=True, timeout_ns=1_000_000)
        while not gate.is_open:
            yield pipe
            yield from machine.user(thread)

    children.append(machine.add_process("child", (wait_on_pipe,), mm=victim.mm))
    return SimSubject(machine, victim, others=children, release=gate.open)


def inode_lock(machine: Machine) -> SimSubject:
    """D, for an inode's lock that somebody holds."""
    inode, gate = Mutex(machine.engine, "inode 1"), Gate("a page that nobody brings")
    machine.add_process("holder", (programs.hold_inode(inode, gate),))
    machine.engine.run(max_steps=200)
    victim = machine.add_process("victim", (programs.wait_for_inode(inode),), anon_mib=SIZE_MIB)
    return SimSubject(machine, victim, release=gate.open)


def zombie_leader_stuck(machine: Machine) -> SimSubject:
    """The same, in a second thread whose leader has left."""
    inode, gate = Mutex(machine.engine, "inode 1"), Gate("a page that nobody brings")
    machine.add_process("holder", (programs.hold_inode(inode, gate),))
    machine.engine.run(max_steps=200)
    threads = (programs.thread_exit(), programs.wait_for_inode(inode))
    return SimSubject(machine, machine.add_process("victim", threads, anon_mib=SIZE_MIB), release=gate.open)


def fuse_read(machine: Machine) -> SimSubject:
    """S for an answer, and D once it is killed."""
    gate = Gate("an answer of the FUSE server")
    answer = Signal("an answer", is_interruptible=True)

    def read(machine: Machine, thread: Thread) -> Steps:
        if not gate.is_open:
            yield answer
        yield from gate.pass_through()
        yield from machine.user(thread)
        yield from idle()(machine, thread)

    def release() -> None:
        gate.open()
        answer.wake_all()

    return SimSubject(machine, machine.add_process("victim", (read,), anon_mib=SIZE_MIB), release=release)


def frozen_write(machine: Machine) -> SimSubject:
    """D in write() to a frozen file system."""
    gate = Gate("the thaw of a file system")
    stack = ("percpu_rwsem_wait", "vfs_write")
    victim = machine.add_process("victim", (programs.stand_in(gate, stack=stack),), anon_mib=SIZE_MIB)
    return SimSubject(machine, victim, release=gate.open)


def frozen_cgroup_v1(machine: Machine) -> SimSubject:
    """In a v1 freezer group."""
    freezer = Freezer("/frozen")
    victim = machine.add_process("victim", (idle(),), anon_mib=SIZE_MIB, freezer=freezer)
    machine.engine.run(max_steps=200)
    machine.freeze(freezer)
    return SimSubject(machine, victim, release=freezer.thaw)


def starved_by_busy_loops(machine: Machine) -> SimSubject:
    """SCHED_IDLE, where the CPUs are wanted by others."""
    loops = [machine.add_process("loop", (programs.busy(),)) for _ in range(4)]
    victim = machine.add_process("victim", (idle(), programs.busy()), anon_mib=SIZE_MIB, band=Band.IDLE)

    def release() -> None:
        for loop in loops:
            machine.kill(loop)

    return SimSubject(machine, victim, release=release)


def parked_in_exit(machine: Machine) -> SimSubject:
    """A tracer stops it at the beginning of its exit."""
    return park(machine, machine.add_process("victim", (idle(),), anon_mib=SIZE_MIB))


def parked_locked(machine: Machine) -> SimSubject:
    """The same, its memory mlocked."""
    area = Area(Kind.ANONYMOUS, "mlocked", is_locked=True)
    return park(machine, machine.add_process("victim", (idle(),), areas=((area, SIZE_MIB),)))


def parked_shared(machine: Machine) -> SimSubject:
    """The same, its memory shared."""
    return park(machine, machine.add_process("victim", (idle(),), shared_mib=SIZE_MIB))


def parked_sharers(machine: Machine) -> SimSubject:
    """The same, with another process in its memory, which nobody traces."""
    victim = machine.add_process("victim", (idle(),), anon_mib=SIZE_MIB)
    return park(machine, victim, machine.add_process("sharer", (idle(),), mm=victim.mm))


def core_dump_to_pipe(machine: Machine) -> SimSubject:
    """A dump that nobody reads."""
    victim = machine.add_process("victim", (programs.crash(dump_ns=_LONG_NS),), anon_mib=SIZE_MIB)
    return SimSubject(machine, victim)


def core_dump_to_frozen_filesystem(machine: Machine) -> SimSubject:
    """A dump that stands in D."""
    gate = Gate("the thaw of a file system")
    victim = machine.add_process("victim", (programs.crash(dump_ns=0, gate=gate),), anon_mib=SIZE_MIB)
    return SimSubject(machine, victim, release=gate.open)


def mmap_lock_held(machine: Machine) -> SimSubject:
    """A thread in D holds mmap_lock for writing."""
    gate = Gate("the thaw of a file system")
    victim = machine.add_process("victim", (idle(), programs.hold_mmap_lock(gate)), anon_mib=SIZE_MIB)
    return SimSubject(machine, victim, release=gate.open)


def pinned_by_remote_read(machine: Machine) -> SimSubject:
    """Another process stands in a read of its memory."""
    group, gate = MemoryGroup("/victim", None), Gate("a page that nobody brings")
    victim = machine.add_process("victim", (idle(),), anon_mib=SIZE_MIB, group=group)
    machine.add_process("reader", (programs.pin_memory_of(lambda: victim.mm, gate),))
    return SimSubject(machine, victim, release=gate.open, group=group)


def park(machine: Machine, victim: Process, *others: Process) -> SimSubject:
    """Have a tracer stop it at the beginning of its exit."""
    gate = Gate("its tracer")
    gate.letter = "t"  # a tracing stop
    victim.threads[0].exit_gate = gate

    def release() -> None:
        victim.threads[0].exit_gate = None
        gate.open()

    return SimSubject(machine, victim, others=others, release=release)
