"""The command ``oomreaper``: arguments in, records out, the contract's exit status."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from oomreaper import __version__
from oomreaper.errors import BrokenPromiseError, KernelError, OomreaperError, UsageError
from oomreaper.faces import simulate
from oomreaper.model.outcome import Outcome, OutcomeKind, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oomreaper.watch.errand import Target

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it

_MIB = 1 << 20
_CONFIG_HELP = "the configuration (default: /etc/oomreaper.toml, or that of the user); an empty FILE: the defaults"
_WITHIN_HELP = "a memory cgroup, as /proc/PID/cgroup names it: its limit is the machine's, its members the only victims"
# The whole table, by status; the manual page is made from it.
EXIT_STATUS: Mapping[str, str] = MappingProxyType(
    {
        "0": "Every victim is reaped or exited. For doctor: a reap works here. For demo: it showed what it is to show. "
        "For check and import: no fault was found. For run: it was told to end.",
        "1": "Not so: at least one victim is lost, unreapable, refused or gone.",
        "2": "Usage: an argument, or a configuration, that makes no sense. Nothing was done.",
        "3": "Not permitted or not supported here: with other rights or another kernel it would have been done.",
        "70": "A bug of oomreaper. Please report it.",
        "130, 143": "Interrupted by SIGINT, by SIGTERM.",
    }
)
_EXIT_OK, _EXIT_NOT_ALL, _EXIT_NOT_PERMITTED = 0, 1, 3
_REPORT_URL_HINT = "this is a bug of oomreaper; please report it with the command that you gave"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; the man pages are made from it."""
    parser = argparse.ArgumentParser(
        prog="oomreaper",
        description="Watch for a shortage of memory, choose a victim, kill it and get its memory back, "
        "even when it cannot die.",
    )
    parser.add_argument("--version", action="version", version=f"oomreaper {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_run(commands)
    reap = commands.add_parser(
        "reap",
        help="kill processes and free their memory",
        description="Kill each process and free its anonymous and swapped memory at once, even when it cannot die.",
    )
    reap.add_argument("--json", action="store_true", help="print one JSON record a line")
    reap.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="give a victim up that long after the signal, even if its memory still moves (default: 30); "
        "one whose memory does not move is given up after ten attempts, about one second",
    )
    reap.add_argument(
        "--coredump",
        choices=("abort", "wait"),
        default="abort",
        help="what to do with a victim that is dumping core: abort cuts the dump short (default), "
        "wait lets it finish within the time-out",
    )
    reap.add_argument("--dry-run", action="store_true", help="say what would be done; signal nobody")
    reap.add_argument(
        "targets",
        nargs="+",
        type=_target,
        metavar="PID",
        help="the process to kill; PID:START, with field 22 of /proc/PID/stat, makes sure of its identity",
    )
    reap.set_defaults(run=_run_reap)

    doctor = commands.add_parser(
        "doctor",
        help="say what this machine permits",
        description="Say what this kernel, user and sandbox permit, what is lost without it, and the remedy.",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object a line")
    doctor.set_defaults(run=_run_doctor)

    _add_explain(commands)
    _add_check(commands)
    _add_import(commands)
    simulate.add_parser(commands)
    demo = commands.add_parser(
        "demo",
        help="show a shortage, and a process that cannot die lose its memory",
        description="Make a shortage in a control group of the demo's own, with a process that cannot die, and show "
        "what the watcher does about it; then kill such a process in vain and reap it. Shows memory over time. The "
        "first needs a memory cgroup (root, or one that is delegated to you) and is skipped, with the reason, without. "
        "Everything it makes is bounded and removed again.",
    )
    demo.add_argument(
        "--json", action="store_true", help="print the samples, the watcher's events and the records as JSON lines"
    )
    demo.add_argument(
        "--size-mib", type=_size_mib, default=512, metavar="MIB", help="the victim's memory (default: 512; 16 to 4096)"
    )
    demo.set_defaults(run=_run_demo)
    return parser


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run",
        help="watch, and kill when memory runs out",
        description="Watch for a shortage of memory; when it comes, choose a victim, kill it and get its memory back. "
        "Runs until SIGTERM or SIGINT; SIGHUP reads the configuration again. With no configuration file it runs on "
        "sound defaults; an ordinary user may run it for his own processes.",
    )
    run.add_argument("--config", metavar="FILE", help=_CONFIG_HELP)
    run.add_argument("--dry-run", action="store_true", help="take every step but the signal; say what would be done")
    run.add_argument("--events", metavar="PATH", help="the event socket; an empty PATH: none (default: by the file)")
    run.add_argument("--within", metavar="GROUP", help=_WITHIN_HELP)
    run.add_argument("--print-plan", action="store_true", help=argparse.SUPPRESS)
    run.set_defaults(run=_run_run)


