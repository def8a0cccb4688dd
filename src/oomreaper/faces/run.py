"""``oomreaper run``: launch big, run small. An ordinary Python reads and checks the settings; a bare one watches.

The plan goes over in a sealed memory file, so that what was checked is what is run, and nothing of it is on a disk or
in an argument list. ``exec`` keeps the pid: to a service manager it is one process.
"""

from __future__ import annotations

import fcntl
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from oomreaper.config.load import find_config, load_plan
from oomreaper.linux.interpreter import fill_standard_descriptors, oomreaper_command, python_command
from oomreaper.watch.plan import encode_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oomreaper.model.plan import Plan

_WATCHER = "from oomreaper.watch.start import main; main(sys.argv[1:])"
_CLERK = "from oomreaper.clerk.serve import main; main(sys.argv[1:])"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def run(*, config: str | None, is_dry_run: bool, events: str | None, within: str | None) -> NoReturn:
    """Become the watcher.

    Raises:
        ConfigError: The file has faults; all of them are named.
        KernelError: There is no interpreter to run it with.
    """
    fill_standard_descriptors()
    content = encode_plan(compile_plan(config=config, events=events, within=within))
    descriptor = os.memfd_create("oomreaper-plan", os.MFD_ALLOW_SEALING)
    while content:
        content = content[os.write(descriptor, content) :]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.set_inheritable(descriptor, True)
    flags = ["--dry-run"] if is_dry_run else []
    command = python_command(_WATCHER, str(descriptor), *flags)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed when we were started
            stream.flush()
    os.execv(command[0], command)  # noqa: S606 - the argument list is ours; there is no shell


def peek(plan: Plan) -> dict[str, object]:
    """The state as a watcher that just began would see it; nobody is signalled.

    Raises:
        KernelError: There is no usable /proc, or no worker can be started.
    """
    from oomreaper.watch.start import Daemon

    daemon = Daemon(plan._replace(events_path=None, clerk=()), is_dry_run=True)
    try:
        return daemon.peek(os.geteuid())
    finally:
        daemon.close()


def print_plan(*, config: str | None, events: str | None, within: str | None) -> int:
    """Write the plan to standard output, for a watcher that was told to read its configuration again."""
    _be_ordinary()
    sys.stdout.buffer.write(encode_plan(compile_plan(config=config, events=events, within=within)))
    sys.stdout.buffer.flush()
    return 0


def compile_plan(*, config: str | None, events: str | None, within: str | None) -> Plan:
    """The plan of a file (or of the defaults), with what the command line adds; its warnings are printed.

    ``config`` None: the file of this user, where there is one. Empty: the defaults, whatever file there is.
    """
    path = find_config() if config is None else config or None
    plan, warnings = load_plan(path)
    for warning in warnings:
        print(f"oomreaper: {warning}", file=sys.stderr)
    options: list[str] = []
    if events is not None:
        options += ["--events", events]
        plan = plan._replace(events_path=events or None)
    if within is not None:
        options += ["--within", within]
        plan = plan._replace(within=within)
    if plan.hooks.pre_kill or plan.hooks.post_kill:
        plan = plan._replace(clerk=tuple(python_command(_CLERK, *_clerk_arguments(plan))))
    if path is not None:
        again = oomreaper_command("run", "--print-plan", "--config", os.path.abspath(path), *options)
        plan = plan._replace(recompile=tuple(again))
    return plan


def _clerk_arguments(plan: Plan) -> Sequence[str]:
    import json

    return [plan.events_path or "", json.dumps(plan.hooks)]


def _be_ordinary() -> None:
    """Give up what a child of the watcher inherits: it must not be spared by the kernel's killer."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("0")
    except OSError:
        pass  # it was not spared, or may not change that
