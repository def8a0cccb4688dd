"""Our modules on the model: what is replaced, and that nothing of it stays."""

from __future__ import annotations

import ast
import errno
import inspect
import os
import time
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import cgroup, proc, syscalls
from oomreaper.reaper.worker import child
from oomreaper.sim.choice import Seeded
from oomreaper.sim.engine import Signal
from oomreaper.sim.linux import bind
from oomreaper.sim.linux.bind import bound
from oomreaper.sim.machine import Machine
from oomreaper.sim.parameters import SECOND
from oomreaper.sim.programs import idle
from oomreaper.sim.userland import Faults, Userland

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.linux.calls import Calls

# Modules that a bound one imports and that are not the kernel's edge, or are bound themselves.
_HARMLESS = {"contextlib", "errno", "traceback", "typing", "enum", "oomreaper", "__future__", "collections"}
# Used only where a real process becomes a worker (child.run), which the model does not run; constants of signal.
_OF_A_REAL_START = {"resource", "signal"}


def test_everything_is_put_back() -> None:
    """After a simulation, and after one that failed, the modules have the real kernel again."""
    before = [(module, name, module.__dict__.get(name)) for module, names in bind._BOUND for name in names]

    def fail() -> None:
        with bound(Userland(Machine(Seeded(1)))):
            assert child.__dict__["os"] is not os
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    assert [(module, name, module.__dict__.get(name)) for module, name, _ in before] == before
    assert "open" not in cgroup.__dict__
    doors = [child.__dict__[name] for name in ("os", "time", "syscalls")]
    assert doors == [os, time, syscalls]


@pytest.mark.parametrize(("module", "names"), bind._BOUND, ids=[module.__name__ for module, _ in bind._BOUND])
def test_no_module_keeps_a_door_to_the_real_kernel(module: object, names: tuple[str, ...]) -> None:
    """Each standard module that a bound one imports is replaced, or known to be harmless."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type] # a module
    imported = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }

    assert imported - _HARMLESS - _OF_A_REAL_START <= set(names)


def test_a_system_call_outside_any_process_of_ours_is_found() -> None:
    """A double that is called by the test itself, and not by code on the model, says so."""
    land = Userland(Machine(Seeded(1)))

    with bound(land), pytest.raises(Exception, match="outside any process of ours"):
        proc.read_file(3, "stat")


def test_the_models_proc_is_read_by_our_own_parser() -> None:
    """stat, status and memory of a hostile name, through ``linux.proc`` as it is."""
    on = Machine(Seeded(1))
    victim = on.add_process("a) Z (\n", [idle(), idle()], anon_mib=10, swap_mib=0, shared_mib=3, uid=4242)
    seen: dict[str, object] = {}

    def look() -> None:
        root = proc.open_root()
        process = proc.open_process(root, victim.pid)
        assert process is not None
        seen["stat"] = proc.read_stat(process)
        seen["status"] = proc.read_status(process)
        seen["memory"] = proc.read_memory(process)
        seen["threads"] = proc.read_thread_ids(process)
        seen["pids"] = sorted(proc.read_pids(root))
        seen["mounts"] = cgroup.read_mounts(root)
        on.engine.stop()

    land = Userland(on)
    with bound(land):
        looker = land.add("looker", look)
        on.engine.run(until_ns=on.engine.now_ns + SECOND)

    stat, status = seen["stat"], seen["status"]
    assert isinstance(stat, proc.Stat)
    assert isinstance(status, proc.Status)
    assert (stat.comm, stat.identity, stat.num_threads, stat.state) == (b"a) Z (\n", victim.identity, 2, "S")
    assert status.uid == 4242
    assert status.memory is not None
    assert (status.memory.anon_bytes, status.memory.shmem_bytes) == (10 << 20, 3 << 20)
    assert seen["memory"] == status.memory
    assert seen["threads"] == [victim.pid, victim.pid + 1]
    assert seen["pids"] == [1, 2, victim.pid, looker.process.pid]
    assert len(seen["mounts"]) == 3  # type: ignore[arg-type] # a list


def test_a_defect_of_our_code_ends_the_simulation_and_is_seen() -> None:
    """An exception of a process of ours comes out of the engine's run, whoever else is in mid-call."""
    on = Machine(Seeded(1))
    land = Userland(on)

    def fail() -> None:
        proc.open_root()
        raise ZeroDivisionError

    def run() -> None:
        with bound(land):
            land.add("sleeper", lambda: land.run(iter([Signal("nothing")])))  # type: ignore[arg-type] # it yields once
            land.add("buggy", fail)
            on.engine.run(until_ns=on.engine.now_ns + SECOND)

    with pytest.raises(ZeroDivisionError):
        run()


def test_injected_faults_are_the_kernels_errnos_and_are_kept() -> None:
    """Each kind of fault, always: what the caller gets is the errno that it stands for."""
    seen: list[int | None] = []

    def look(faults: Faults, call: Callable[[Userland, Calls], object]) -> None:
        on = Machine(Seeded(1))
        land = Userland(on, faults)
        with bound(land) as calls:

            def run() -> None:
                try:
                    call(land, calls)
                except OSError as error:
                    seen.append(error.errno)

            land.add("looker", run)
            on.engine.run(until_ns=on.engine.now_ns + SECOND)
        assert len(land.injected) == 1

    look(Faults(descriptor=1), lambda _land, calls: calls.os.open("/proc", 0))
    look(Faults(memory=1), lambda _land, calls: calls.os.open("/proc", 0))
    look(Faults(descriptor=1), lambda _land, calls: calls.syscalls.pidfd_open(2))
    look(Faults(reap=1), lambda _land, calls: calls.syscalls.process_mrelease(calls.syscalls.pidfd_open(2)))

    assert seen == [errno.EMFILE, errno.ENOMEM, errno.EMFILE, errno.EAGAIN]


def test_a_saboteur_fails_one_certain_call() -> None:
    """The second pidfd_open of one pid and nothing else."""
    on = Machine(Seeded(1))
    land = Userland(on)
    calls_of_init: list[object] = []
    answers: list[int] = []

    def sabotage(what: str, about: object) -> int | None:
        if what == "pidfd_open" and about == 2:
            calls_of_init.append(about)
            return errno.ENOMEM if len(calls_of_init) == 2 else None
        return None

    with bound(land) as calls:

        def run() -> None:
            for pid in (2, 2, 2, on.init.pid + 1):
                try:
                    calls.syscalls.pidfd_open(pid)
                    answers.append(0)
                except OSError as error:
                    answers.append(error.errno or -1)

        land.saboteur = sabotage
        land.add("looker", run)
        on.engine.run(until_ns=on.engine.now_ns + SECOND)

    assert answers == [0, errno.ENOMEM, 0, 0]
