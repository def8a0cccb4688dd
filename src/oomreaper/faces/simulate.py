"""``oomreaper simulate``: the modelled machine on the command line: run one, sweep many, check, mutants, lock-ups.

What is asked for goes to standard output, how far it is to standard error: a bar on a terminal, a line now and then
elsewhere. Exit status: 0 all well, 1 an invariant was broken, a mutant got away, or runs ended in an error; 2 usage,
3 greenlet is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from oomreaper.errors import ConfigError, UsageError
from oomreaper.faces.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from oomreaper.sim.experiments.sweeping import Store
    from oomreaper.sim.experiments.trial import Trial

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse has no public name for it

_EXIT_OK, _EXIT_BROKEN = 0, 1
_MIB = 1 << 20
_NS_IN_S = 1_000_000_000
# As many marks as can be told apart in a plot; all of them are in the list below it.
_MOST_MARKS = 6
_MOST_LINES = 40
_MUTANT_SEEDS = 300
_FAILURE_FILE = "oomreaper-failure.json"
_PAGE = "docs/simulation.md"
_MOST_SEEDS = 100_000_000


def add_parser(commands: _Commands) -> None:
    """Add ``simulate`` and what it can do; each sets ``run`` to what is called with the arguments."""
    from oomreaper.sim.experiments.contenders import NAMES

    simulate = commands.add_parser(
        "simulate",
        help="run the same code on a modelled machine",
        description="Run the kernel's killers, and oomreaper's own code, on a modelled machine short of memory: "
        "the same seed gives the same run. Nothing of this machine is touched.",
    )
    kinds = simulate.add_subparsers(dest="what", required=True, metavar="WHAT")
    run = kinds.add_parser("run", help="one run: what happened, and memory over time", description="One run.")
    _add_scenario(run)
    run.add_argument("--seed", type=_count(0, _MOST_SEEDS), default=0, help="what the schedule comes from (default: 0)")
    run.add_argument("--killer", choices=NAMES, default="ours", help="who gets memory back (default: ours)")
    run.add_argument("--trace", metavar="FILE", help="write every step, choice and sample as JSON")
    run.add_argument("--perfetto", metavar="FILE", help="write a trace for ui.perfetto.dev or chrome://tracing")
    run.add_argument("--json", action="store_true", help="print one JSON object a line")
    run.set_defaults(run=run_one)

    sweep = kinds.add_parser(
        "sweep",
        help="many seeds: how often each end comes about",
        description="Run many seeds on all cores. With --file, what is finished is kept there, and a sweep that was "
        "interrupted goes on from it.",
    )
    _add_scenario(sweep)
    sweep.add_argument("--seeds", type=_count(1, _MOST_SEEDS), default=100, help="how many, from 0 (default: 100)")
    sweep.add_argument("--killer", choices=NAMES, default="ours", help="who gets memory back (default: ours)")
    sweep.add_argument("--file", metavar="FILE", help="keep finished seeds here, one JSON object a line")
    _add_jobs(sweep)
    sweep.set_defaults(run=run_sweep)

    check = kinds.add_parser(
        "check",
        help="look for broken invariants in oomreaper's own code",
        description="Run watcher and reaper over many seeds, with failing calls, and check what must always hold. "
        "A failure is made small and written to a file that replays it.",
    )
    check.add_argument("--seeds", type=_count(1, _MOST_SEEDS), default=1_000, help="how many (default: 1000)")
    check.add_argument("--first", type=_count(0, _MOST_SEEDS), default=0, metavar="SEED", help="the first (default: 0)")
    check.add_argument("--file", metavar="FILE", help="keep finished seeds here, one JSON object a line")
    check.add_argument(
        "--failure",
        metavar="FILE",
        default=_FAILURE_FILE,
        help=f"where a failure is written (default: {_FAILURE_FILE})",
    )
    check.add_argument("--replay", metavar="FILE", help="run the failure of such a file again, and nothing else")
    _add_jobs(check)
    check.set_defaults(run=run_check)

    mutants = kinds.add_parser(
        "mutants",
        help="break the code on purpose, and see it caught",
        description="Run each known defect over seeds until an invariant catches it; the shortest schedule is told.",
    )
    mutants.add_argument(
        "--seeds", type=_count(1, _MOST_SEEDS), default=_MUTANT_SEEDS, help=f"at most, each (default: {_MUTANT_SEEDS})"
    )
    mutants.add_argument("--json", action="store_true", help="print one JSON object a line")
    mutants.set_defaults(run=run_mutants)

    lockup = kinds.add_parser(
        "lockup",
        help="how often a machine locks up, by workload and killer",
        description="The claim of the founding commit as an experiment: a table of workloads and killers.",
    )
    lockup.add_argument("--seeds", type=_count(1, 100_000), help="runs of each cell (default: 200)")
    lockup.add_argument("--write", action="store_true", help=f"write table and drawing into {_PAGE}, of a checkout")
    _add_jobs(lockup)
    lockup.set_defaults(run=run_lockup)


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", metavar="SCENARIO", help="a file that ends in .toml, or the name of a built-in one")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=_count(1, 1024), help="how many workers (default: one for each CPU)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def _count(smallest: int, largest: int) -> Any:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and smallest <= int(text) <= largest):  # noqa: PLR2004 - the digits of 64 bits
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {smallest} to {largest}")
        return int(text)

    return read


def _jobs(arguments: argparse.Namespace) -> int:
    return arguments.jobs or len(os.sched_getaffinity(0))


# -- run ---------------------------------------------------------------------------------------------------


def run_one(arguments: argparse.Namespace) -> int:
    """One run. 1 when it locked up or was not decided."""
    from oomreaper.sim.checks import Violation
    from oomreaper.sim.experiments import traces
    from oomreaper.sim.experiments.trial import run_trial
    from oomreaper.sim.experiments.verdict import Verdict

    setup = _load(arguments.scenario, as_json=arguments.json)
    if setup is None:
        return UsageError.exit_status
    is_traced = bool(arguments.trace or arguments.perfetto)
    try:
        trial = run_trial(setup, seed=arguments.seed, killer=arguments.killer, is_recorded=True, is_traced=is_traced)
    except Violation as violation:
        _print_violation(violation.invariant, violation.text, as_json=arguments.json)
        return _EXIT_BROKEN
    if arguments.trace:
        head = {**trial.as_json(), "choices": list(trial.choices)}
        _write(arguments.trace, traces.as_json(head, trial.trace, trial.samples))
    if arguments.perfetto:
        _write(arguments.perfetto, traces.as_chrome(trial.trace, trial.samples))
    if arguments.json:
        for at_ns, what in _lines_of(trial):
            print(json.dumps({"kind": "event", "at_ms": (at_ns - trial.start_ns) / 1e6, "what": what}))
        print(json.dumps({"kind": "run", **trial.as_json()}))
    else:
        print("\n".join(_render(trial, setup.about)))
    return _EXIT_OK if trial.finish.verdict in (Verdict.RECOVERED, Verdict.NEVER_SHORT) else _EXIT_BROKEN


def _lines_of(trial: Trial) -> list[tuple[int, str]]:
    told = [(at_ns, f"{kind}: {text}") for at_ns, kind, text in trial.told]
    return sorted([*told, *((each.now_ns, each.what) for each in trial.happenings)], key=lambda line: line[0])


def _render(trial: Trial, about: str) -> list[str]:
    """The plot, what happened, how it ended."""
    from oomreaper.demo import timeline
    from oomreaper.faces.cli import terminal_width, use_color

    def at_s(now_ns: int) -> float:
        return (now_ns - trial.start_ns) / _NS_IN_S

    finish = trial.finish
    samples = [timeline.Sample(at_s(each.now_ns), trial.memory_bytes - each.free_bytes) for each in trial.samples]
    marks = [
        timeline.Mark(at_s(each.now_ns), f"{each.what.split(' by ')[0]} {at_s(each.now_ns):.2f} s")
        for each in trial.happenings
        if each.is_mark
    ][:_MOST_MARKS]
    lines = [f"{trial.scenario}: {about}", f"killer {trial.killer}, seed {trial.seed}; memory in use:"]
    lines += timeline.render(
        samples,
        marks,
        scale_bytes=trial.memory_bytes,
        width=terminal_width(),
        use_unicode=timeline.can_draw_blocks(sys.stdout.encoding),
        use_color=use_color(),
    )
    happened = _lines_of(trial)
    lines += [f"{at_s(at_ns):9.3f} s  {what}" for at_ns, what in happened[:_MOST_LINES]]
    if len(happened) > _MOST_LINES:
        lines.append(f"            … and {len(happened) - _MOST_LINES} more (--json has all)")
    lines.append(
        f"{finish.verdict.value} after {finish.duration_ns / _NS_IN_S:.1f} s of its time, {finish.steps} steps; "
        f"{finish.kills} killed; short of memory for {finish.short_ns / _NS_IN_S:.1f} s"
    )
    if finish.diagnosis:
        lines += ["who waits for whom:", *(f"  {line}" for line in finish.diagnosis)]
    return lines


# -- sweep -------------------------------------------------------------------------------------------------


def run_sweep(arguments: argparse.Namespace) -> int:
    """Many seeds of one scenario. 1 when a run broke something, or ended in an error."""
    from oomreaper.sim.experiments.intervals import Share
    from oomreaper.sim.experiments.sweeping import Store, sweep
    from oomreaper.sim.experiments.trial import run_trial
    from oomreaper.sim.experiments.verdict import Verdict

    setup = _load(arguments.scenario, as_json=arguments.json)
    if setup is None:
        return UsageError.exit_status
    _need_greenlet(arguments.killer)

    def work(seed: int) -> Mapping[str, Any]:
        return run_trial(setup, seed=seed, killer=arguments.killer).as_json()

    head = {
        "scenario": setup.scenario.name,
        "killer": arguments.killer,
        "described": _fingerprint(repr(setup).encode()),
        "code": _fingerprint_code(),
    }
    store = Store(arguments.file, head)
    begun_s = time.monotonic()
    try:
        results = sweep(range(arguments.seeds), work, store, jobs=_jobs(arguments), progress=Progress("seeds"))
    except KeyboardInterrupt:
        _tell_interrupted(store, arguments.file)
        raise
    finally:
        store.close()
    errors = [result for result in results.values() if "error" in result]
    fine = [result for result in results.values() if "error" not in result]
    shares = {verdict.value: Share(sum(each["verdict"] == verdict for each in fine), len(fine)) for verdict in Verdict}
    record = {
        "kind": "sweep",
        "scenario": setup.scenario.name,
        "killer": arguments.killer,
        "seeds": len(results),
        "errors": len(errors),
        "shares": {name: share.as_json() for name, share in shares.items()},
        "kills_mean": round(sum(each["kills"] for each in fine) / len(fine), 3) if fine else None,
        "steps": sum(each["steps"] for each in fine),
        "seconds": round(time.monotonic() - begun_s, 3),
    }
    if arguments.json:
        print(json.dumps(record))
    else:
        print(f"{setup.scenario.name}: {setup.about}\nkiller {arguments.killer}, {len(results)} seeds; 95 % intervals:")
        for name, share in shares.items():
            if share.number:
                print(f"  {name:<12} {share.number:>8}  {share}")
        print(f"  {record['kills_mean']} killed on the average, {record['steps']} steps, {record['seconds']} s")
    for error in errors[:3]:
        print(f"oomreaper: seed {error['seed']}: {error['error']}", file=sys.stderr)
    return _EXIT_BROKEN if errors else _EXIT_OK


# -- check -------------------------------------------------------------------------------------------------


def run_check(arguments: argparse.Namespace) -> int:
    """Invariants over many seeds. 1 when one was broken; its file says how to see it again."""
    from oomreaper.sim.experiments import checking
    from oomreaper.sim.experiments.sweeping import Store, sweep

    _need_greenlet("ours")
    if arguments.replay is not None:
        return _replay(arguments.replay, as_json=arguments.json)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    store = Store(arguments.file, {"what": "check", "code": _fingerprint_code()})
    begun_s = time.monotonic()
    try:
        results = sweep(seeds, checking.check_seed, store, jobs=_jobs(arguments), progress=Progress("seeds"))
    except KeyboardInterrupt:
        _tell_interrupted(store, arguments.file)
        raise
    finally:
        store.close()
    seconds = time.monotonic() - begun_s
    broken = [seed for seed, result in results.items() if "violation" in result or "error" in result]
    violations = [_told(seed, results[seed]) for seed in broken]
    record = {
        "kind": "check",
        "first": arguments.first,
        "seeds": len(results),
        "steps": sum(result.get("steps", 0) for result in results.values()),
        "violations": violations,
        "seconds": round(seconds, 3),
    }
    failure = checking.shrink(broken[0]) if broken else None
    if failure is not None:
        _write(arguments.failure, failure.as_json())
    if arguments.json:
        print(json.dumps(record))
    else:
        print(
            f"{record['seeds']} seeds from {arguments.first}, {record['steps']} steps, {seconds:.1f} s: "
            f"{len(violations) or 'no'} violation{'' if len(violations) == 1 else 's'}"
        )
        for violation in violations[:_MOST_LINES]:
            print(f"  seed {violation['seed']}: {violation['invariant']}: {violation['text'].splitlines()[0]}")
    if failure is not None:
        kept = "all" if failure.case.kept is None else len(failure.case.kept)
        print(
            f"oomreaper: seed {failure.case.seed} is shrunk to {kept} processes and {len(failure.choices)} choices in "
            f"{arguments.failure}; see it with: oomreaper simulate check --replay {arguments.failure}",
            file=sys.stderr,
        )
    return _EXIT_BROKEN if broken else _EXIT_OK


def _told(seed: int, result: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in result:
        return {"seed": seed, "invariant": "error", "text": result["error"]}
    return {"seed": seed, **result["violation"]}


def _replay(path: str, *, as_json: bool) -> int:
    from oomreaper.sim.choice import Replayed
    from oomreaper.sim.experiments import checking

    try:
        with open(path, encoding="utf-8") as file:
            record = json.loads(file.read())
        case, choices = checking.read_failure(record)
    except OSError as error:
        raise UsageError(f"{path!r} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path!r} is no failure that check wrote") from error
    _, failure = checking.attempt(case, Replayed(choices))
    if failure is None:
        print(f"oomreaper: {path}: it does not fail any more", file=sys.stderr)
        return _EXIT_OK
    _print_violation(*failure, as_json=as_json)
    return _EXIT_BROKEN


# -- mutants and lock-ups ----------------------------------------------------------------------------------


def run_mutants(arguments: argparse.Namespace) -> int:
    """Each known defect. 1 when one got away."""
    from oomreaper.sim.mutants import run_mutant
    from oomreaper.sim.mutations import all_mutants

    _need_greenlet("ours")
    mutants = all_mutants()
    progress = Progress("mutants")
    escaped = 0
    for number, mutant in enumerate(mutants):
        progress.update(number, len(mutants))
        report = run_mutant(mutant, range(arguments.seeds))
        escaped += not report.caught
        progress.clear()
        if arguments.json:
            print(json.dumps(report.as_json()), flush=True)
        elif report.caught:
            print(f"caught   {report.mutant}: {report.invariant}, seed {report.seed}, {report.steps} steps", flush=True)
        else:
            print(f"ESCAPED  {report.mutant}: in {arguments.seeds} seeds", flush=True)
    if not arguments.json:
        print(f"{len(mutants) - escaped} of {len(mutants)} mutants are caught")
    return _EXIT_BROKEN if escaped else _EXIT_OK


def run_lockup(arguments: argparse.Namespace) -> int:
    """The table. 1 when a run ended in an error."""
    from oomreaper.sim.experiments import lockup

    _need_greenlet("ours")
    if arguments.write and not os.path.exists(_PAGE):
        raise UsageError(f"there is no {_PAGE} here; --write is for a checkout of the project")
    seeds = arguments.seeds or lockup.SEEDS
    cells = lockup.measure(seeds=seeds, jobs=_jobs(arguments), progress=Progress("runs"))
    if arguments.write:
        from pathlib import Path

        lockup.write(cells, Path(_PAGE), seeds=seeds)
    if arguments.json:
        for cell in cells:
            print(json.dumps({"kind": "cell", "seeds": seeds, **cell.as_json()}))
    else:
        print(lockup.render(cells, seeds=seeds), end="")
    errors = [error for cell in cells for error in cell.errors]
    for error in errors[:3]:
        print(f"oomreaper: {error['error']}", file=sys.stderr)
    return _EXIT_BROKEN if errors else _EXIT_OK


# -- what all of them need ---------------------------------------------------------------------------------


def _load(name: str, *, as_json: bool) -> Any:
    """The scenario; None when it has faults, which have been told."""
    from oomreaper.sim.scenario_file import load_scenario

    try:
        return load_scenario(name)
    except ConfigError as error:
        for fault in error.faults:
            if as_json:
                print(json.dumps({"kind": "fault", **fault._asdict()}))
            else:
                print(f"oomreaper: {fault.text}", file=sys.stderr)
        return None


def _need_greenlet(killer: str) -> None:
    from oomreaper.sim.experiments.contenders import OURS, need_greenlet

    if killer == OURS:
        need_greenlet()


def _tell_interrupted(store: Store, path: str | None) -> None:
    if path is not None:
        print(f"oomreaper: interrupted; {len(store.read())} seeds are kept in {path}", file=sys.stderr)


def _fingerprint(raw: bytes) -> str:
    import hashlib

    return hashlib.sha256(raw).hexdigest()[:16]


def _fingerprint_code() -> str:
    """Of all our modules: results of other code are not to be mixed with ours."""
    from pathlib import Path  # here only: it costs each other command 5 ms

    import oomreaper

    modules = sorted(Path(oomreaper.__file__).parent.rglob("*.py"))
    return _fingerprint(b"".join(module.read_bytes() for module in modules))


def _print_violation(invariant: str, text: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"kind": "violation", "invariant": invariant, "text": text}))
    else:
        print(f"broken: {invariant}: {text}")


def _write(path: str, record: Mapping[str, Any] | Sequence[Any]) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise UsageError(f"{path!r} cannot be written: {error.strerror}") from error
