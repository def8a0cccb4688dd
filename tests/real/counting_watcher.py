"""A real watcher that counts what it asks the kernel for between a decision's beginning and the hand-over to a worker.

Started as ``oomreaper run`` starts the watcher. The calls of ``os`` and of our own system calls are counted by name;
Python's audit events (open, import, fork, exec, ...) say what was begun besides. It tells at its end, on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

sys.path.append(sys.argv.pop(1))

from oomreaper.linux import cgroup, kept, memcg, memcg_tree, meminfo, population, proc, psi
from oomreaper.linux.census import census, files, table
from oomreaper.reaper.worker import pool
from oomreaper.watch import handles, log, machine, start
from oomreaper.watch.actors import Enforcer
from oomreaper.watch.mind.candidates import Candidates

_PURE = ("fsencode", "fsdecode", "strerror", "path", "fspath", "cpu_count", "sysconf", "environ", "error")


class _Counter:
    """What happens while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.calls: dict[str, int] = {}
        self.begun: list[str] = []

    def audit(self, event: str, operands: tuple[object, ...]) -> None:
        """Something that Python says it begins."""
        if self.is_on:
            self.begun.append(f"{event} {operands[0] if operands else ''}")

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name in _PURE or not callable(real) or isinstance(real, type):
            return real

        def call(*operands: Any, **options: Any) -> Any:
            if self.is_on:
                self.calls[name] = self.calls.get(name, 0) + 1
            return real(*operands, **options)

        return call


def _main() -> None:
    counter = _Counter()
    sys.addaudithook(counter.audit)
    for module in (
        cgroup, kept, memcg, memcg_tree, meminfo, population, proc, psi, census, files, table, pool, handles, log,
        machine,
    ):  # fmt: skip
        if hasattr(module, "os"):
            module.os = counter  # type: ignore[attr-defined]  # the seam: each module's own name for it
    decide, submit = Candidates.decide, Enforcer.submit

    def decide_counted(self: Candidates, *operands: Any) -> Any:
        counter.calls.clear()
        counter.begun.clear()
        counter.is_on = True
        return decide(self, *operands)

    def submit_counted(self: Enforcer, *operands: Any) -> Any:
        answer = submit(self, *operands)
        if counter.is_on:
            counter.is_on = False
            sys.stderr.write(f"counted: {json.dumps({'calls': counter.calls, 'begun': counter.begun})}\n")
        return answer

    Candidates.decide = decide_counted  # type: ignore[method-assign,assignment]  # where the counting begins
    Enforcer.submit = submit_counted  # type: ignore[method-assign,assignment]  # and where it ends
    start.main(sys.argv[1:])


_main()
