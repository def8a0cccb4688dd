"""Our own modules on the model for a time: their globals that are the kernel's edge are replaced, and put back.

Nothing of the code changes: ``oomreaper.linux.proc`` parses what the model's /proc says, ``look`` and ``cgroup`` walk
it, the worker and its errands do their jobs, the watcher keeps its pidfds. One machine at a time in one Python.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from oomreaper.linux import cgroup, look, proc
from oomreaper.reaper.worker import child, errands
from oomreaper.sim.linux.calls import Calls
from oomreaper.watch import actors, handles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from oomreaper.sim.userland import Userland

# Which names of which module are replaced. What a module uses of the kernel and does not stand here it would really do:
# a test checks the list against the modules' imports.
_BOUND: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (proc, ("os",)),
    (look, ("os", "select", "syscalls")),
    (cgroup, ("os", "open")),
    (child, ("os", "time", "socket", "syscalls")),
    (errands, ("os", "time", "syscalls")),
    (handles, ("os", "syscalls")),
    (actors, ("syscalls",)),
)
_ABSENT = object()


@contextlib.contextmanager
def bound(userland: Userland) -> Iterator[Calls]:
    """For the time of a simulation; what is still running of ours at its end is ended."""
    calls = Calls(userland)
    doubles = {name: getattr(calls, name) for name in ("os", "select", "time", "socket", "syscalls")}
    doubles["open"] = calls.open_path
    kept = [(module, name, module.__dict__.get(name, _ABSENT)) for module, names in _BOUND for name in names]
    try:
        for module, names in _BOUND:
            for name in names:
                module.__dict__[name] = doubles[name]
        yield calls
    finally:
        userland.close()
        for module, name, original in kept:
            if original is _ABSENT:
                del module.__dict__[name]
            else:
                module.__dict__[name] = original