def _add_explain(commands: _Commands) -> None:
    explain = commands.add_parser(
        "explain",
        help="say who would be killed, who never, and why nothing is done",
        description="Show how far each rule is from firing, who would be chosen and why, who is protected and why, and "
        "why nothing was done. Asks the watcher that runs; where none runs, looks for itself once and signals nobody.",
    )
    explain.add_argument("--json", action="store_true", help="print the whole state as one JSON object")
    explain.add_argument("--all", action="store_true", help="show everybody, not only a screenful")
    explain.add_argument("--config", metavar="FILE", help=_CONFIG_HELP)
    explain.add_argument("--events", metavar="PATH", help="the socket of the watcher to ask (default: by the file)")
    explain.add_argument("--within", metavar="GROUP", help=_WITHIN_HELP)
    explain.set_defaults(run=_run_explain)


def _add_check(commands: _Commands) -> None:
    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Check a configuration file: name every fault at once, or show what would be in force.",
    )
    check.add_argument("file", nargs="?", metavar="FILE", help=_CONFIG_HELP)
    check.add_argument("--json", action="store_true", help="print one JSON object a line")
    check.add_argument("--print-defaults", action="store_true", help="print a file with every setting and its default")
    check.set_defaults(run=_run_check)


def _add_import(commands: _Commands) -> None:
    importing = commands.add_parser(
        "import",
        help="turn another killer's settings into ours",
        description="Read the settings of earlyoom, nohang or systemd-oomd and print ours; each setting that cannot be "
        "carried over is named, with what to do instead.",
    )
    importing.add_argument("peer", choices=("earlyoom", "nohang", "systemd-oomd"), help="whose settings")
    importing.add_argument("file", nargs="?", metavar="FILE", help="its file or folder (default: where it keeps them)")
    importing.add_argument("--json", action="store_true", help="print one JSON object a line")
    importing.set_defaults(run=_run_import)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    arguments = build_parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
    except OomreaperError as error:
        print(f"oomreaper: {error}", file=sys.stderr)
        if isinstance(error, BrokenPromiseError):
            print(f"oomreaper: {_REPORT_URL_HINT}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read us has gone; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    assert isinstance(status, int)
    return status


def _on_sigterm(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


# -- reap --------------------------------------------------------------------------------------------------


def _run_reap(arguments: argparse.Namespace) -> int:
    from oomreaper.watch.errand import Errand, make_settings, take_usual_signals

    take_usual_signals()
    targets = arguments.targets
    settings = make_settings(timeout_seconds=arguments.timeout, coredump=arguments.coredump, victims=len(targets))
    outcomes = Errand(targets, settings, is_dry_run=arguments.dry_run).run()
    for outcome in outcomes:
        if arguments.json:
            print(json.dumps(outcome.as_json()))
        else:
            print(describe(outcome))
    return exit_status_of(outcomes)


def exit_status_of(outcomes: Sequence[Outcome]) -> int:
    """The contract: 0 every victim reaped or exited, 3 when other rights or another kernel would help, else 1."""
    failed = [outcome for outcome in outcomes if outcome.kind is not None and not outcome.kind.is_success]
    if not failed:
        return _EXIT_OK
    return _EXIT_NOT_PERMITTED if any(outcome.needs_permission for outcome in failed) else _EXIT_NOT_ALL


def describe(outcome: Outcome) -> str:
    """One victim in a line or a few, units named."""
    name = str(outcome.pid) if outcome.comm is None else f"{outcome.pid} ({printable(outcome.comm)})"
    if outcome.kind is None:
        return f"{name}: {outcome.reason}"
    head = f"{outcome.kind.value} {name}"
    if outcome.kind in (OutcomeKind.REFUSED, OutcomeKind.GONE):
        return f"{head}: {outcome.reason}"
    parts = [f"{(outcome.freed_bytes or 0) / _MIB:.0f} of {(outcome.anon_before_bytes or 0) / _MIB:.0f} MiB back"]
    if outcome.elapsed_ms is not None:
        parts.append(f"{outcome.elapsed_ms:.1f} ms")
    if outcome.still_dying:
        parts.append("the process itself has not gone yet")
    if outcome.sharers:
        parts.append(f"{len(outcome.sharers)} processes that shared its memory were killed with it")
    lines = [f"{head}: {', '.join(parts)}; {outcome.reason}"]
    for thread in outcome.threads:
        place = thread.wchan if thread.wchan not in (None, "0", "") else "user space"
        lines.append(f"  thread {thread.tid} ({printable(thread.comm)}) {thread.state} in {place}")
        lines += [f"    {frame}" for frame in thread.stack if frame]
    return "\n".join(lines)


# -- the watcher -------------------------------------------------------------------------------------------


def _run_run(arguments: argparse.Namespace) -> int:
    from oomreaper.faces import run

    given = {"config": arguments.config, "events": arguments.events, "within": arguments.within}
    return run.print_plan(**given) if arguments.print_plan else run.run(**given, is_dry_run=arguments.dry_run)


def _run_explain(arguments: argparse.Namespace) -> int:
    from oomreaper.faces import explain, run
    from oomreaper.watch.client import fetch_state

    plan = run.compile_plan(config=arguments.config, events=arguments.events, within=arguments.within)
    # The watcher that listens at the usual place watches something else than a group that was named here.
    is_asked = plan.events_path is not None and (arguments.within is None or bool(arguments.events))
    state = fetch_state(plan.events_path) if is_asked and plan.events_path is not None else None
    if state is None:
        if arguments.events:
            raise KernelError(f"no watcher listens at {printable(os.fsencode(arguments.events))}")
        state = run.peek(plan)
    if arguments.json:
        for line in explain.render_json(state):
            print(line)
    else:
        print(explain.render_text(state, width=terminal_width(), use_color=use_color(), show_all=arguments.all))
    return _EXIT_OK


def _run_check(arguments: argparse.Namespace) -> int:
    from oomreaper.faces import settings

    return settings.run_check(arguments.file, as_json=arguments.json, print_defaults=arguments.print_defaults)


def _run_import(arguments: argparse.Namespace) -> int:
    from oomreaper.faces import settings

    return settings.run_import(arguments.peer, arguments.file, as_json=arguments.json)


# -- doctor and demo ---------------------------------------------------------------------------------------


def _run_doctor(arguments: argparse.Namespace) -> int:
    from oomreaper.faces import doctor
    from oomreaper.linux.features import probe_features

    features = probe_features()
    if arguments.json:
        for line in doctor.render_json(features):
            print(line)
    else:
        print(doctor.render_text(features, width=terminal_width(), use_color=use_color()))
    return _EXIT_OK if features.can_reap else _EXIT_NOT_PERMITTED


def _run_demo(arguments: argparse.Namespace) -> int:
    from oomreaper.demo import show

    return show.run(
        size_bytes=arguments.size_mib * _MIB, as_json=arguments.json, width=terminal_width(), use_color=use_color()
    )


def terminal_width() -> int:
    """Columns to write to; 80 where there is no terminal."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def use_color() -> bool:
    """Whether colour is wanted: a terminal, and no NO_COLOR (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# -- arguments ---------------------------------------------------------------------------------------------


def _target(text: str) -> Target:
    from oomreaper.watch.errand import Target

    pid, separator, started = text.partition(":")
    if not _is_whole_number(pid.removeprefix("-")) or (separator and not _is_whole_number(started)):
        raise argparse.ArgumentTypeError(
            f"{printable(os.fsencode(text))!r} is no process id: give a number, or PID:START"
        )
    return Target(int(pid), int(started) if separator else None)


def _is_whole_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20  # noqa: PLR2004 - the digits of 64 bits


def _seconds(text: str) -> float:
    from oomreaper.watch.errand import make_settings

    try:
        seconds = float(text)
        make_settings(timeout_seconds=seconds, coredump="abort")
    except (ValueError, UsageError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds above 0") from error
    return seconds


def _size_mib(text: str) -> int:
    smallest, largest = 16, 4096
    if not _is_whole_number(text) or not smallest <= int(text) <= largest:
        raise argparse.ArgumentTypeError(f"{text!r} is no size in MiB from {smallest} to {largest}")
    return int(text)
